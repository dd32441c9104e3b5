"""CactusSearch: a hidden vertex of a known graph; a wrong guess is told a nearer neighbour (after a NERC problem).

In a cactus every edge is on at most one cycle. A guess at the middle of what is left halves it, in any graph.
"""

from __future__ import annotations

import random
from itertools import pairwise
from typing import ClassVar

from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.graphs import distances, edges_in, graph_of, said
from posttrain.rl.environments.rounds import Play, Rounds, as_player, lost, numbers, numbers_in, setting, won


class CactusSearch(Rounds[int]):
    """`sizes`: how many vertices. There are as many guesses as halving needs."""

    name = "CactusSearch"
    category: ClassVar[Category] = "state_operation"
    sizes: ClassVar[dict[Difficulty, int]] = {"easy": 12, "medium": 25, "hard": 50}

    def set_up(self) -> None:
        self.edges = self._draw_cactus()
        self.near = graph_of(self.edges)
        self.hidden = self.chance.randint(1, self.size)
        self.away = distances(self.near, self.hidden)
        self.guesses_left = self.size.bit_length()

    def _draw_cactus(self) -> list[tuple[int, int]]:
        """From the first vertex on, a further edge or a further cycle hangs on a vertex that is there."""
        edges, count = [], 1
        while count < self.size:
            at = self.chance.randint(1, count)
            further = min(self.chance.choice((1, 2, 3, 4)), self.size - count)
            ring = [at, *range(count + 1, count + further + 1)]
            edges += list(pairwise(ring))
            if further > 1:
                edges.append((at, ring[-1]))
            count += further
        return edges

    def rules(self) -> str:
        return (
            "CactusSearch. Find a hidden vertex of this graph. After a wrong guess you are told a neighbour of your"
            " guess that is nearer to the hidden vertex.\n"
            "v guesses vertex v.\n"
            f"n = {self.size}; guesses = {self.guesses_left}\nedges = {said(self.edges)}"
        )

    def play(self, text: str) -> Reply:
        (guess,) = numbers(text, 1, low=1, high=self.size)
        if guess == self.hidden:
            return won("Found.")
        self.guesses_left -= 1
        if not self.guesses_left:
            return lost("No guess is left.")
        nearer = [vertex for vertex in self.near[guess] if self.away[vertex] < self.away[guess]]
        return Reply(f"go {self.chance.choice(nearer)}")

    def random_move(self, rng: random.Random) -> str:
        return str(rng.randint(1, self.size))

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def _play(rules: str) -> Play:
    """The vertex whose distances to all that are left sum to least: whichever neighbour is told, half are out."""
    near = graph_of(edges_in(setting(rules)["edges"]))
    away = {vertex: distances(near, vertex) for vertex in near}
    left = sorted(near)
    while True:
        guess = min(near, key=lambda vertex: sum(away[vertex][other] for other in left))
        (nearer,) = numbers_in((yield str(guess)))
        left = [vertex for vertex in left if away[nearer][vertex] < away[guess][vertex]]
