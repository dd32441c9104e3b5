"""CircleFinding: a hidden circle, by how near rays from the origin come to it (after a Codeforces game)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from math import sqrt
from typing import ClassVar, NamedTuple

from posttrain.rl.environments.candidates import most_telling
from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.rounds import (
    Forbidden,
    Play,
    Rounds,
    as_player,
    lost,
    numbers,
    question_or_answer,
    setting,
    won,
)

READ = 0.051  # how far a reply may be from the distance, of which it gives one digit


class Circle(NamedTuple):
    x: int
    y: int
    radius: int

    def distance(self, direction: tuple[int, int]) -> float:
        """From the ray that starts at the origin and goes in a direction, 0 where the ray meets the circle."""
        dx, dy = direction
        ahead = dx * self.x + dy * self.y > 0
        squared = (dx * self.y - dy * self.x) ** 2 / (dx * dx + dy * dy) if ahead else self.x**2 + self.y**2
        return max(0.0, sqrt(squared) - self.radius)


class CircleFinding(Rounds[int]):
    """`sizes`: the greatest coordinate of the centre, either way. The origin lies at least 1 outside the circle."""

    name = "CircleFinding"
    category: ClassVar[Category] = "information_probing"
    sizes: ClassVar[dict[Difficulty, int]] = {"easy": 8, "medium": 25, "hard": 80}

    def set_up(self) -> None:
        x = self.chance.randint(3, self.size) * self.chance.choice((-1, 1))
        y = self.chance.randint(-self.size, self.size)
        x, y = self.chance.sample((x, y), 2)
        self.hidden = Circle(x, y, self.chance.randint(1, int(sqrt(x * x + y * y)) - 1))

    def rules(self) -> str:
        return (
            "CircleFinding. Find a hidden circle with centre x y and radius r, all whole numbers. The origin lies"
            " outside, at least 1 away from it.\n"
            "? a b gives the distance to the circle of the ray from the origin through the point a b, 0 if they meet,"
            " to one digit.\n"
            "! x y r ends the game: the circle is this one.\n"
            f"x, y, a and b lie between -m and m, m = {self.size}"
        )

    def play(self, text: str) -> Reply:
        asks, rest = question_or_answer(text)
        if not asks:
            x, y, radius = numbers(rest, 3, low=-2 * self.size, high=2 * self.size)
            return won("Right.") if Circle(x, y, radius) == self.hidden else lost("Wrong.")
        a, b = numbers(rest, 2, low=-self.size, high=self.size)
        if a == b == 0:
            raise Forbidden("0 0 is no direction")
        return Reply(_reply(self.hidden, (a, b)))

    def random_move(self, rng: random.Random) -> str:
        a, b = rng.randint(-self.size, self.size), rng.randint(1, self.size)
        return f"! {a} {b} {rng.randint(1, self.size)}" if rng.random() < 0.3 else f"? {a} {b}"

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def _reply(circle: Circle, direction: tuple[int, int]) -> str:
    return f"{circle.distance(direction):.1f}"


def _play(rules: str) -> Play:
    """One of two opposite rays points away, and tells the origin's distance; few circles of whole numbers have it."""
    m = int(setting(rules)["m"])
    ahead = float((yield "? 1 0"))
    behind = float((yield "? -1 0"))
    circles = [
        circle
        for circle in _circles(m, max(ahead, behind))
        if abs(circle.distance((1, 0)) - ahead) < READ and abs(circle.distance((-1, 0)) - behind) < READ
    ]
    while len(circles) > 1:
        direction = most_telling(circles, _directions(circles[:12], m), _reply)
        said = yield "? {} {}".format(*direction)
        circles = [circle for circle in circles if _reply(circle, direction) == said]
    yield "! {} {} {}".format(*circles[0])


def _circles(m: int, outside: float) -> Iterator[Circle]:
    """Every circle with a centre of coordinates up to m that lies so far from the origin, to the digits of a reply."""
    for x in range(-m, m + 1):
        for y in range(-m, m + 1):
            exact = sqrt(x * x + y * y) - outside
            radius = round(exact)
            if radius >= 1 and abs(exact - radius) < READ:
                yield Circle(x, y, radius)


def _directions(circles: list[Circle], m: int) -> Iterator[tuple[int, int]]:
    """Towards the circles and all around; the fewer circles are left, the finer."""
    yield from ((x, y) for x, y, _ in circles)
    step = max(1, m // 4) if len(circles) > 4 else 1
    for along in range(-m, m, step):
        yield from ((along, -m), (m, along), (-along, m), (-m, -along))
