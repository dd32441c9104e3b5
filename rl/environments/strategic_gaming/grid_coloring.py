"""GridColoring: a rectangle with corners of four colours, while the other player colours (Codeforces)."""

from __future__ import annotations

import random
from itertools import combinations
from typing import ClassVar

from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.grids import Cell, grid_of
from posttrain.rl.environments.rounds import Forbidden, Play, Rounds, as_player, lost, numbers, numbers_in, won


class GridColoring(Rounds[int]):
    """`sizes`: cells of a side. At first 2n cells are coloured, all differently, in one cycle."""

    name = "GridColoring"
    category: ClassVar[Category] = "strategic_gaming"
    max_turns = 10
    sizes: ClassVar[dict[Difficulty, int]] = {"easy": 3, "medium": 5, "hard": 9}

    def set_up(self) -> None:
        n = self.size
        rows, columns = self.chance.sample(range(1, n + 1), n), self.chance.sample(range(1, n + 1), n)
        cycle = [(rows[(k + by) % n], columns[k]) for k in range(n) for by in (0, 1)]
        self.colours = dict(zip(cycle, self.chance.sample(range(1, 2 * n + 1), 2 * n), strict=True))

    def rules(self) -> str:
        n = self.size
        grid = "\n".join(
            " ".join(str(self.colours.get((row, column), ".")) for column in range(1, n + 1)) for row in range(1, n + 1)
        )
        return (
            "GridColoring. Some cells of a grid have colours, which are numbers. Find four cells of four"
            " different colours"
            " at the corners of a rectangle, with sides along the grid.\n"
            "? r c has me colour the cell in row r, column c, which has none. You are told the colour that I choose.\n"
            "! r c s d ends the game: the cells r c and s d are opposite corners of such a rectangle.\n"
            f"colours are 1 to {2 * n}\ngrid =\n{grid}"
        )

    def play(self, text: str) -> Reply:
        mark, rest = text.strip()[:1], text.strip()[1:]
        if mark == "!":
            top, left, bottom, right = numbers(rest, 4, low=1, high=self.size)
            if top == bottom or left == right:
                raise Forbidden("opposite corners share no row and no column")
            return won("Right.") if is_rainbow(self.colours, (top, left), (bottom, right)) else lost("Wrong.")
        if mark != "?":
            raise Forbidden("a move begins with ? or !")
        row, column = numbers(rest, 2, low=1, high=self.size)
        if (row, column) in self.colours:
            raise Forbidden("that cell has a colour")
        self.colours[row, column] = self._worst_colour((row, column))
        return Reply(str(self.colours[row, column]))

    def _worst_colour(self, cell: Cell) -> int:
        """The colour that completes fewest rectangles; drawn among equals."""

        def completed(colour: int) -> int:
            colours = {**self.colours, cell: colour}
            return sum(is_rainbow(colours, cell, other) for other in self.colours)

        return min(range(1, 2 * self.size + 1), key=lambda colour: (completed(colour), self.chance.random()))

    def random_move(self, rng: random.Random) -> str:
        cells = [(row, column) for row in range(1, self.size + 1) for column in range(1, self.size + 1)]
        free = [cell for cell in cells if cell not in self.colours]
        if free and rng.random() < 0.7:
            return "? {} {}".format(*rng.choice(free))
        (top, bottom), (left, right) = (rng.sample(range(1, self.size + 1), 2) for _ in range(2))
        return f"! {top} {left} {bottom} {right}"

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def is_rainbow(colours: dict[Cell, int], one: Cell, other: Cell) -> bool:
    """Whether two cells are opposite corners of a rectangle whose corners have four different colours."""
    corners = [one, other, (one[0], other[1]), (other[0], one[1])]
    found = {colours.get(corner) for corner in corners}
    return one[0] != other[0] and one[1] != other[1] and len(found) == 4 and None not in found


def _play(rules: str) -> Play:
    """Rows and columns are joined by coloured cells; a cycle of these in different colours is halved by a further cell.

    Whatever its colour, it is at most that of a cell in one of the halves: the other is in different colours again. A
    cycle of four cells is a rectangle.
    """
    colours = {
        (row, column): int(colour)
        for row, line in enumerate(grid_of(rules), 1)
        for column, colour in enumerate(line.split(), 1)
        if colour != "."
    }
    cycle = _in_order(list(colours))
    while len(cycle) > 4:
        half = len(cycle) // 2 - 2 + len(cycle) // 2 % 2
        chord = (cycle[0][0], cycle[half][1])
        colours[chord] = numbers_in((yield "? {} {}".format(*chord)))[0]
        halves = ([*cycle[: half + 1], chord], [chord, *cycle[half + 1 :]])
        cycle = min((part for part in halves if len({colours[cell] for cell in part}) == len(part)), key=len)
    (one, other) = next(pair for pair in combinations(cycle, 2) if is_rainbow(colours, *pair))
    yield "! {} {} {} {}".format(*one, *other)


def _in_order(cells: list[Cell]) -> list[Cell]:
    """The cells of a cycle one after the other: they share a column, then a row, then a column again."""
    cycle, left = [cells[0]], set(cells[1:])
    while left:
        along = len(cycle) % 2
        following = next(cell for cell in sorted(left) if cell[along] == cycle[-1][along])
        left.remove(following)
        cycle.append(following)
    return cycle
