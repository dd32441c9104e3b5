"""MahjongDetective: how many tiles of each value there are, by triplets and straights (Codeforces)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product
from math import comb
from typing import ClassVar

from posttrain.rl.environments.candidates import most_telling
from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.rounds import (
    Play,
    Rounds,
    as_player,
    lost,
    numbers,
    question_or_answer,
    setting,
    won,
)

Tiles = tuple[int, ...]


class MahjongDetective(Rounds[tuple[int, int]]):
    """`sizes`: values, and tiles of a value at most."""

    name = "MahjongDetective"
    category: ClassVar[Category] = "dynamic_adaptation"
    starts: ClassVar[dict[Difficulty, int]] = {"easy": 27}
    sizes: ClassVar[dict[Difficulty, tuple[int, int]]] = {"easy": (3, 2), "medium": (5, 2), "hard": (7, 2)}

    def set_up(self) -> None:
        values, most = self.size
        self.hidden = tuple(self.chance.randint(0, most) for _ in range(values))
        self.first = _told(self.hidden)

    def rules(self) -> str:
        values, most = self.size
        return (
            "MahjongDetective. There are hidden tiles. Three of one value are a triplet, three of values in a row a"
            " straight; tiles of one value count as different. Find how many of each value there are.\n"
            "? v adds a tile of value v and tells the triplets and the straights there are then.\n"
            "! a b c ... ends the game: so many of each value, your tiles included.\n"
            f"values are 1 to n, n = {values}; at first each has 0 to m tiles, m = {most}\nat first = {self.first}"
        )

    def play(self, text: str) -> Reply:
        asks, rest = question_or_answer(text)
        if asks:
            (value,) = numbers(rest, 1, low=1, high=len(self.hidden))
            self.hidden = _added(self.hidden, value)
            return Reply(_told(self.hidden))
        answer = numbers(rest, len(self.hidden), low=0, high=99)
        return won("Right.") if tuple(answer) == self.hidden else lost("Wrong.")

    def random_move(self, rng: random.Random) -> str:
        values, most = self.size
        if rng.random() < 0.3:
            return "! " + " ".join(str(rng.randint(0, most)) for _ in range(values))
        return f"? {rng.randint(1, values)}"

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def _told(tiles: Sequence[int]) -> str:
    triplets = sum(comb(count, 3) for count in tiles)
    straights = sum(a * b * c for a, b, c in zip(tiles, tiles[1:], tiles[2:], strict=False))
    return f"{triplets} {straights}"


def _added(tiles: Tiles, value: int) -> Tiles:
    return (*tiles[: value - 1], tiles[value - 1] + 1, *tiles[value:])


def _play(rules: str) -> Play:
    told = setting(rules)
    n, most = int(told["n"]), int(told["m"])
    left = [tiles for tiles in product(range(most + 1), repeat=n) if _told(tiles) == told["first"]]
    while len(left) > 1:
        value = most_telling(left, range(1, n + 1), lambda tiles, value: _told(_added(tiles, value)))
        said = yield f"? {value}"
        left = [after for tiles in left if _told(after := _added(tiles, value)) == said]
    yield "! " + " ".join(map(str, left[0]))
