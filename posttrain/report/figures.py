"""The report's pictures, as SVG text that stands inside the page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

INK = "#1f2733"
GRID = "#d9dee6"
COLOURS = ("#2563b0", "#c2571a", "#2c8a57", "#8a4fb5", "#b03060", "#5f6b7a")


def _axes(title: str, x: str, y: str) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "svg.hashsalt": "posttrain"}
    )
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    axes.set_title(title, color=INK, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    from matplotlib import pyplot

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _band(axes: Any, xs: Sequence[float], rows: Sequence[Mapping[str, Any]], colour: str, label: str) -> None:
    axes.plot(xs, [row["accuracy"] for row in rows], color=colour, marker="o", markersize=4, label=label)
    axes.fill_between(
        xs, [row["low"] for row in rows], [row["high"] for row in rows], color=colour, alpha=0.15, linewidth=0
    )


def budget_curve(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Accuracy by thinking budget, with 95 % intervals (Figure 2 of the Qwen3 report, in kind)."""
    figure, axes = _axes("Accuracy by thinking budget", "thinking budget (tokens)", "accuracy")
    for colour, (name, rows) in zip(COLOURS, curves.items(), strict=False):
        _band(axes, [row["thinking_budget"] for row in rows], rows, colour, name)
    axes.set_ylim(-0.02, 1.02)
    axes.legend(frameon=False)
    return _svg(figure)


def distillation_vs_rl(content: Mapping[str, Any], *, by: str) -> str:
    """Accuracy by compute from the same checkpoint (Table 21 of the Qwen3 report, in kind). `by`: compute or flops."""
    unit = "training compute (s)" if by == "compute" else "training compute (FLOPs)"
    figure, axes = _axes("On-policy distillation against RL", unit, "thinking accuracy")
    for colour, key, label in ((COLOURS[0], "on_policy", "on-policy distillation"), (COLOURS[1], "rl", "RL (GRPO)")):
        rows = content[key]
        if rows:
            _band(axes, [row[by] for row in rows], rows, colour, label)
    axes.set_ylim(-0.02, 1.02)
    axes.legend(frameon=False, loc="lower right")
    return _svg(figure)


def training_curve(stage: Mapping[str, Any], key: str, label: str) -> str | None:
    """One figure of a stage by step; None where the trainer did not log it."""
    rows = [row for row in stage["metrics"] if isinstance(row.get(key), int | float)]
    if len(rows) < 2:
        return None
    figure, axes = _axes(f"{stage['name']}: {label}", "step", label)
    axes.plot([row["step"] for row in rows], [row[key] for row in rows], color=COLOURS[0], linewidth=1.6)
    return _svg(figure)


def accuracy_by_difficulty(stage: Mapping[str, Any]) -> str | None:
    """Accuracy in each mode by difficulty; None where queries have no levels."""
    modes = {mode: levels for mode, levels in stage["by_difficulty"].items() if len(levels) > 1}
    if not modes:
        return None
    figure, axes = _axes(f"{stage['name']}: accuracy by difficulty", "difficulty", "accuracy")
    for colour, (mode, levels) in zip(COLOURS, modes.items(), strict=False):
        axes.plot(
            [int(level) for level in levels],
            list(levels.values()),
            color=colour,
            marker="o",
            label=mode.replace("_", "-"),
        )
    axes.set_ylim(-0.02, 1.02)
    axes.legend(frameon=False)
    return _svg(figure)
