"""PaperNumber: numbers that the other player names are written on papers in a row, which has to become sorted.

After the Codeforces game in which m numbers from 1 to c come one by one for n papers, with n * ceil(c / 2) <= m.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.rounds import Play, Rounds, as_player, lost, numbers, numbers_in, setting, won


class PaperNumber(Rounds[tuple[int, int]]):
    """`sizes`: papers, greatest number. Rounds are what good play needs at worst: papers * ceil(c / 2)."""

    name = "PaperNumber"
    category: ClassVar[Category] = "strategic_gaming"
    starts: ClassVar[dict[Difficulty, int]] = {"easy": 4, "medium": 4, "hard": 4}
    sizes: ClassVar[dict[Difficulty, tuple[int, int]]] = {"easy": (3, 4), "medium": (5, 4), "hard": (7, 4)}

    def set_up(self) -> None:
        self.count, self.greatest = self.size
        self.papers: list[int | None] = [None] * self.count
        self.rounds_left = self.count * -(-self.greatest // 2)
        self.number = self._next_number()

    def _next_number(self) -> int:
        """The number that helps least: its best place changes what is settled least; drawn among equals."""
        gains = {number: _gain(self.papers, number, self.greatest) for number in range(1, self.greatest + 1)}
        least = min(gains.values())
        return self.chance.choice([number for number, gain in gains.items() if gain == least])

    def rules(self) -> str:
        return (
            "PaperNumber. Each round you are given a number and write it on one of the papers in a row, over what"
            " stands there if need be. You win once every paper has a number and none is less than its left one.\n"
            "k writes the number on paper k.\n"
            f"papers = {self.count}; numbers go from 1 to c = {self.greatest}; rounds = {self.rounds_left}\n"
            f"row = {self._view()}"
        )

    def _view(self) -> str:
        return f"{_row(self.papers)} next {self.number}"

    def play(self, text: str) -> Reply:
        (paper,) = numbers(text, 1, low=1, high=self.count)
        self.papers[paper - 1] = self.number
        self.rounds_left -= 1
        if is_sorted(self.papers):
            return won(f"{_row(self.papers)} sorted.")
        if not self.rounds_left:
            return lost(f"{_row(self.papers)} not sorted.")
        self.number = self._next_number()
        return Reply(self._view())

    def random_move(self, rng: random.Random) -> str:
        return str(rng.randint(1, self.count))

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def is_sorted(papers: Sequence[int | None]) -> bool:
    written = [number for number in papers if number is not None]
    return len(written) == len(papers) and written == sorted(written)


def _row(papers: Sequence[int | None]) -> str:
    return " ".join("_" if number is None else str(number) for number in papers)


def _best_place(papers: Sequence[int | None], number: int, greatest: int) -> int:
    """Small numbers settle from the left, where a blank or a greater one is, large ones from the right."""
    places = range(len(papers))
    if number <= greatest // 2:
        return next((k for k in places if (there := papers[k]) is None or there > number), 0)
    return next((k for k in reversed(places) if (there := papers[k]) is None or there < number), len(papers) - 1)


def _gain(papers: Sequence[int | None], number: int, greatest: int) -> int:
    """How far the best place for a number brings the row; a blank that is filled counts as the whole range."""
    there = papers[_best_place(papers, number, greatest)]
    return greatest if there is None else abs(there - number)


def _play(rules: str) -> Play:
    said = setting(rules)["row"]
    greatest = int(setting(rules)["c"])
    while True:
        row, _, number = said.partition(" next ")
        papers = [None if there == "_" else int(there) for there in row.split()]
        said = yield str(_best_place(papers, numbers_in(number)[0], greatest) + 1)
