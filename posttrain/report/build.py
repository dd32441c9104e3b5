"""Writes report.json, report.md and report.html from a run's artefacts. A view: it computes no score of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.model.artifacts import RunDir, write_json, write_text
from posttrain.report import figures
from posttrain.report.collect import MODES, collect
from posttrain.report.funnels import data_table, stage_funnel

CURVES = (
    ("loss", "loss"),
    ("reward", "reward"),
    ("entropy", "entropy (nats)"),
    ("completions/mean_length", "completion length (tokens)"),
)
ROWS = (
    ("accuracy", "Accuracy"),
    ("mode_followed", "Mode followed"),
    ("well_formed", "Well-formed think block"),
    ("eos", "Ends by itself (EOS)"),
    ("truncated", "Truncated"),
    ("thinking_tokens", "Thinking tokens, mean"),
)
TITLES = {"thinking": "thinking", "non_thinking": "non-thinking"}


def build_report(run: RunDir) -> Path:
    """Write the three forms of the report. Returns the page's path."""
    content = collect(run)
    public = {key: value for key, value in content.items() if key != "stages"}
    bulky = ("metrics", "samples", "rollouts", "curve", "examples")
    public["stages"] = [{key: value for key, value in stage.items() if key not in bulky} for stage in content["stages"]]
    write_json(run.path / "report.json", public)
    table = stage_table(content)
    write_text(run.path / "report.md", _render("report.md.jinja", content, table, pictures={}))
    page = run.path / "report.html"
    write_text(page, _render("report.html.jinja", content, table, pictures=_pictures(content)))
    return page


def stage_table(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the stage table (Table 22's shape): a figure, and for each stage its value, interval and change."""
    rows = []
    for mode in MODES:
        for name, title in _figures_of(content, mode):
            cells = [_cell(stage, mode, name) for stage in content["stages"]]
            if any(cell is not None for cell in cells):
                rows.append(
                    {"title": title, "mode": TITLES[mode], "cells": cells, "lower_is_better": name == "truncated"}
                )
    for name, title in (("pair_accuracy", "Pairs ranked rightly"), ("think_follow", "ThinkFollow")):
        cells = [_cell(stage, name, None) for stage in content["stages"]]
        if any(cell is not None for cell in cells):
            rows.insert(0, {"title": title, "mode": "both", "cells": cells, "lower_is_better": False})
    return rows


def _figures_of(content: Mapping[str, Any], mode: str) -> list[tuple[str, str]]:
    names = {name: None for stage in content["stages"] for name in stage["scores"].get(mode, {})}
    known = dict(ROWS)
    first = [name for name in known if name in names]
    passes = [name for name in names if name.startswith("pass@")]
    data = [name for name in names if name.startswith("data/")]
    suites = [name for name in names if name.startswith("suite/")]
    order = [*first[:1], *passes, *data, *suites, *first[1:]]
    return [(name, known.get(name, name.removeprefix("data/").removeprefix("suite/"))) for name in order]


def _cell(stage: Mapping[str, Any], mode: str, name: str | None) -> dict[str, Any] | None:
    def pick(tree: Mapping[str, Any]) -> Any:
        found = tree.get(mode)
        return found.get(name) if name is not None and isinstance(found, Mapping) else found if name is None else None

    value = pick(stage["scores"])
    if value is None:
        return None
    interval, change = pick(stage["intervals"]), pick(stage["changes"])
    share = name != "thinking_tokens"  # the others lie between 0 and 1
    # A change smaller than the interval's half width may be noise; it is shown, but not called a gain or a loss.
    noise = (interval[1] - interval[0]) / 2 if interval else 0.0
    return {
        "value": f"{value:.3f}" if share else f"{value:.1f}",
        "interval": "–".join(f"{bound:.2f}" if share else f"{bound:.1f}" for bound in interval[:2]) if interval else "",
        "n": interval[2] if interval else None,
        "change": None if change is None else f"{change:+.3f}" if share else f"{change:+.1f}",
        "sign": 0 if change is None or not share or abs(change) < noise else (1 if change > 0 else -1),
    }


def _pictures(content: Mapping[str, Any]) -> dict[str, Any]:
    pictures: dict[str, Any] = {}
    if content["budget_curves"]:
        pictures["budget"] = figures.budget_curve(content["budget_curves"])
    against = content["distillation_vs_rl"]
    if against and (against["on_policy"] or against["rl"]):
        pictures["against"] = [figures.distillation_vs_rl(against, by="compute")]
        if any(row["flops"] for row in against["on_policy"] + against["rl"]):
            pictures["against"].append(figures.distillation_vs_rl(against, by="flops"))
    pictures["stages"] = {}
    for stage in content["stages"]:
        drawn = [figures.training_curve(stage, key, label) for key, label in CURVES]
        drawn.append(figures.accuracy_by_difficulty(stage))
        pictures["stages"][stage["name"]] = [picture for picture in drawn if picture]
    return pictures


def _render(name: str, content: Mapping[str, Any], table: Any, *, pictures: Mapping[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=name.endswith(".html.jinja"),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(
        report=content,
        table=table,
        pictures=pictures,
        data=data_table(content["data"]),
        funnels={
            stage["name"]: stage_funnel(stage["funnel"]) if stage["funnel"] else None for stage in content["stages"]
        },
    )
