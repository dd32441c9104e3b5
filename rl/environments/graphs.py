"""Small graphs as games say them: edges, neighbours, distances."""

from __future__ import annotations

from collections.abc import Iterable

from posttrain.rl.environments.rounds import numbers_in

Edge = tuple[int, int]
Graph = dict[int, list[int]]
"""The neighbours of every vertex."""


def said(edges: Iterable[Edge]) -> str:
    return " ".join(f"{a}-{b}" for a, b in edges)


def edges_in(text: str) -> list[Edge]:
    """The edges that `said` wrote."""
    ends = numbers_in(text.replace("-", " "))
    return list(zip(ends[::2], ends[1::2], strict=True))


def graph_of(edges: Iterable[Edge]) -> Graph:
    near: Graph = {}
    for a, b in edges:
        near.setdefault(a, []).append(b)
        near.setdefault(b, []).append(a)
    return near


def distances(near: Graph, source: int) -> dict[int, int]:
    """Edges of a shortest way from one vertex to every other."""
    away, todo = {source: 0}, [source]
    for vertex in todo:
        for neighbour in near[vertex]:
            if neighbour not in away:
                away[neighbour] = away[vertex] + 1
                todo.append(neighbour)
    return away
