"""The report's content, read from a run's artefacts alone: what `report.json` holds and the pages show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import RunDir, read_json, read_rows

MODES = ("thinking", "non_thinking")
ROLLOUTS = 8  # of the last ones that a stage of RL kept to read
WHOLE = ("think_follow", "pair_accuracy")
"""Figures of a stage that are no mode's."""


def collect(run: RunDir) -> dict[str, Any]:
    """Everything the report says. Stages that have not finished are listed with what they have.

    Raises:
        PosttrainError: the directory holds no recipe.
    """
    recipe, text = _recipe(run.recipe)
    stages = [_stage(run, name, options) for name, options in recipe["stages"].items()]
    by_name = {stage["name"]: stage for stage in stages}
    for stage in stages:
        stage["changes"] = _changes(stage, by_name.get(stage["parent"]))
    curves = {stage["name"]: stage["budget_curve"] for stage in stages if stage["budget_curve"]}
    clock = read_json(run.path / "clock.json") or {}
    return {
        "name": recipe["name"],
        "finished": all(stage["finished"] for stage in stages),
        "stages": stages,
        "budget_curve": next(reversed(curves.values()), []),
        "budget_curves": curves,
        "distillation_vs_rl": _distillation_vs_rl(run, stages),
        "wall_seconds": _wall(clock, stages),
        "time": _time(clock, stages),
        "data": {name: read_json(run.data(name) / "funnel.json") for name in recipe["data"]},
        "environment": read_json(run.path / "environment.json") or {},
        "recipe": text,
    }


def _recipe(path: Path) -> tuple[dict[str, Any], str]:
    """The resolved recipe of a run, and its text.

    Raises:
        PosttrainError: it is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
        recipe = yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        recipe = None
    if not isinstance(recipe, dict) or not isinstance(recipe.get("stages"), dict):
        raise PosttrainError(Problem("no recipe of a run", str(path), remedy="name a directory that `run` has made"))
    return recipe, text


def _stage(run: RunDir, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    directory = run.stage(name)
    record = read_json(directory.record) or {}
    evaluation = read_json(directory.evaluation) or {"scores": {}, "budget_curve": []}
    scores, intervals = flatten(evaluation["scores"])
    return {
        "name": name,
        "kind": options["kind"],
        "parent": record.get("parent"),
        "teacher": record.get("teacher"),
        "model_kind": record.get("model_kind"),
        "finished": bool(record),
        "train_seconds": record.get("train_seconds"),
        "data_seconds": record.get("data_seconds"),
        "evaluation_seconds": record.get("evaluation_seconds"),
        "flops": record.get("flops"),
        "steps": record.get("steps"),
        "scores": scores,
        "intervals": intervals,
        "by_difficulty": {
            mode: {
                level: score["value"]
                for level, score in evaluation["scores"].get(mode, {}).get("by_difficulty", {}).items()
            }
            for mode in MODES
        },
        "budget_curve": evaluation["budget_curve"],
        "funnel": (read_json(directory.data / "manifest.json") or {}).get("funnel"),
        "agreement": read_json(directory.path / "agreement.json"),
        "metrics": read_rows(directory.metrics),
        "curve": read_rows(directory.curve),
        "samples": read_rows(directory.samples),
        "rollouts": read_rows(directory.path / "rollouts.jsonl")[-ROLLOUTS:],
        "examples": read_rows(directory.data / "examples.jsonl"),
    }


def flatten(scores: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures as plain numbers, and beside them [low, high, n] under the same names."""
    plain: dict[str, Any] = {}
    intervals: dict[str, Any] = {}
    for mode in MODES:
        for name, figure in _named(scores.get(mode, {})):
            plain.setdefault(mode, {})[name] = figure.get("value", figure.get("mean"))
            if "low" in figure:
                intervals.setdefault(mode, {})[name] = [figure["low"], figure["high"], figure["n"]]
    for name in WHOLE:
        if whole := scores.get(name):
            plain[name] = whole["value"]
            intervals[name] = [whole["low"], whole["high"], whole["n"]]
    return plain, intervals


