"""ZigzagGraph: a token moved by one player along falling weights, by one along rising ones (Codeforces 1147F)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import ClassVar

from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.grids import grid_of
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


class ZigzagGraph(Rounds[int]):
    """`sizes`: nodes of a side. The other player plays as well as can be.

    There always is a first move that wins, to the partner in a stable matching. Drawn until no other one does.
    """

    name = "ZigzagGraph"
    category: ClassVar[Category] = "strategic_gaming"
    costly = True
    sizes: ClassVar[dict[Difficulty, int]] = {"easy": 3, "medium": 4, "hard": 5}

    def set_up(self) -> None:
        self.n = self.size
        while True:
            values = self.chance.sample(range(1, self.n**2 + 1), self.n**2)
            self.graph = Graph([values[row * self.n : (row + 1) * self.n] for row in range(self.n)])
            self.at = self.chance.randint(1, 2 * self.n)
            self.visited, self.last = frozenset({self.at}), 0
            if self.graph.winning(self.at, None, self.visited) == 1:
                break

    def rules(self) -> str:
        grid = "\n".join(" ".join(map(str, row)) for row in self.graph.weights)
        return (
            "ZigzagGraph. Nodes 1 to n are joined to nodes n + 1 to 2n, with the weights below: row i has those"
            " from node"
            " i to n + 1, n + 2, ... You and I move a token along edges in turn, you first, to nodes where it"
            " has not been."
            " You need a weight less than that of the move before, I a greater one; your first move is free. Who cannot"
            " move loses.\n"
            "v moves to node v. You are told where I move.\n"
            f"n = {self.n}; the token is at t = {self.at}\ngrid =\n{grid}"
        )

    def _allowed(self, falling: bool) -> list[int]:
        last = self.last if len(self.visited) > 1 else None
        return list(self.graph.moves(self.at, last, self.visited, falling))

    def play(self, text: str) -> Reply:
        (node,) = numbers(text, 1, low=1, high=2 * self.n)
        if node not in self._allowed(falling=True):
            raise Forbidden("the token cannot be moved there")
        self._go(node)
        answers = self._allowed(falling=False)
        if not answers:
            return won("I cannot move.")
        self._go(min(answers, key=lambda answer: (self._left_by(answer), self.chance.random())))
        return Reply(str(self.at)) if self._allowed(falling=True) else lost(f"{self.at}, you cannot move.")

    def _go(self, node: int) -> None:
        self.last, self.at = self.graph.weight(self.at, node), node
        self.visited |= {node}

    def _left_by(self, answer: int) -> int:
        """How many winning moves an answer leaves the first player."""
        return self.graph.winning(answer, self.graph.weight(self.at, answer), self.visited | {answer})

    def random_move(self, rng: random.Random) -> str:
        return str(rng.choice(self._allowed(falling=True)))

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


class Graph:
    """Weights of a bipartite graph: row i has the edges of node i + 1 of the first side."""

    def __init__(self, weights: list[list[int]]) -> None:
        self.weights, self.n = weights, len(weights)
        self._loses: dict[tuple[int, int, frozenset[int]], bool] = {}

    def weight(self, a: int, b: int) -> int:
        return self.weights[min(a, b) - 1][max(a, b) - self.n - 1]

    def across(self, node: int) -> range:
        return range(self.n + 1, 2 * self.n + 1) if node <= self.n else range(1, self.n + 1)

    def moves(self, at: int, last: int | None, visited: frozenset[int], falling: bool) -> Iterator[int]:
        for node in self.across(at):
            weight = self.weight(at, node)
            if node not in visited and (last is None or (weight < last) == falling):
                yield node

    def winning(self, at: int, last: int | None, visited: frozenset[int]) -> int:
        """How many moves of the first player win."""
        moves = self.moves(at, last, visited, falling=True)
        return sum(self.other_loses(move, self.weight(at, move), visited | {move}) for move in moves)

    def other_loses(self, at: int, last: int, visited: frozenset[int]) -> bool:
        """Whether the other player, who has to move on from a node, has lost."""
        known = (at, last, visited)
        if known not in self._loses:
            self._loses[known] = not any(
                self._first_loses(move, self.weight(at, move), visited | {move})
                for move in self.moves(at, last, visited, falling=False)
            )
        return self._loses[known]

    def _first_loses(self, at: int, last: int, visited: frozenset[int]) -> bool:
        moves = self.moves(at, last, visited, falling=True)
        return not any(self.other_loses(move, self.weight(at, move), visited | {move}) for move in moves)


def stable_partners(graph: Graph, start: int) -> dict[int, int]:
    """For every node on the start's side its partner on the other side, so that the player of falling weights wins.

    He always moves to the partner. The other moves on from there by a greater weight, to a node whose own partner has
    to lie at a lesser one: so it is, if no two nodes of the two sides like each other better than their partners,
    where the former like small weights and the latter great ones. Gale and Shapley find such partners.
    """
    side = list(graph.across(graph.across(start)[0]))
    wishes = {node: sorted(graph.across(node), key=lambda other: graph.weight(node, other)) for node in side}
    held: dict[int, int] = {}
    while side:
        node = side.pop()
        wish = wishes[node].pop(0)
        rival = held.get(wish)
        if rival is None or graph.weight(node, wish) > graph.weight(rival, wish):
            held[wish] = node
            node = rival or 0
        if node:
            side.append(node)
    return {node: wish for wish, node in held.items()}


def _play(rules: str) -> Play:
    graph = Graph([numbers_in(row) for row in grid_of(rules)])
    at = int(setting(rules)["t"])
    partners = stable_partners(graph, at)
    while True:
        (at,) = numbers_in((yield str(partners[at])))
