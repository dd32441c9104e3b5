"""AssiutChess: a queen against an unseen king who tells the direction of his moves (after a Codeforces game)."""

from __future__ import annotations

import random
from functools import cache
from typing import ClassVar

from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.grids import Cell, cells, inside, moved
from posttrain.rl.environments.rounds import Forbidden, Play, Rounds, as_player, lost, numbers, setting, won

DIRECTIONS: dict[str, Cell] = {
    "up": (-1, 0),
    "up-right": (-1, 1),
    "right": (0, 1),
    "down-right": (1, 1),
    "down": (1, 0),
    "down-left": (1, -1),
    "left": (0, -1),
    "up-left": (-1, -1),
}


class AssiutChess(Rounds[tuple[int, int]]):
    """`sizes`: cells of a side, moves of the queen. The king goes where her best answer leaves him most."""

    name = "AssiutChess"
    category: ClassVar[Category] = "strategic_gaming"
    starts: ClassVar[dict[Difficulty, int]] = {"easy": 1, "medium": 1, "hard": 1}
    sizes: ClassVar[dict[Difficulty, tuple[int, int]]] = {"easy": (4, 3), "medium": (5, 7), "hard": (6, 14)}

    def set_up(self) -> None:
        self.n, self.moves_left = self.size
        self.queen: Cell | None = None
        self.hidden: Cell = (0, 0)

    def rules(self) -> str:
        return (
            "AssiutChess. You have a queen, I have a king whom you do not see, on a board of n rows and columns."
            " You place the queen, then the king is put somewhere she does not attack. From then on the king"
            " moves first,"
            " never to where she attacks, and you are told in which direction (down is to row n); then you have to move"
            " the queen. You win when the king cannot move.\n"
            "r c puts the queen on row r, column c.\n"
            f"n = {self.n}; moves = {self.moves_left}"
        )

    def play(self, text: str) -> Reply:
        row, column = numbers(text, 2, low=1, high=self.n)
        queen = (row, column)
        if self.queen is not None and (queen == self.queen or not attacks(self.queen, queen)):
            raise Forbidden("the queen does not move like that")
        if self.queen is None:
            free = [cell for cell in cells(self.n) if not attacks(queen, cell)]
            self.hidden = max(free, key=lambda cell: (len(king_moves(cell, queen, self.n)), self.chance.random()))
        self.queen = queen
        ways = king_moves(self.hidden, queen, self.n)
        if not ways:
            return won("The king cannot move.")
        self.moves_left -= 1
        if not self.moves_left:
            return lost("No move is left.")
        name = max(ways, key=lambda way: (self._freedom(ways[way]), self.chance.random()))
        self.hidden = ways[name]
        return Reply(name)

    def _freedom(self, king: Cell) -> int:
        """The moves that the king has left there after the queen's best answer."""
        assert self.queen is not None
        return min(len(king_moves(king, there, self.n)) for there in queen_moves(self.queen, self.n) if there != king)

    def random_move(self, rng: random.Random) -> str:
        there = list(cells(self.n)) if self.queen is None else queen_moves(self.queen, self.n)
        return "{} {}".format(*rng.choice(there))

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def attacks(queen: Cell, cell: Cell) -> bool:
    """Whether a cell is on a line with the queen, her own included."""
    down, right = cell[0] - queen[0], cell[1] - queen[1]
    return down == 0 or right == 0 or abs(down) == abs(right)


@cache
def queen_moves(queen: Cell, n: int) -> list[Cell]:
    return [cell for cell in cells(n) if cell != queen and attacks(queen, cell)]


@cache
def king_moves(king: Cell, queen: Cell, n: int) -> dict[str, Cell]:
    ways = {name: moved(king, step) for name, step in DIRECTIONS.items()}
    return {name: there for name, there in ways.items() if inside(there, n) and not attacks(queen, there)}


Kings = frozenset[Cell]
"""Where the king may be."""


def told(kings: Kings, queen: Cell, n: int) -> dict[str, Kings]:
    """For every direction that he may tell next, where he may be then."""
    after: dict[str, set[Cell]] = {}
    for king in kings:
        for name, there in king_moves(king, queen, n).items():
            after.setdefault(name, set()).add(there)
    return {name: frozenset(places) for name, places in after.items()}


def _play(rules: str) -> Play:
    """The queen goes where the worst answer leaves fewest places for the king, two answers ahead."""
    n = int(setting(rules)["n"])
    kings: Kings = frozenset(cells(n))
    choice = list(cells(n))
    while True:
        queen = min(choice, key=lambda there: _left(kings, there, n, ahead=1))
        said = yield "{} {}".format(*queen)
        kings = told(frozenset(king for king in kings if king != queen), queen, n)[said]
        choice = queen_moves(queen, n)


def _left(kings: Kings, queen: Cell, n: int, ahead: int) -> tuple[int, int, int]:
    """How many moves the queen still needs, as far as is looked, and the places of the king: at worst, and in all."""
    answers = told(kings - {queen}, queen, n).values()
    if not answers:
        return 0, 0, 0
    if not ahead:
        return 1, max(map(len, answers)), sum(map(len, answers))
    worst = (0, 0, 0)
    for after in answers:
        needed, most, total = min(_left(after, there, n, ahead - 1) for there in queen_moves(queen, n))
        worst = max(worst, (needed + 1, most, total))
    return worst
