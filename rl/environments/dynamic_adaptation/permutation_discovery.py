"""PermutationDiscovery: a hidden permutation, by one place of its powers at a time (Codeforces 1621C)."""

from __future__ import annotations

import random
from functools import cache
from itertools import permutations
from typing import ClassVar

from posttrain.rl.environments.candidates import most_telling
from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.rounds import (
    Play,
    Rounds,
    as_player,
    lost,
    numbers,
    question_or_answer,
    setting,
    won,
)

Permutation = tuple[int, ...]


class PermutationDiscovery(Rounds[int]):
    """`sizes`: how long the permutation is. Places and values count from 0 here, from 1 in what is said."""

    name = "PermutationDiscovery"
    category: ClassVar[Category] = "dynamic_adaptation"
    starts: ClassVar[dict[Difficulty, int]] = {"easy": 6, "medium": 24}
    sizes: ClassVar[dict[Difficulty, int]] = {"easy": 3, "medium": 4, "hard": 6}

    def set_up(self) -> None:
        self.hidden = tuple(self.chance.sample(range(self.size), self.size))
        self.power = tuple(range(self.size))

    def rules(self) -> str:
        return (
            "PermutationDiscovery. Find a hidden permutation p of 1 to n. A second one, q, is 1 2 ... n at first.\n"
            "? i gives the value of q at place i. After every question q changes: its value at i becomes the one it had"
            " at p[i].\n"
            "! a b c ... ends the game: this is p.\n"
            f"n = {self.size}"
        )

    def play(self, text: str) -> Reply:
        asks, rest = question_or_answer(text)
        found = numbers(rest, 1 if asks else self.size, low=1, high=self.size)
        if not asks:
            return won("Right.") if tuple(value - 1 for value in found) == self.hidden else lost("Wrong.")
        said = self.power[found[0] - 1] + 1
        self.power = after(self.power, self.hidden)
        return Reply(str(said))

    def random_move(self, rng: random.Random) -> str:
        if rng.random() < 0.3:
            return "! " + " ".join(map(str, rng.sample(range(1, self.size + 1), self.size)))
        return f"? {rng.randint(1, self.size)}"

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def after(power: Permutation, by: Permutation) -> Permutation:
    return tuple(power[place] for place in by)


@cache
def _squares(n: int) -> list[tuple[Permutation, Permutation]]:
    """Every permutation, and what q is after one question: the permutation itself."""
    return [(hidden, hidden) for hidden in permutations(range(n))]


def _play(rules: str) -> Play:
    """The first question tells nothing, as q is known. Then the permutations that are left, each with its q."""
    n = int(setting(rules)["n"])
    yield "? 1"
    left = _squares(n)
    while len(left) > 1:
        place = most_telling(left, range(n), lambda pair, place: pair[1][place])
        said = int((yield f"? {place + 1}")) - 1
        left = [(hidden, after(power, hidden)) for hidden, power in left if power[place] == said]
    yield "! " + " ".join(str(value + 1) for value in left[0][0])
