"""PizzaSlice: a convex pizza is eaten corner by corner in turn; who eats less wins (after a Codeforces game)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from math import cos, pi, sin
from typing import ClassVar

from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.points import Point, points_of, points_said
from posttrain.rl.environments.rounds import (
    Forbidden,
    Play,
    Rounds,
    as_player,
    lost,
    numbers,
    numbers_in,
    setting,
    won,
)

Corners = tuple[int, ...]
"""The corners that are left, in order, from 1."""

RADIUS = 30


class PizzaSlice(Rounds[int]):
    """`sizes`: how many corners, an even number. What you ate before leaves a third of the first moves winning."""

    name = "PizzaSlice"
    category: ClassVar[Category] = "strategic_gaming"
    costly = True
    sizes: ClassVar[dict[Difficulty, int]] = {"easy": 6, "medium": 8, "hard": 10}

    def set_up(self) -> None:
        self.corners: Corners = tuple(range(1, self.size + 1))
        while True:
            self.points = self._draw_points()
            self.pizza = Pizza(self.points)
            if not self.pizza.is_convex:
                continue
            leads = sorted((self.pizza.lead_by(corner, self.corners) for corner in self.corners), reverse=True)
            handicap = leads[self.size // 3]
            if leads[0] > handicap >= 0:
                break
        self.eaten = [handicap, 0]

    def _draw_points(self) -> list[Point]:
        angles = sorted(self.chance.sample(range(72), self.size))
        turned = [(RADIUS * cos(angle * pi / 36), RADIUS * sin(angle * pi / 36)) for angle in angles]
        return [(round(RADIUS + x), round(RADIUS + y)) for x, y in turned]

    def rules(self) -> str:
        return (
            "PizzaSlice. You and I eat a pizza, you first. Who eats a corner eats the triangle of it and the two"
            " corners"
            " next to it, and that corner is gone. At last three corners are left, and that triangle is eaten."
            " You win if"
            " you have eaten less than I have.\n"
            "k eats corner k. You are told which I eat.\n"
            f"You have eaten {self.eaten[0] / 2} before, I have eaten nothing.\n{points_said(self.points)}"
        )

    def play(self, text: str) -> Reply:
        (corner,) = numbers(text, 1, low=1, high=self.size)
        if corner not in self.corners:
            raise Forbidden("that corner is gone")
        self._eat(corner, 0)
        answer = self.pizza.best(self.corners)
        self._eat(answer, 1)
        if len(self.corners) >= 3:
            return Reply(str(answer))
        said = "{} eaten {} {}".format(answer, *(twice / 2 for twice in self.eaten))
        return won(said) if self.eaten[0] < self.eaten[1] else lost(said)

    def _eat(self, corner: int, player: int) -> None:
        self.eaten[player] += self.pizza.slice(corner, self.corners)
        self.corners = without(corner, self.corners)

    def random_move(self, rng: random.Random) -> str:
        return str(rng.choice(self.corners))

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def without(corner: int, corners: Corners) -> Corners:
    return tuple(each for each in corners if each != corner)


class Pizza:
    """Perfect play on a pizza. Areas are counted twice, so that they are whole numbers."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.points = points
        self.lead = cache(self._lead)

    @property
    def is_convex(self) -> bool:
        """Whether the way round the points turns left at each of them: rounding may dent it."""
        corners = tuple(range(1, len(self.points) + 1))
        return all(self._turn(corner, corners) > 0 for corner in corners)

    def slice(self, corner: int, corners: Corners) -> int:
        """Twice the area of the triangle at a corner."""
        return abs(self._turn(corner, corners))

    def _turn(self, corner: int, corners: Corners) -> int:
        at = corners.index(corner)
        (ax, ay), (bx, by), (cx, cy) = (self.points[corners[k % len(corners)] - 1] for k in (at - 1, at, at + 1))
        return (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)

    def _lead(self, corners: Corners) -> int:
        """By how much the player to move ends up below the other in what is still to be eaten."""
        return max((self.lead_by(corner, corners) for corner in corners), default=0) if len(corners) >= 3 else 0

    def lead_by(self, corner: int, corners: Corners) -> int:
        """The same if that corner is eaten now."""
        return -self.slice(corner, corners) - self.lead(without(corner, corners))

    def best(self, corners: Corners) -> int:
        return max(corners, key=lambda corner: self.lead_by(corner, corners))


def _play(rules: str) -> Play:
    told = setting(rules)
    points = points_of(told)
    pizza, corners = Pizza(points), tuple(range(1, len(points) + 1))
    while True:
        corner = pizza.best(corners)
        answer = numbers_in((yield str(corner)))[0]
        corners = without(answer, without(corner, corners))
