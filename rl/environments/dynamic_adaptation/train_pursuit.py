"""TrainPursuit: a train on a circular line that moves on after every question (after Codeforces 1039B)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import ClassVar

from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.rounds import Forbidden, Play, Rounds, as_player, numbers, setting, won


class TrainPursuit(Rounds[tuple[int, int]]):
    """`sizes`: stations, and how far the train may move. How far it does is drawn, so luck may decide the end."""

    name = "TrainPursuit"
    category: ClassVar[Category] = "dynamic_adaptation"
    starts: ClassVar[dict[Difficulty, int]] = {"easy": 8, "medium": 16, "hard": 30}
    sizes: ClassVar[dict[Difficulty, tuple[int, int]]] = {"easy": (8, 1), "medium": (16, 1), "hard": (30, 1)}

    def set_up(self) -> None:
        self.stations, self.reach = self.size
        self.hidden = self.chance.randrange(self.stations)

    def rules(self) -> str:
        return (
            "TrainPursuit. A train stands at one of the stations 1 to n, which form a circle. After every question it"
            " goes on by 0 to k stations (from n to 1). Catch it.\n"
            "l r asks whether it is at one of the stations l to r: yes or no. Ask for its station, x x, to catch it.\n"
            f"n = {self.stations}; k = {self.reach}"
        )

    def play(self, text: str) -> Reply:
        left, right = numbers(text, 2, low=1, high=self.stations)
        if left > right:
            raise Forbidden("l may not be greater than r")
        inside = left <= self.hidden + 1 <= right
        if inside and left == right:
            return won("Caught.")
        self.hidden = (self.hidden + self.chance.randint(0, self.reach)) % self.stations
        return Reply("yes" if inside else "no")

    def random_move(self, rng: random.Random) -> str:
        return "{} {}".format(*sorted(rng.choices(range(1, self.stations + 1), k=2)))

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


Chances = tuple[float, ...]
"""How likely the train is at each station."""


def _play(rules: str) -> Play:
    """Ranges that halve where the train may be; once it is at one of few stations, what is best two questions ahead."""
    told = setting(rules)
    n, reach = int(told["n"]), int(told["k"])
    chances: Chances = (1 / n,) * n
    while True:
        ranges = list(_ranges(chances))
        left, right = min(ranges, key=lambda asked: abs(0.5 - sum(chances[asked[0] : asked[1] + 1])))
        if len(ranges) <= 15:
            left, right = max(ranges, key=lambda asked: _hope(chances, asked, reach, ahead=1))
        said = yield f"{left + 1} {right + 1}"
        chances = _after(chances, left, right, said == "yes", reach)[1]


def _ranges(chances: Chances) -> Iterator[tuple[int, int]]:
    """Ranges that begin and end at stations where the train may be."""
    possible = [at for at, chance in enumerate(chances) if chance > 1e-9]
    return ((left, right) for left in possible for right in possible if left <= right)


def _after(chances: Chances, left: int, right: int, yes: bool, reach: int) -> tuple[float, Chances]:
    """How likely an answer is, and where the train may be after it and its move."""
    seen = [chance if (left <= at <= right) == yes else 0.0 for at, chance in enumerate(chances)]
    if not (answered := sum(seen)):
        return 0.0, chances
    moved = (sum(seen[at - by] for by in range(reach + 1)) for at in range(len(seen)))
    return answered, tuple(chance / (answered * (reach + 1)) for chance in moved)


def _hope(chances: Chances, asked: tuple[int, int], reach: int, ahead: int) -> float:
    """The chance of a catch by this question, or else by those ahead."""
    left, right = asked
    caught = chances[left] if left == right else 0.0
    for yes in (True, False):
        answered, following = _after(chances, left, right, yes, reach)
        if answered and not (yes and left == right):
            best = max(following) if not ahead else max(_hope(following, each, reach, 0) for each in _ranges(following))
            caught += answered * best
    return caught
