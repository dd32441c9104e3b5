"""FindHidden: a hidden number, asked for by sets; of two answers in a row at least one is true.

After the Codeforces game of a joker who answers about sets and lets two guesses be made.
"""

from __future__ import annotations

import random
from typing import ClassVar

from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.rounds import (
    Play,
    Rounds,
    as_player,
    different,
    lost,
    numbers,
    question_or_answer,
    setting,
    won,
)

GOLDEN = (1 + 5**0.5) / 2


class FindHidden(Rounds[int]):
    """`sizes`: how many numbers it may be. The answers lie at random where they may."""

    name = "FindHidden"
    category: ClassVar[Category] = "dynamic_adaptation"
    starts: ClassVar[dict[Difficulty, int]] = {"easy": 6, "medium": 10, "hard": 20}
    sizes: ClassVar[dict[Difficulty, int]] = {"easy": 6, "medium": 10, "hard": 20}

    def set_up(self) -> None:
        self.hidden = self.chance.randint(1, self.size)
        self.lied = False
        self.guesses = 2

    def rules(self) -> str:
        return (
            "FindHidden. Find a hidden number x.\n"
            "? a b c ... asks whether x is one of these numbers: yes or no. An answer may be a lie, but of two answers"
            " in a row at least one is true.\n"
            "! a says that x is a. You have two guesses, and they are judged truly.\n"
            f"x is 1 to n, n = {self.size}"
        )

    def play(self, text: str) -> Reply:
        asks, rest = question_or_answer(text)
        asked = different(numbers(rest, None if asks else 1, low=1, high=self.size))
        if not asks:
            return self._guess(asked[0])
        self.lied = not self.lied and self.chance.random() < 0.5
        return Reply("yes" if (self.hidden in asked) != self.lied else "no")

    def _guess(self, number: int) -> Reply:
        self.guesses -= 1
        if number == self.hidden:
            return won("Right.")
        return Reply("Wrong, one guess left.") if self.guesses else lost("Wrong.")

    def random_move(self, rng: random.Random) -> str:
        if rng.random() < 0.3:
            return f"! {rng.randint(1, self.size)}"
        return "? " + " ".join(map(str, sorted(rng.sample(range(1, self.size + 1), rng.randint(1, self.size - 1)))))

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def _play(rules: str) -> Play:
    """Keep the numbers that may be x, apart: those for which the last answer was true, and the others.

    A further lie rules out the second kind. A number of the first kind is worth the golden ratio of one of the second
    (so many more ways of lying are left to it); the set is chosen that leaves least in the worse case.
    """
    truthful, lied = list(range(1, int(setting(rules)["n"]) + 1)), list[int]()
    while len(truthful) + len(lied) > 2:
        a, b = min(
            ((a, b) for a in range(len(truthful) + 1) for b in range(len(lied) + 1) if a + b),
            key=lambda taken: _worse_case(len(truthful), len(lied), *taken),
        )
        inside = truthful[:a] + lied[:b]
        outside = truthful[a:] + lied[b:]
        if (yield "? " + " ".join(map(str, sorted(inside)))) == "yes":
            truthful, lied = inside, truthful[a:]
        else:
            truthful, lied = outside, truthful[:a]
    for number in truthful + lied:
        yield f"! {number}"


def _worse_case(truthful: int, lied: int, a: int, b: int) -> float:
    """The worth of what is left if `a` of the truthful and `b` of the lied are asked for, at the worse answer."""
    return max((a + b) * GOLDEN + truthful - a, (truthful - a + lied - b) * GOLDEN + a)
