"""GridGame: numbered cells are taken in turn, each beside one already taken; the lesser sum wins (after Codeforces)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import ClassVar

from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.grids import grid_of
from posttrain.rl.environments.rounds import Forbidden, Play, Rounds, as_player, lost, numbers, numbers_in, won


class GridGame(Rounds[tuple[int, int]]):
    """`sizes`: rows and columns, an even number of cells. Drawn until a first move wins, but half do not."""

    name = "GridGame"
    category: ClassVar[Category] = "strategic_gaming"
    costly = True
    sizes: ClassVar[dict[Difficulty, tuple[int, int]]] = {"easy": (2, 3), "medium": (2, 4), "hard": (3, 4)}

    def set_up(self) -> None:
        rows, columns = self.size
        while True:
            values = self.chance.sample(range(1, rows * columns + 1), rows * columns)
            self.grid = [values[row * columns : (row + 1) * columns] for row in range(rows)]
            self.board = Board(self.grid)
            leads = [self.board.lead_by(cell, 0) for cell in self.board.allowed(0)]
            if 0 < sum(lead > 0 for lead in leads) <= len(leads) // 2:
                break
        self.taken, self.sums = 0, [0, 0]

    def rules(self) -> str:
        grid = "\n".join(" ".join(map(str, row)) for row in self.grid)
        return (
            "GridGame. You and I take cells of a grid in turn, you first. After the first, a cell has to share a side"
            " with one that is taken. When all are taken, you win if the sum of your numbers is less than mine.\n"
            "r c takes the cell in row r, column c. You are told which I take.\n"
            f"grid =\n{grid}"
        )

    def play(self, text: str) -> Reply:
        rows, columns = self.size
        row, column = numbers(text, 2, low=1, high=max(self.size))
        cell = (row - 1) * columns + column - 1
        if row > rows or column > columns or cell not in self.board.allowed(self.taken):
            raise Forbidden("that cell cannot be taken")
        self._take(cell, 0)
        answer = self.board.best(self.taken)
        self._take(answer, 1)
        said = f"{answer // columns + 1} {answer % columns + 1}"
        if list(self.board.allowed(self.taken)):
            return Reply(said)
        said += " sums {} {}".format(*self.sums)
        return won(said) if self.sums[0] < self.sums[1] else lost(said)

    def _take(self, cell: int, player: int) -> None:
        self.taken |= 1 << cell
        self.sums[player] += self.board.values[cell]

    def random_move(self, rng: random.Random) -> str:
        cell = rng.choice(list(self.board.allowed(self.taken)))
        return f"{cell // self.size[1] + 1} {cell % self.size[1] + 1}"

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


class Board:
    """Perfect play on a grid. A position is the set of cells that are taken, as bits; cells count row by row from 0."""

    def __init__(self, grid: list[list[int]]) -> None:
        rows, columns = len(grid), len(grid[0])
        self.values = [value for row in grid for value in row]
        self.beside = [
            sum(
                1 << other
                for other in range(rows * columns)
                if abs(other // columns - cell // columns) + abs(other % columns - cell % columns) == 1
            )
            for cell in range(rows * columns)
        ]
        self._leads: dict[int, int] = {(1 << len(self.values)) - 1: 0}

    def allowed(self, taken: int) -> Iterator[int]:
        for cell, beside in enumerate(self.beside):
            if not taken >> cell & 1 and (not taken or taken & beside):
                yield cell

    def lead(self, taken: int) -> int:
        """By how much the player to move ends up below the other in what is still to be taken."""
        if taken not in self._leads:
            self._leads[taken] = max(self.lead_by(cell, taken) for cell in self.allowed(taken))
        return self._leads[taken]

    def lead_by(self, cell: int, taken: int) -> int:
        """The same if that cell is taken now."""
        return -self.values[cell] - self.lead(taken | 1 << cell)

    def best(self, taken: int) -> int:
        return max(self.allowed(taken), key=lambda cell: self.lead_by(cell, taken))


def _play(rules: str) -> Play:
    grid = [numbers_in(row) for row in grid_of(rules)]
    board, columns, taken = Board(grid), len(grid[0]), 0
    while True:
        cell = board.best(taken)
        row, column, *_ = numbers_in((yield f"{cell // columns + 1} {cell % columns + 1}"))
        taken |= 1 << cell | 1 << ((row - 1) * columns + column - 1)
