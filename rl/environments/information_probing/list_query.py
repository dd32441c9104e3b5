"""ListQuery: the least value of a sorted linked list that is not below a bound, cell by cell (Codeforces 843B)."""

from __future__ import annotations

import random
from typing import ClassVar

from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.rounds import (
    Play,
    Rounds,
    as_player,
    lost,
    numbers,
    numbers_in,
    question_or_answer,
    setting,
    won,
)

GREATEST = 99
NONE = -1


class ListQuery(Rounds[int]):
    """`sizes`: how many cells."""

    name = "ListQuery"
    category: ClassVar[Category] = "information_probing"
    sizes: ClassVar[dict[Difficulty, int]] = {"easy": 4, "medium": 8, "hard": 13}

    def set_up(self) -> None:
        values = sorted(self.chance.sample(range(1, GREATEST + 1), self.size))
        order = self.chance.sample(range(1, self.size + 1), self.size)
        self.start = order[0]
        self.hidden = dict(zip(order, zip(values, [*order[1:], NONE], strict=True), strict=True))
        rank = self.chance.randint(0, self.size)  # of the value that is looked for; past the last: there is none
        below = values[rank - 1] if rank else 0
        above = values[rank] if rank < self.size else GREATEST
        self.bound = self.chance.randint(below + 1, max(below + 1, above))
        self.answer = values[rank] if rank < self.size else NONE

    def rules(self) -> str:
        return (
            "ListQuery. The cells 1 to n form a linked list whose values rise. Find the least value not below x.\n"
            f"? i gives the value of cell i and the cell that comes next, {NONE} after the last.\n"
            f"! v ends the game: v is that value, {NONE} if there is none.\n"
            f"n = {self.size}; the first cell is s = {self.start}; x = {self.bound}"
        )

    def play(self, text: str) -> Reply:
        asks, rest = question_or_answer(text)
        if asks:
            (cell,) = numbers(rest, 1, low=1, high=self.size)
            return Reply("{} {}".format(*self.hidden[cell]))
        return won("Right.") if numbers(rest, 1, low=NONE, high=GREATEST + 1) == [self.answer] else lost("Wrong.")

    def random_move(self, rng: random.Random) -> str:
        return f"! {rng.randint(1, GREATEST)}" if rng.random() < 0.3 else f"? {rng.randint(1, self.size)}"

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def _play(rules: str) -> Play:
    """Some cells at first, then on from the greatest value below x. No cell is asked for twice."""
    told = setting(rules)
    n, start, bound = (int(told[name]) for name in ("n", "s", "x"))
    seen: dict[int, tuple[int, int]] = {}
    for cell in range(1, int(n**0.5) + 1):
        seen[cell] = _cell((yield f"? {cell}"))
    while True:
        cell, answer = start, NONE
        below = [(value, following) for value, following in seen.values() if value < bound]
        if below:
            cell = max(below)[1]
        if cell != NONE and cell not in seen:
            seen[cell] = _cell((yield f"? {cell}"))
            continue
        if cell != NONE:
            answer = seen[cell][0]
        yield f"! {answer}"


def _cell(said: str) -> tuple[int, int]:
    value, following = numbers_in(said)
    return value, following
