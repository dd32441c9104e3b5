"""Figures that a stage demands of its evaluation: `require: {think_follow: ">= 0.95", thinking.accuracy: "> 0.5"}`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from posttrain.recipe.demands import parse_demand

COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}


def figure(scores: Mapping[str, Any], name: str) -> float | None:
    """The value of a figure such as `think_follow` or `thinking.accuracy`; None where it was not measured."""
    node: Any = scores
    for part in name.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    if isinstance(node, Mapping):
        node = node.get("value", node.get("mean"))
    return float(node) if isinstance(node, int | float) else None


def missed(require: Mapping[str, str], scores: Mapping[str, Any]) -> list[str]:
    """The demands that the scores do not meet, each in one line."""
    lines = []
    for name, demand in require.items():
        sign, bound = parse_demand(demand)
        value = figure(scores, name)
        if value is None:
            lines.append(f"{name} {demand} is required, but it was not measured")
        elif not COMPARE[sign](value, bound):
            lines.append(f"{name} is {value:.4g}, {sign} {bound:g} is required")
    return lines
