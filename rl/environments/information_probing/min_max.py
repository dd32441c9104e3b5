"""MinMax: where the least and the greatest of hidden numbers lie, by comparing two at a time (Codeforces 730B)."""

from __future__ import annotations

import random
from collections.abc import Generator
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


class MinMax(Rounds[int]):
    """`sizes`: how many numbers. 3n/2 - 2 comparisons suffice: of a pair, one is not least, one not greatest."""

    name = "MinMax"
    category: ClassVar[Category] = "information_probing"
    sizes: ClassVar[dict[Difficulty, int]] = {"easy": 4, "medium": 6, "hard": 9}

    def set_up(self) -> None:
        while len(set(hidden := [self.chance.randint(1, 2 * self.size) for _ in range(self.size)])) == 1:
            pass
        self.hidden = hidden

    def rules(self) -> str:
        return (
            "MinMax. There is a row of hidden numbers; some may be equal. Find where the least and the greatest lie.\n"
            "? i j compares the numbers at places i and j: <, = or >.\n"
            "! i j ends the game: the least lies at i, the greatest at j.\n"
            f"Places are 1 to n, n = {self.size}"
        )

    def play(self, text: str) -> Reply:
        asks, rest = question_or_answer(text)
        i, j = different(numbers(rest, 2, low=1, high=self.size))
        first, second = self.hidden[i - 1], self.hidden[j - 1]
        if asks:
            return Reply("<" if first < second else ">" if first > second else "=")
        right = first == min(self.hidden) and second == max(self.hidden)
        return won("Right.") if right else lost("Wrong.")

    def random_move(self, rng: random.Random) -> str:
        i, j = rng.sample(range(1, self.size + 1), 2)
        return f"{rng.choice('?!')} {i} {j}"

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def _play(rules: str) -> Play:
    """Pairs first; the lesser ones then meet for the least, the greater ones for the greatest."""
    n = int(setting(rules)["n"])
    lesser, greater = [], []
    for i in range(1, n, 2):
        i_is_less = (yield f"? {i} {i + 1}") == "<"
        lesser.append(i if i_is_less else i + 1)
        greater.append(i + 1 if i_is_less else i)
    if n % 2:
        lesser.append(n)
        greater.append(n)
    least = yield from _last_standing(lesser, "<")
    greatest = yield from _last_standing(greater, ">")
    yield f"! {least} {greatest}"


def _last_standing(places: list[int], wanted: str) -> Generator[str, str, int]:
    best = places[0]
    for place in places[1:]:
        if (yield f"? {place} {best}") == wanted:
            best = place
    return best
