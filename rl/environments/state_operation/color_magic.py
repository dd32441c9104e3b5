"""ColorMagic: all cells of a grid one colour, by three spells of which it is not known which number is which.

MTR-Bench's game; two of its three spells do the same there, so here they are three that differ.
"""

from __future__ import annotations

import random
from functools import cache
from itertools import permutations
from typing import ClassVar

from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.grids import grid_of
from posttrain.rl.environments.rounds import Forbidden, Play, Rounds, as_player, numbers, won

COLOURS = "RBY"
SPELLS: tuple[tuple[int, int], ...] = ((1, 2), (2, 0), (0, 1))
"""How far each turns the colour of the cell, and that of the cells beside it, along `COLOURS` and round."""

Colours = tuple[int, ...]
Spell = tuple[tuple[int, int], int]
"""A spell and the cell it is cast on, from 0."""


class ColorMagic(Rounds[tuple[int, int, int]]):
    """`sizes`: rows, columns, spells that the grid is away from one colour at most."""

    name = "ColorMagic"
    category: ClassVar[Category] = "state_operation"
    sizes: ClassVar[dict[Difficulty, tuple[int, int, int]]] = {
        "easy": (2, 3, 1),
        "medium": (3, 3, 2),
        "hard": (3, 3, 3),
    }

    def set_up(self) -> None:
        self.rows, self.columns, away = self.size
        self.hidden = self.chance.sample(SPELLS, len(SPELLS))
        self.colours: Colours = (0,)
        while len(set(self.colours)) == 1:
            self.colours = (self.chance.randrange(3),) * (self.rows * self.columns)
            for cell in self.chance.sample(range(len(self.colours)), away):
                spell = (self.chance.choice(SPELLS), cell)
                self._cast(spell)
                self._cast(spell)  # a third time would undo both

    def _cast(self, spell: Spell) -> None:
        self.colours = added(self.colours, changes(self.rows, self.columns)[spell])

    def _view(self) -> str:
        letters = "".join(COLOURS[colour] for colour in self.colours)
        return "\n".join(letters[row * self.columns : (row + 1) * self.columns] for row in range(self.rows))

    def rules(self) -> str:
        return (
            "ColorMagic. Make all cells of a grid one colour. Colours turn R to B to Y to R. The numbers 1 to 3 stand"
            " for these spells, in an unknown order: turn the cell by one and the cells beside it by two; turn"
            " the cell by two; turn the cells beside it by one.\n"
            "n r c casts spell n on the cell in row r, column c. You are told the rows of the grid then.\n"
            f"grid =\n{self._view()}"
        )

    def play(self, text: str) -> Reply:
        number, row, column = numbers(text, 3, low=1, high=3)
        if row > self.rows or column > self.columns:
            raise Forbidden("there is no such cell")
        self._cast((self.hidden[number - 1], (row - 1) * self.columns + column - 1))
        if len(set(self.colours)) == 1:
            return won("All cells have one colour.")
        return Reply(self._view().replace("\n", " "))

    def random_move(self, rng: random.Random) -> str:
        return f"{rng.randint(1, 3)} {rng.randint(1, self.rows)} {rng.randint(1, self.columns)}"

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def added(colours: Colours, turns: Colours) -> Colours:
    return tuple([(colour + turn) % 3 for colour, turn in zip(colours, turns, strict=True)])


@cache
def changes(rows: int, columns: int) -> dict[Spell, Colours]:
    """How far each spell turns each cell."""
    places = [(row, column) for row in range(rows) for column in range(columns)]

    def turn(spell: tuple[int, int], at: int, cell: int) -> int:
        apart = abs(places[at][0] - places[cell][0]) + abs(places[at][1] - places[cell][1])
        return spell[0] if apart == 0 else spell[1] if apart == 1 else 0

    cells = range(len(places))
    return {(spell, at): tuple(turn(spell, at, cell) for cell in cells) for spell in SPELLS for at in cells}


@cache
def _within(rows: int, columns: int, spells: int) -> dict[Colours, tuple[Spell, ...]]:
    """Everything that so many spells at most can do, and by which. Their order does not matter: turns add up."""
    if not spells:
        return {(0,) * (rows * columns): ()}
    fewer = _within(rows, columns, spells - 1)
    found = dict(fewer)
    for turns, cast in fewer.items():
        for spell, change in changes(rows, columns).items() if len(cast) == spells - 1 else ():
            found.setdefault(added(turns, change), (*cast, spell))
    return found


def solution(rows: int, columns: int, colours: Colours) -> tuple[Spell, ...]:
    """A shortest row of spells to one colour, of at most six: three that meet three."""
    for first, second in ((1, 0), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3)):
        ends = _within(rows, columns, second)
        for turns, cast in _within(rows, columns, first).items():
            left = added(colours, turns)
            for colour in range(3):
                rest = ends.get(tuple([(colour - each) % 3 for each in left]))
                if rest is not None:
                    return (*cast, *rest)
    return ()


def _play(rules: str) -> Play:
    """The first spell of a solution, with the numbers as they may be; what it does tells which numbers cannot be."""
    grid = grid_of(rules)
    rows, columns = len(grid), len(grid[0])
    colours = _read("".join(grid))
    orders = list(permutations(SPELLS))
    left: tuple[Spell, ...] = ()
    while True:
        (spell, at), *rest = left or solution(rows, columns, colours) or [((0, 1), 0)]
        number = orders[0].index(spell)
        said = _read((yield f"{number + 1} {at // columns + 1} {at % columns + 1}"))
        does = changes(rows, columns)
        as_planned = said == added(colours, does[spell, at])
        orders = [order for order in orders if added(colours, does[order[number], at]) == said]
        colours, left = said, tuple(rest) if as_planned else ()


def _read(grid: str) -> Colours:
    return tuple(COLOURS.index(letter) for letter in grid if letter in COLOURS)
