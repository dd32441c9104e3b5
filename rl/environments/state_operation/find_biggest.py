"""FindBiggest: the greatest treasure of a grid, by directions that may be wrong, though never twice in a row."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import combinations
from typing import ClassVar, NamedTuple

from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.grids import Cell, around, cells
from posttrain.rl.environments.rounds import Forbidden, Play, Rounds, as_player, lost, numbers, numbers_in, setting, won

DIRECTIONS = ("N", "NE", "E", "SE", "S", "SW", "W", "NW")
WRONG = 0.5


class FindBiggest(Rounds[tuple[int, int]]):
    """`sizes`: cells of a side, treasures. Drawn until the reference player finds the greatest in time."""

    name = "FindBiggest"
    category: ClassVar[Category] = "state_operation"
    costly = True
    sizes: ClassVar[dict[Difficulty, tuple[int, int]]] = {"easy": (3, 2), "medium": (4, 2), "hard": (5, 2)}

    def set_up(self) -> None:
        n, count = self.size
        while True:
            places = self.chance.sample([cell for cell in cells(n) if cell != (1, 1)], count)
            self.hidden = dict(zip(places, self.chance.sample(range(1, 100), count), strict=True))
            self.here: Cell = (1, 1)
            self.found: set[Cell] = set()
            self.misled = False
            if self.turns_of_reference() is not None:
                break

    def rules(self) -> str:
        n, count = self.size
        return (
            "FindBiggest. Find the treasure of greatest value in a grid of n rows and n columns. You are at row 1,"
            " column 1; row 1 is in the north.\n"
            "r c moves to a cell that touches yours, at a side or a corner. You are told the treasure there, or that it"
            " is empty and the direction of the nearest treasure you have not found (the first in reading order, if"
            " several are). The direction is wrong half of the time, but never twice in a row.\n"
            "collect ends the game: the greatest treasure is where you are.\n"
            f"n = {n}; treasures = {count}"
        )

    def play(self, text: str) -> Reply:
        if text.strip().lower() == "collect":
            return won("Right.") if self.hidden.get(self.here) == max(self.hidden.values()) else lost("Wrong.")
        row, column = numbers(text, 2, low=1, high=self.size[0])
        if (row, column) not in around(self.here, self.size[0]):
            raise Forbidden("that cell does not touch yours")
        self.here = (row, column)
        if self.here in self.hidden:
            self.found.add(self.here)
            return Reply(f"treasure {self.hidden[self.here]}")
        if len(self.found) == len(self.hidden):
            return Reply("empty")
        right = direction(self.here, set(self.hidden) - self.found)
        self.misled = not self.misled and self.chance.random() < WRONG
        others = [each for each in DIRECTIONS if each != right]
        return Reply(f"empty {self.chance.choice(others) if self.misled else right}")

    def random_move(self, rng: random.Random) -> str:
        if rng.random() < 0.1:
            return "collect"
        return "{} {}".format(*rng.choice(around(self.here, self.size[0])))

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def apart(one: Cell, other: Cell) -> int:
    """Moves from a cell to another."""
    return max(abs(one[0] - other[0]), abs(one[1] - other[1]))


def direction(here: Cell, treasures: Iterable[Cell]) -> str:
    row, column = min(treasures, key=lambda cell: (apart(here, cell), cell))
    down, right = row - here[0], column - here[1]
    return ("S" if down > 0 else "N" if down < 0 else "") + ("E" if right > 0 else "W" if right < 0 else "")


class Guess(NamedTuple):
    """Where the treasures not yet found may be, how likely, and whether the last direction was then wrong."""

    treasures: frozenset[Cell]
    weight: float
    misled: bool


def _play(rules: str) -> Play:
    """To the likeliest cell, until all treasures are found; then back to the greatest."""
    told = setting(rules)
    n, count = int(told["n"]), int(told["treasures"])
    here: Cell = (1, 1)
    others = [cell for cell in cells(n) if cell != here]
    guesses = [Guess(frozenset(places), 1.0, False) for places in combinations(others, count)]
    values: dict[Cell, int] = {}
    while len(values) < count:
        here = _towards(here, _likeliest(here, guesses), n)
        said = yield "{} {}".format(*here)
        if said.startswith("treasure"):
            if here not in values:
                guesses = [
                    guess._replace(treasures=guess.treasures - {here}) for guess in guesses if here in guess.treasures
                ]
            values[here] = numbers_in(said)[0]
        else:
            guesses = [after for guess in guesses if (after := _told(guess, here, said.split()[1])) is not None]
    best = max(values, key=values.__getitem__)
    while here != best:
        here = _towards(here, best, n)
        yield "{} {}".format(*here)
    yield "collect"


def _told(guess: Guess, here: Cell, said: str) -> Guess | None:
    """The same guess after an empty cell and a direction; None where it cannot be."""
    if here in guess.treasures:
        return None
    if said == direction(here, guess.treasures):
        return Guess(guess.treasures, guess.weight * (1.0 if guess.misled else 1 - WRONG), False)
    return None if guess.misled else Guess(guess.treasures, guess.weight * WRONG / (len(DIRECTIONS) - 1), True)


def _likeliest(here: Cell, guesses: list[Guess]) -> Cell:
    weights: dict[Cell, float] = {}
    for guess in guesses:
        for cell in guess.treasures:
            weights[cell] = weights.get(cell, 0.0) + guess.weight
    return max(weights, key=lambda cell: (weights[cell] / apart(here, cell), cell))


def _towards(here: Cell, there: Cell, n: int) -> Cell:
    return min(
        around(here, n), key=lambda cell: (apart(cell, there), abs(cell[0] - there[0]) + abs(cell[1] - there[1]))
    )
