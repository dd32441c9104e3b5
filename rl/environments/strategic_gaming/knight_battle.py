"""KnightBattle: two knights; taking the other one wins, or reaching one's goal unattacked (Codeforces)."""

from __future__ import annotations

import random
from functools import cache
from typing import ClassVar, NamedTuple

from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.grids import Cell, cells, inside, moved
from posttrain.rl.environments.rounds import (
    Forbidden,
    Play,
    Rounds,
    as_player,
    lost,
    numbers,
    numbers_in,
    setting,
    won,
)

LEAPS = [(a, b) for a in (-2, -1, 1, 2) for b in (-2, -1, 1, 2) if abs(a) != abs(b)]
GOALS = 4  # pairs of goals a board is played with: every pair is solved once


class Position(NamedTuple):
    white: Cell
    black: Cell
    white_moves: bool


class KnightBattle(Rounds[tuple[int, int]]):
    """`sizes`: cells of a side, moves that it takes white to win. Black plays as well as can be."""

    name = "KnightBattle"
    category: ClassVar[Category] = "strategic_gaming"
    sizes: ClassVar[dict[Difficulty, tuple[int, int]]] = {"easy": (5, 2), "medium": (6, 3), "hard": (7, 4)}

    def set_up(self) -> None:
        n, moves = self.size
        starts: list[Position] = []
        while not starts:
            goals = random.Random(f"{n}/{self.chance.randrange(GOALS)}").sample(list(cells(n)), 2)
            self.battle = battle_of(n, goals[0], goals[1])
            starts = [each for each, plies in self.battle.plies.items() if plies == 2 * moves - 1]
        self.position = self.chance.choice(starts)

    def rules(self) -> str:
        battle, position = self.battle, self.position
        return (
            "KnightBattle. You have the white knight and move first, I have the black one, on a board of n rows and"
            " columns. You win by taking my knight, or by reaching your goal where my knight does not attack"
            " you. So do I.\n"
            "r c moves your knight to row r, column c. You are told where I move.\n"
            f"n = {battle.n}; white = {_said(position.white)}; black = {_said(position.black)}\n"
            f"goal of white = {_said(battle.white_goal)}; goal of black = {_said(battle.black_goal)}"
        )

    def play(self, text: str) -> Reply:
        row, column = numbers(text, 2, low=1, high=self.battle.n)
        if (row, column) not in leaps(self.position.white, self.battle.n):
            raise Forbidden("a knight does not move like that")
        after = Position((row, column), self.position.black, False)
        if self.battle.is_over(after):
            return won("You win.")
        self.position = self.battle.best(after)
        said = _said(self.position.black)
        return lost(f"{said}, I win.") if self.battle.is_over(self.position) else Reply(said)

    def random_move(self, rng: random.Random) -> str:
        return _said(rng.choice(leaps(self.position.white, self.battle.n)))

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def _said(cell: Cell) -> str:
    return "{} {}".format(*cell)


@cache
def leaps(cell: Cell, n: int) -> list[Cell]:
    return [there for leap in LEAPS if inside(there := moved(cell, leap), n)]


class Battle:
    """All positions of a board and its goals, solved backwards.

    Attributes:
        plies: of every position that white wins, the moves of both that it takes if white hurries and black delays.
    """

    def __init__(self, n: int, white_goal: Cell, black_goal: Cell) -> None:
        self.n, self.white_goal, self.black_goal = n, white_goal, black_goal
        self.plies: dict[Position, int] = {}
        self._solve()

    def is_over(self, position: Position) -> bool:
        """Whether the knight that has just moved has won."""
        mover, other = (position.black, position.white) if position.white_moves else (position.white, position.black)
        goal = self.black_goal if position.white_moves else self.white_goal
        return mover == other or (mover == goal and mover not in leaps(other, self.n))

    def following(self, position: Position) -> list[Position]:
        if self.is_over(position):
            return []
        if position.white_moves:
            return [Position(there, position.black, False) for there in leaps(position.white, self.n)]
        return [Position(position.white, there, True) for there in leaps(position.black, self.n)]

    def _solve(self) -> None:
        board = list(cells(self.n))
        todo: list[Position] = []
        before: dict[Position, list[Position]] = {}
        open_moves: dict[Position, int] = {}
        for position in (Position(w, b, first) for w in board for b in board for first in (True, False)):
            after = self.following(position)
            open_moves[position] = 1 if position.white_moves else len(after)
            for each in after:
                before.setdefault(each, []).append(position)
            if not position.white_moves and not after:
                self.plies[position] = 0
                todo.append(position)
        for position in todo:
            for earlier in before.get(position, ()):
                open_moves[earlier] -= 1
                if open_moves[earlier] == 0:
                    self.plies[earlier] = self.plies[position] + 1
                    todo.append(earlier)

    def best(self, position: Position) -> Position:
        """What the player to move makes of it: white the quickest win, black no loss, or the latest."""
        never = len(self.plies) + 1
        return (min if position.white_moves else max)(
            self.following(position), key=lambda after: (self.plies.get(after, never), self.is_over(after), after)
        )


@cache
def battle_of(n: int, white_goal: Cell, black_goal: Cell) -> Battle:
    return Battle(n, white_goal, black_goal)


def _play(rules: str) -> Play:
    told = setting(rules.replace("goal of white", "white_goal").replace("goal of black", "black_goal"))
    white, black, white_goal, black_goal = (
        (at[0], at[1]) for at in (numbers_in(told[name]) for name in ("white", "black", "white_goal", "black_goal"))
    )
    battle = battle_of(int(told["n"]), white_goal, black_goal)
    while True:
        after = battle.best(Position(white, black, True))
        white = after.white
        row, column = numbers_in((yield _said(white)))[:2]
        black = (row, column)
