"""SafepathFinder: a safe way over a grid with hidden traps, by how many lie around each cell that is entered."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import ClassVar

from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.grids import Cell, around, cells, shortest
from posttrain.rl.environments.rounds import Forbidden, Play, Rounds, as_player, lost, numbers, setting, won


class SafepathFinder(Rounds[tuple[int, int]]):
    """`sizes`: cells of a side, traps. Drawn until the reference player gets through by certain knowledge."""

    name = "SafepathFinder"
    category: ClassVar[Category] = "state_operation"
    costly = True
    sizes: ClassVar[dict[Difficulty, tuple[int, int]]] = {"easy": (4, 2), "medium": (5, 5), "hard": (6, 5)}

    def set_up(self) -> None:
        n, traps = self.size
        ends = ((1, 1), (n, n))
        while True:
            self.hidden = set(self.chance.sample([cell for cell in cells(n) if cell not in ends], traps))
            self.here: Cell = (1, 1)
            if (self.turns_of_reference() or 0) >= n:
                break

    def _danger(self) -> int:
        return len(self.hidden.intersection(around(self.here, self.size[0])))

    def rules(self) -> str:
        n, traps = self.size
        return (
            "SafepathFinder. Get from row 1, column 1 of a grid to row n, column n, past hidden traps.\n"
            "r c moves to a cell that touches yours, at a side or a corner. You are told how many of the cells that"
            " touch it are traps.\n"
            f"n = {n}; traps = {traps}; around row 1, column 1: danger = {self._danger()}"
        )

    def play(self, text: str) -> Reply:
        n = self.size[0]
        row, column = numbers(text, 2, low=1, high=n)
        if (row, column) not in around(self.here, n):
            raise Forbidden("that cell does not touch yours")
        self.here = (row, column)
        if self.here in self.hidden:
            return lost("A trap.")
        return won("You are through.") if self.here == (n, n) else Reply(str(self._danger()))

    def random_move(self, rng: random.Random) -> str:
        return "{} {}".format(*rng.choice(around(self.here, self.size[0])))

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def _play(rules: str) -> Play:
    """To the goal over cells that are known to be safe, or else to the nearest of these not yet entered."""
    told = setting(rules)
    n = int(told["n"])
    here: Cell = (1, 1)
    dangers = {here: int(told["danger"])}
    while True:
        safe = safe_cells(n, dangers)

        def onward(cell: Cell, safe: set[Cell] = safe) -> Iterator[tuple[Cell, Cell]]:
            return ((there, there) for there in sorted(around(cell, n), key=sum, reverse=True) if there in safe)

        way = shortest(here, lambda cell: cell == (n, n), onward)
        way = way or shortest(here, lambda cell: cell not in dangers, onward)
        here = (way or around(here, n))[0]
        dangers[here] = int((yield "{} {}".format(*here)))


def safe_cells(n: int, dangers: dict[Cell, int]) -> set[Cell]:
    """Cells that cannot be traps: what a number, or the difference of two, says of the cells that are not yet known.

    Args:
        n: cells of a side.
        dangers: the number of traps around every cell entered so far.
    """
    safe, traps = {*dangers, (n, n)}, set[Cell]()
    while True:
        clues: dict[frozenset[Cell], int] = {}
        for cell, count in dangers.items():
            near = around(cell, n)
            unknown = frozenset(each for each in near if each not in safe and each not in traps)
            clues[unknown] = count - len(traps.intersection(near))
        for larger, many in list(clues.items()):
            for smaller, few in list(clues.items()):
                if smaller < larger:
                    clues[larger - smaller] = many - few
        new_safe = {cell for unknown, count in clues.items() if count == 0 for cell in unknown}
        new_traps = {cell for unknown, count in clues.items() if count == len(unknown) for cell in unknown}
        if not new_safe and not new_traps:
            return safe
        safe |= new_safe
        traps |= new_traps