def _named(figures: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The figures of a mode by name; suites as `suite/NAME`, and where there are several, data sets as `data/NAME`."""
    named = [(name, figure) for name, figure in figures.items() if not name.startswith("by_")]
    by_data = figures.get("by_data", {})
    named += [(f"suite/{name}", figure) for name, figure in figures.get("by_suite", {}).items()]
    return named + [(f"data/{name}", figure) for name, figure in by_data.items() if len(by_data) > 1]


def _changes(stage: Mapping[str, Any], parent: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a stage changed against the one it started from, gain or loss alike."""
    if parent is None:
        return {}
    before, after = parent["scores"], stage["scores"]
    changes: dict[str, Any] = {}
    for mode in MODES:
        for name, value in after.get(mode, {}).items():
            old = before.get(mode, {}).get(name)
            if value is not None and old is not None:
                changes.setdefault(mode, {})[name] = value - old
    if "think_follow" in after and "think_follow" in before:
        changes["think_follow"] = after["think_follow"] - before["think_follow"]
    return changes


def _distillation_vs_rl(run: RunDir, stages: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """On-policy distillation and RL from the same checkpoint, accuracy by compute (Qwen3 report, Table 21 in kind)."""
    for distilled in stages:
        for rl in stages:
            same = distilled["parent"] is not None and distilled["parent"] == rl["parent"]
            if distilled["kind"] == "on_policy_distillation" and rl["kind"] == "grpo" and same:
                start = next((stage for stage in stages if stage["name"] == distilled["parent"]), None)
                return {
                    "start": {
                        "stage": distilled["parent"],
                        "scores": start["scores"].get("thinking", {}) if start else {},
                    },
                    "on_policy": [_point(row) for row in distilled["curve"]],
                    "rl": [_point(row) for row in rl["curve"]],
                    "stages": {"on_policy": distilled["name"], "rl": rl["name"]},
                    "final": {
                        "on_policy": distilled["scores"].get("thinking", {}),
                        "rl": rl["scores"].get("thinking", {}),
                    },
                    "rl_accuracy_reached": reached(distilled["curve"], rl["curve"]),
                }
    return None


def _point(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "compute": row["train_seconds"],
        "flops": row["flops"],
        "accuracy": row["accuracy"],
        "low": row["low"],
        "high": row["high"],
        "n": row["n"],
        "step": row["step"],
    }


def reached(distilled: Sequence[Mapping[str, Any]], rl: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """At what share of RL's compute distillation first measured RL's final accuracy; None where it never did."""
    if not rl or not distilled:
        return None
    goal = rl[-1]["accuracy"]
    if goal <= rl[0]["accuracy"]:
        return None  # RL gained nothing that could be reached
    for row in distilled:
        if row["accuracy"] >= goal and row["step"] > 0:
            return {
                "accuracy": goal,
                "seconds": row["train_seconds"],
                "rl_seconds": rl[-1]["train_seconds"],
                "share_of_seconds": row["train_seconds"] / max(1e-9, rl[-1]["train_seconds"]),
                "share_of_flops": row["flops"] / rl[-1]["flops"] if rl[-1]["flops"] else None,
            }
    return None


def _wall(clock: Mapping[str, float], stages: Sequence[Mapping[str, Any]]) -> float:
    """Seconds over all the starts of a run. A start that was killed left no word of its own: its stages did."""
    known = clock.get("preparation_seconds", 0.0)
    for stage in stages:
        known += sum(stage[part] or 0.0 for part in ("data_seconds", "train_seconds", "evaluation_seconds"))
    return max(clock.get("wall_seconds", 0.0), known)


def _time(clock: Mapping[str, float], stages: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Where the seconds went. `other` is ours: all but the trainers and the evaluation."""
    wall = _wall(clock, stages)
    training = sum(stage["train_seconds"] or 0.0 for stage in stages)
    evaluation = sum(stage["evaluation_seconds"] or 0.0 for stage in stages)
    data = sum(stage["data_seconds"] or 0.0 for stage in stages)
    return {
        "training": training,
        "evaluation": evaluation,
        "data_building": data,
        "preparation": clock.get("preparation_seconds", 0.0),
        "other": max(0.0, wall - training - evaluation),
        "other_share": max(0.0, wall - training - evaluation) / wall if wall else 0.0,
    }
