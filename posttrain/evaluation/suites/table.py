"""Models side by side: a row a suite and setting, a column a model, each change against the first with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.evaluation.scores import Z
from posttrain.model.artifacts import is_complete, read_json, read_rows

Cell = dict[str, Any]


def compare(output: Path, labels: Sequence[str]) -> list[dict[str, Any]]:
    """The headline figures of finished suites under OUTPUT/LABEL/SUITE/SETTING.

    Returns:
        Rows with `suite`, `setting`, `metric`, and `cells`: for each model that has it value, low, high, n, and after
        the first model `change` with `change_low` and `change_high`, over the items that both answered.
    """
    places = {
        (path.parent.name, path.name): None
        for label in labels
        for path in sorted((output / label).glob("*/*"))
        if is_complete(path)
    }
    rows = []
    for suite, setting in places:
        cells: dict[str, Cell] = {}
        first: dict[str, float] | None = None
        metric = ""
        for label in labels:
            directory = output / label / suite / setting
            if not is_complete(directory):
                continue
            figures = read_json(directory / "figures.json")
            metric = figures["headline"]
            if metric not in figures["metrics"]:
                continue
            own = _by_item(directory, metric)
            cells[label] = dict(figures["metrics"][metric])
            if first is not None:
                cells[label] |= change(first, own)
            first = own if first is None else first
        rows.append({"suite": suite, "setting": setting, "metric": metric, "cells": cells})
    return rows


def finished(output: Path, labels: Sequence[str], suite: str) -> dict[str, list[dict[str, Any]]]:
    """The answers to one suite under OUTPUT/LABEL/SUITE, of every model and setting that is complete."""
    return {
        f"{label} {path.name}": read_rows(path / "answers.jsonl")
        for label in labels
        for path in sorted((output / label / suite).glob("*"))
        if is_complete(path)
    }


def change(first: Mapping[str, float], second: Mapping[str, float]) -> Cell:
    """The mean difference over common items, with its 95 % interval (paired, normal). {} without common items."""
    differences = [second[id] - first[id] for id in first if id in second]
    n = len(differences)
    if n < 2:
        return {}
    mean = sum(differences) / n
    half = Z * math.sqrt(sum((each - mean) ** 2 for each in differences) / (n - 1) / n)
    return {"change": mean, "change_low": mean - half, "change_high": mean + half}


def _by_item(directory: Path, metric: str) -> dict[str, float]:
    """The metric of every item that has it; the mean where an item counts several times."""
    values = {}
    for record in read_rows(directory / "answers.jsonl"):
        if metric in record["scores"]:
            value = record["scores"][metric]
            values[record["id"]] = sum(value) / len(value) if isinstance(value, list) else float(value)
    return values


def markdown(rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> str:
    """The table as Markdown."""
    lines = [f"| suite | setting | metric | {' | '.join(labels)} |", "|---|---|---|" + "---|" * len(labels)]
    for row in rows:
        cells = [shown(row["cells"].get(label)) for label in labels]
        lines.append(f"| {row['suite']} | {row['setting']} | {row['metric']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def shown(cell: Mapping[str, Any] | None) -> str:
    """One figure with its interval and count, and its change."""
    if not cell:
        return ""
    text = f"{cell['value']:.3f} ({cell['low']:.3f}-{cell['high']:.3f}, n={cell['n']})"
    if "change" in cell:
        text += f", {cell['change']:+.3f} ({cell['change_low']:+.3f} to {cell['change_high']:+.3f})"
    return text
