"""Points of the plane as games say them: `P1 = x y; P2 = x y`, and so on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from posttrain.rl.environments.rounds import numbers_in

Point = tuple[int, int]


def points_said(points: Sequence[Point]) -> str:
    """The line of the rules that gives them."""
    return "; ".join(f"P{k} = {x} {y}" for k, (x, y) in enumerate(points, 1))


def points_of(told: Mapping[str, str]) -> list[Point]:
    """The points of a setting (`rounds.setting`) that such a line gave."""
    points: list[Point] = []
    while f"P{len(points) + 1}" in told:
        x, y = numbers_in(told[f"P{len(points) + 1}"])
        points.append((x, y))
    return points
