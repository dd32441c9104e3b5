"""LegendaryTree: a hidden tree, by how many paths between two groups go through a vertex (Codeforces 1129E)."""

from __future__ import annotations

import random
from functools import cache
from itertools import product
from typing import ClassVar, NamedTuple

from posttrain.rl.environments.candidates import pin_down
from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.rounds import (
    Forbidden,
    Play,
    Rounds,
    as_player,
    different,
    lost,
    numbers,
    question_or_answer,
    setting,
    won,
)

Edge = tuple[int, int]
Question = tuple[tuple[int, ...], tuple[int, ...], int]


class Tree(NamedTuple):
    """`on_path[s][t]` has the bit of every vertex on the path from s to t. Vertices count from 1."""

    edges: frozenset[Edge]
    on_path: tuple[tuple[int, ...], ...]

    def count(self, question: Question) -> int:
        sources, targets, vertex = question
        return sum(self.on_path[s][t] >> vertex & 1 for s in sources for t in targets)


class LegendaryTree(Rounds[int]):
    """`sizes`: how many vertices."""

    name = "LegendaryTree"
    category: ClassVar[Category] = "information_probing"
    starts: ClassVar[dict[Difficulty, int]] = {"easy": 16}
    sizes: ClassVar[dict[Difficulty, int]] = {"easy": 4, "medium": 5, "hard": 6}

    def set_up(self) -> None:
        self.hidden = tree_of([self.chance.randint(1, self.size) for _ in range(self.size - 2)])

    def rules(self) -> str:
        return (
            "LegendaryTree. The vertices 1 to n form a hidden tree; find its edges.\n"
            "? a b | c d | v counts the pairs of one vertex before the first bar and one after it whose path goes"
            " through v, ends included. The groups share no vertex; they may have any size.\n"
            "! a-b c-d ... ends the game: these are all the edges.\n"
            f"n = {self.size}"
        )

    def play(self, text: str) -> Reply:
        asks, rest = question_or_answer(text)
        if not asks:
            ends = numbers(rest.replace("-", " "), 2 * (self.size - 1), low=1, high=self.size)
            edges = frozenset((min(edge), max(edge)) for edge in zip(ends[::2], ends[1::2], strict=True))
            return won("Right.") if edges == self.hidden.edges else lost("Wrong.")
        parts = rest.split("|")
        if len(parts) != 3:
            raise Forbidden("? is followed by group | group | vertex")
        sources, targets = (different(numbers(part, low=1, high=self.size)) for part in parts[:2])
        (vertex,) = numbers(parts[2], 1, low=1, high=self.size)
        different(sources + targets)
        return Reply(str(self.hidden.count((tuple(sources), tuple(targets), vertex))))

    def random_move(self, rng: random.Random) -> str:
        if rng.random() < 0.3:
            return _answer(tree_of([rng.randint(1, self.size) for _ in range(self.size - 2)]))
        order = rng.sample(range(1, self.size + 1), self.size)
        cut, end = sorted(rng.sample(range(1, self.size + 1), 2))
        return _written((tuple(order[:cut]), tuple(order[cut:end]), rng.randint(1, self.size)))

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def tree_of(sequence: list[int]) -> Tree:
    """The tree of a Prüfer sequence: every sequence of n - 2 vertices is one tree of n."""
    n = len(sequence) + 2
    degree = [0] + [1 + sequence.count(vertex) for vertex in range(1, n + 1)]
    edges = []
    for vertex in sequence:
        leaf = degree.index(1)
        edges.append((min(leaf, vertex), max(leaf, vertex)))
        degree[leaf] -= 1
        degree[vertex] -= 1
    first = degree.index(1)
    edges.append((first, degree.index(1, first + 1)))
    return Tree(frozenset(edges), _paths(n, edges))


def _paths(n: int, edges: list[Edge]) -> tuple[tuple[int, ...], ...]:
    near: list[list[int]] = [[] for _ in range(n + 1)]
    for a, b in edges:
        near[a].append(b)
        near[b].append(a)
    rows = []
    for source in range(n + 1):
        on_path, todo = [0] * (n + 1), [source]
        on_path[source] = 1 << source
        for vertex in todo:
            for neighbour in near[vertex]:
                if not on_path[neighbour]:
                    on_path[neighbour] = on_path[vertex] | 1 << neighbour
                    todo.append(neighbour)
        rows.append(tuple(on_path))
    return tuple(rows)


@cache
def all_trees(n: int) -> list[Tree]:
    return [tree_of(list(sequence)) for sequence in product(range(1, n + 1), repeat=n - 2)]


def _answer(tree: Tree) -> str:
    return "! " + " ".join(f"{a}-{b}" for a, b in sorted(tree.edges))


def _written(question: Question) -> str:
    sources, targets, vertex = question
    return f"? {' '.join(map(str, sources))} | {' '.join(map(str, targets))} | {vertex}"


def _play(rules: str) -> Play:
    """From one vertex to all others, the count at a vertex is the size of what hangs on it."""
    n = int(setting(rules)["n"])
    vertices = range(1, n + 1)
    questions: list[Question] = [
        ((source,), tuple(vertex for vertex in vertices if vertex != source), v)
        for source in vertices
        for v in vertices
        if v != source
    ]
    questions += [((a,), (b,), v) for a in vertices for b in vertices if a < b for v in vertices]
    found = yield from pin_down(
        all_trees(n), questions, Tree.count, written=_written, read=int, answer=lambda tree: tree.edges
    )
    yield _answer(found)
