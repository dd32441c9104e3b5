"""MagneticField: to the goal of a known grid whose fields push, each number in a direction that is not known."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from typing import ClassVar

from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.grids import STEPS, Cell, grid_of, inside, moved, shortest
from posttrain.rl.environments.rounds import Forbidden, Play, Rounds, as_player, lost, numbers_in, won

Pushes = tuple[str, ...]
"""The direction of the fields 1, 2, 3 and 4."""
PUSHES: list[Pushes] = list(permutations(STEPS))
DEADLY: Cell = (0, 0)


class MagneticField(Rounds[tuple[int, int, int]]):
    """`sizes`: cells of a side, fields, danger zones. Drawn until the reference player needs a field and gets there."""

    name = "MagneticField"
    category: ClassVar[Category] = "state_operation"
    costly = True
    sizes: ClassVar[dict[Difficulty, tuple[int, int, int]]] = {
        "easy": (3, 3, 2),
        "medium": (4, 7, 3),
        "hard": (5, 11, 5),
    }

    def set_up(self) -> None:
        n, fields, dangers = self.size
        self.here: Cell = (1, 1)
        while True:
            there = [self.chance.choice("1234") for _ in range(fields)] + ["X"] * dangers
            there += ["."] * (n * n - 2 - len(there))
            row = "".join([".", *self.chance.sample(there, len(there)), "G"])
            self.grid = [row[n * k : n * k + n] for k in range(n)]
            self.hidden = self.chance.choice(PUSHES)
            if self._needs_fields() and (self.turns_of_reference() or 0) >= n:
                break

    def _needs_fields(self) -> bool:
        """Whether the goal can be reached by who knows the directions, but not without any field."""

        def plain(cell: Cell) -> Iterator[tuple[str, Cell]]:
            return ((name, there) for name, there in _steps(self.grid, cell) if _at(self.grid, there) in ".G")

        def known(cell: Cell) -> Iterator[tuple[str, Cell]]:
            ends = ((name, pushed(self.grid, self.hidden, there)) for name, there in _steps(self.grid, cell))
            return ((name, end) for name, end in ends if end != DEADLY)

        ways = (shortest((1, 1), lambda cell: _at(self.grid, cell) == "G", onward) for onward in (plain, known))
        return [way is None for way in ways] == [True, False]

    def rules(self) -> str:
        grid = "\n".join(self.grid)
        return (
            "MagneticField. Get from row 1, column 1 to G. X is deadly. On a field, 1 to 4, you are pushed one cell"
            " on, and on again if that is a field too; at the edge you stay. Each number pushes in one direction, up,"
            " down, left or right, no two in the same.\n"
            "U, D, L or R takes a step, inside the grid. You are told your row and column after all pushes.\n"
            f"grid =\n{grid}"
        )

    def play(self, text: str) -> Reply:
        name = text.strip().upper()
        if name not in STEPS:
            raise Forbidden("U, D, L or R is expected")
        there = moved(self.here, STEPS[name])
        if not inside(there, len(self.grid)):
            raise Forbidden("that is outside the grid")
        self.here = pushed(self.grid, self.hidden, there)
        if self.here == DEADLY:
            return lost("You came to a deadly cell.")
        return won("You are there.") if _at(self.grid, self.here) == "G" else Reply("{} {}".format(*self.here))

    def random_move(self, rng: random.Random) -> str:
        return rng.choice([name for name, _ in _steps(self.grid, self.here)])

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def _at(grid: list[str], cell: Cell) -> str:
    return grid[cell[0] - 1][cell[1] - 1]


def _steps(grid: list[str], cell: Cell) -> Iterator[tuple[str, Cell]]:
    around = ((name, moved(cell, step)) for name, step in STEPS.items())
    return ((name, there) for name, there in around if inside(there, len(grid)))


def pushed(grid: list[str], pushes: Pushes, cell: Cell) -> Cell:
    """Where one ends who steps on a cell. Fields that push in a circle stop after as many pushes as there are cells."""
    for _ in range(len(grid) ** 2):
        found = _at(grid, cell)
        if found == "X":
            return DEADLY
        if found in ".G":
            return cell
        there = moved(cell, STEPS[pushes[int(found) - 1]])
        if not inside(there, len(grid)):
            return cell
        cell = there
    return cell


def _play(rules: str) -> Play:
    """The shortest way of moves whose end is certain, to the goal or else to a move that is safe and tells something.

    Where there is none, the goal cannot be reached for certain; then the move that is deadly in fewest cases.
    """
    grid = grid_of(rules)
    here, left = (1, 1), PUSHES

    def ends(there: Cell) -> set[Cell]:
        return {there} if _at(grid, there) in ".G" else {pushed(grid, pushes, there) for pushes in left}

    while True:
        way = _way(grid, here, ends) or [_least_deadly(grid, here, left)]
        there = dict(_steps(grid, here))[way[0]]
        row, column = numbers_in((yield way[0]))
        here = (row, column)
        left = [pushes for pushes in left if pushed(grid, pushes, there) == here]


def _way(grid: list[str], here: Cell, ends: Callable[[Cell], set[Cell]]) -> list[str] | None:
    telling: Cell = (-1, -1)

    def onward(cell: Cell) -> Iterator[tuple[str, Cell]]:
        for name, there in _steps(grid, cell) if cell != telling else ():
            ended = ends(there)
            if len(ended) == 1 and DEADLY not in ended:
                yield name, next(iter(ended))

    def onward_or_telling(cell: Cell) -> Iterator[tuple[str, Cell]]:
        yield from onward(cell)
        for name, there in _steps(grid, cell) if cell != telling else ():
            if len(ended := ends(there)) > 1 and DEADLY not in ended:
                yield name, telling

    to_goal = shortest(here, lambda cell: cell != telling and _at(grid, cell) == "G", onward)
    return to_goal or shortest(here, lambda cell: cell == telling, onward_or_telling)


def _least_deadly(grid: list[str], here: Cell, left: Sequence[Pushes]) -> str:
    def deadly(step: tuple[str, Cell]) -> int:
        return sum(pushed(grid, pushes, step[1]) == DEADLY for pushes in left)

    return min(_steps(grid, here), key=deadly)[0]
