"""BeeChase: three bees catch Nastya on a graph of short cycles, where both are seen (after a Codeforces game)."""

from __future__ import annotations

import random
from itertools import product
from typing import ClassVar

from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.graphs import Graph, distances, edges_in, graph_of, said
from posttrain.rl.environments.rounds import Forbidden, Play, Rounds, as_player, lost, numbers, numbers_in, setting, won

BEES = 3


class BeeChase(Rounds[tuple[int, int]]):
    """`sizes`: vertices, of three edges at most, and moves that the reference needs at least; there are two more."""

    name = "BeeChase"
    category: ClassVar[Category] = "strategic_gaming"
    costly = True
    sizes: ClassVar[dict[Difficulty, tuple[int, int]]] = {"easy": (10, 3), "medium": (16, 4), "hard": (24, 5)}

    def set_up(self) -> None:
        n, least = self.size
        while True:
            self.edges = self._draw_edges(n)
            self.near = graph_of(self.edges)
            self.away = {vertex: distances(self.near, vertex) for vertex in self.near}
            self.bees: list[int] = []
            self.nastya, self.moves_left = 0, least + 2
            if (self.turns_of_reference() or 0) >= least:
                break

    def _draw_edges(self, n: int) -> list[tuple[int, int]]:
        """A ring, and chords that close cycles of at most five edges."""
        edges = [(vertex, vertex % n + 1) for vertex in range(1, n + 1)]
        free = set(range(1, n + 1))
        for vertex in self.chance.sample(range(1, n + 1), n):
            other = (vertex + self.chance.choice((2, 3, 4)) - 1) % n + 1
            if {vertex, other} <= free:
                free -= {vertex, other}
                edges.append((vertex, other))
        return edges

    def rules(self) -> str:
        return (
            "BeeChase. You have three bees, and catch Nastya on a graph. At first you place the bees, then she appears."
            " After that each bee goes along an edge or stays, then she goes along an edge. A bee that meets her"
            " catches her.\n"
            "a b c: where the three bees go, in their order. You are told where she is.\n"
            f"n = {self.size[0]}; moves = {self.moves_left}\nedges = {said(self.edges)}"
        )

    def play(self, text: str) -> Reply:
        bees = numbers(text, BEES, low=1, high=self.size[0])
        for bee, there in zip(self.bees, bees, strict=False):
            if there != bee and there not in self.near[bee]:
                raise Forbidden(f"there is no edge from {bee} to {there}")
        self.bees = bees
        if self.nastya in bees:
            return won("Caught.")
        where = self.near[self.nastya] if self.nastya else [vertex for vertex in self.near if vertex not in bees]
        self.nastya = max(where, key=lambda vertex: (self._safety(vertex), self.chance.random()))
        if self.nastya in bees:
            return won(f"Caught at {self.nastya}.")
        self.moves_left -= 1
        return Reply(str(self.nastya)) if self.moves_left else lost("No move is left.")

    def _safety(self, vertex: int) -> tuple[int, int, int]:
        """How near the nearest bee is, how many ways out are not next to a bee, how near the bees are in all."""
        away = [self.away[vertex][bee] for bee in self.bees]
        out = sum(min(self.away[there][bee] for bee in self.bees) > 1 for there in self.near[vertex])
        return min(away), out, sum(away)

    def random_move(self, rng: random.Random) -> str:
        if not self.bees:
            return " ".join(str(rng.randint(1, self.size[0])) for _ in range(BEES))
        return " ".join(str(rng.choice([bee, *self.near[bee]])) for bee in self.bees)

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def _play(rules: str) -> Play:
    """The bees start apart, and each time leave her, after her best answer, as few ways out and as near as they can."""
    told = setting(rules)
    near = graph_of(edges_in(told["edges"]))
    away = {vertex: distances(near, vertex) for vertex in near}
    n = int(told["n"])
    bees = tuple(1 + k * n // BEES for k in range(BEES))
    nastya = numbers_in((yield " ".join(map(str, bees))))[0]
    while True:
        places = product(*([bee, *near[bee]] for bee in bees))
        bees = min(places, key=lambda there: (nastya not in there, threat(near, away, there, nastya), there))
        nastya = numbers_in((yield " ".join(map(str, bees))))[0]


def threat(near: Graph, away: dict[int, dict[int, int]], bees: tuple[int, ...], nastya: int) -> tuple[int, int, int]:
    """What her best move leaves her: whether she is out of reach, how far the bees are in all, and her ways out."""

    def left(vertex: int) -> tuple[int, int, int]:
        far = [away[vertex][bee] for bee in bees]
        ways = sum(min(away[there][bee] for bee in bees) > 1 for there in near[vertex])
        return int(min(far) > 1), sum(far), ways

    return max(left(vertex) for vertex in near[nastya])
