"""GeoGame: points are chosen in turn; the sum of squared distances has to become even (Codeforces)."""

from __future__ import annotations

import random
from collections.abc import Sequence
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


class GeoGame(Rounds[int]):
    """`sizes`: how many points; even, so the other player takes the last. Half are odd against the start."""

    name = "GeoGame"
    category: ClassVar[Category] = "strategic_gaming"
    sizes: ClassVar[dict[Difficulty, int]] = {"easy": 4, "medium": 8, "hard": 14}

    def set_up(self) -> None:
        places = [(x, y) for x in range(self.size) for y in range(self.size)]
        self.at = self.chance.choice(places)
        odd = [place for place in places if is_odd(place, self.at)]
        even = [place for place in places if not is_odd(place, self.at) and place != self.at]
        half = self.size // 2
        self.points = self.chance.sample(self.chance.sample(odd, half) + self.chance.sample(even, half), self.size)
        self.left = list(range(1, self.size + 1))
        self.start, self.sum = self.at, 0

    def rules(self) -> str:
        return (
            "GeoGame. You and I choose points in turn, you first, each point once. Every choice adds the square of its"
            " distance from the point chosen before (at first, from the start) to a sum. You win if the sum is"
            " even when"
            " all points are chosen.\n"
            "k chooses point k. You are told my choice and the sum.\n"
            f"start = {self.start[0]} {self.start[1]}\n{points_said(self.points)}"
        )

    def play(self, text: str) -> Reply:
        (choice,) = numbers(text, 1, low=1, high=self.size)
        if choice not in self.left:
            raise Forbidden("that point was chosen")
        self._choose(choice)
        answer = best_choice(self.left, self.points, self.start, last_is_even=False)
        self._choose(answer)
        said = f"{answer} sum {self.sum}"
        if self.left:
            return Reply(said)
        return lost(said) if self.sum % 2 else won(said)

    def _choose(self, choice: int) -> None:
        self.left.remove(choice)
        x, y = self.points[choice - 1]
        self.sum += (x - self.at[0]) ** 2 + (y - self.at[1]) ** 2
        self.at = (x, y)

    def random_move(self, rng: random.Random) -> str:
        return str(rng.choice(self.left))

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def is_odd(one: Point, other: Point) -> bool:
    """Whether the square of their distance is odd: squares are as odd as what is squared."""
    return sum(one) % 2 != sum(other) % 2


def best_choice(left: Sequence[int], points: Sequence[Point], start: Point, last_is_even: bool) -> int:
    """A choice for who wants the last point even against the start, or odd: one of the other kind, if there is one.

    Along the way the sums' oddness cancels, but for the first and the last point.
    """
    return min(left, key=lambda choice: (is_odd(points[choice - 1], start) != last_is_even, choice))


def _play(rules: str) -> Play:
    told = setting(rules)
    start_x, start_y = numbers_in(told["start"])
    points = points_of(told)
    left = list(range(1, len(points) + 1))
    while True:
        choice = best_choice(left, points, (start_x, start_y), last_is_even=True)
        left.remove(choice)
        left.remove(numbers_in((yield str(choice)))[0])
