"""Cells of a square board, (row, column) from 1, and shortest ways over them or over anything else."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

Cell = tuple[int, int]
State = TypeVar("State", bound=Hashable)
Move = TypeVar("Move")

STEPS: dict[str, Cell] = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}
COMPASS: dict[str, Cell] = {"N": (-1, 0), "E": (0, 1), "S": (1, 0), "W": (0, -1)}


def moved(cell: Cell, step: Cell) -> Cell:
    return cell[0] + step[0], cell[1] + step[1]


def inside(cell: Cell, n: int) -> bool:
    return 1 <= cell[0] <= n and 1 <= cell[1] <= n


def cells(n: int) -> Iterator[Cell]:
    """Every cell, row by row."""
    return ((row, column) for row in range(1, n + 1) for column in range(1, n + 1))


def around(cell: Cell, n: int) -> list[Cell]:
    """The cells that touch a cell, corners included."""
    near = (moved(cell, (down, right)) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right)
    return [each for each in near if inside(each, n)]


def beside(cell: Cell, n: int) -> list[Cell]:
    """The cells that share a side with a cell."""
    return [each for step in STEPS.values() if inside(each := moved(cell, step), n)]


def shortest(
    start: State, is_goal: Callable[[State], bool], onward: Callable[[State], Iterable[tuple[Move, State]]]
) -> list[Move] | None:
    """The moves of a shortest way to a goal; empty where the start is one, None where none can be reached."""
    ways: dict[State, list[Move]] = {start: []}
    todo = [start]
    for state in todo:
        if is_goal(state):
            return ways[state]
        for move, after in onward(state):
            if after not in ways:
                ways[after] = [*ways[state], move]
                todo.append(after)
    return None


def grid_of(rules: str) -> list[str]:
    """The rows of a board in a game's rules: the lines after `grid =`."""
    return rules.partition("grid =\n")[2].partition("\n\n")[0].split("\n")
