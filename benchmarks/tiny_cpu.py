"""The demo's targets over three seeds: runs recipes/tiny_cpu.yaml for each, and writes the medians beside the targets.

    python benchmarks/tiny_cpu.py [--seeds 0 1 2] [--output DIR] [--results docs/results]

Runs that are finished under DIR are not run again. Ends with one JSON line; `ours` is the median wall time of a run,
`theirs` the time allowed, and `met` says whether every target of the table is met.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "tiny_cpu.yaml"
MINUTES = 8
CHANCE = 0.1  # ten digits
Report = Mapping[str, Any]


def thinking(report: Report, stage: str, figure: str = "accuracy") -> float:
    return float(_stage(report, stage)["scores"]["thinking"][figure])


def non_thinking(report: Report, stage: str, figure: str = "accuracy") -> float:
    return float(_stage(report, stage)["scores"]["non_thinking"][figure])


def _stage(report: Report, name: str) -> Report:
    return next(stage for stage in report["stages"] if stage["name"] == name)


def _formats(report: Report, stage: str) -> float:
    return thinking(report, stage, "data/formats")


def _worst_loss(report: Report) -> float:
    """The largest fall of any score by general RL, in either mode (negative: a fall)."""
    before, after = _stage(report, "fusion")["scores"], _stage(report, "general_rl")["scores"]
    changes = [after["think_follow"] - before["think_follow"]]
    for mode in ("thinking", "non_thinking"):
        for figure in ("accuracy", "data/formats", "mode_followed", "well_formed", "eos"):
            changes.append(after[mode][figure] - before[mode][figure])
    return float(min(changes))


def _share_of_rl(report: Report, compute: str = "seconds") -> float:
    """Where RL ends no higher than it began, its accuracy is there at no cost: 0."""
    against = report["distillation_vs_rl"]
    reached = against["rl_accuracy_reached"]
    if reached:
        return float(reached[f"share_of_{compute}"])
    return 0.0 if against["rl"][-1]["accuracy"] <= against["rl"][0]["accuracy"] else float("inf")


def _steps_down(report: Report) -> float:
    """The largest fall between neighbouring points of the budget curve, beyond both points' intervals."""
    curve = report["budget_curve"]
    return max(max(0.0, a["low"] - b["high"]) for a, b in itertools.pairwise(curve))


# What is measured, the bound, and whether it is met. The targets are those the demo was built for.
TARGETS: list[tuple[str, str, Callable[[Report], float], Callable[[float], bool]]] = [
    ("thinking accuracy after reasoning RL", ">= 0.95", lambda r: thinking(r, "reasoning_rl"), lambda x: x >= 0.95),
    (
        "its gain over the cold start",
        ">= 0.2",
        lambda r: thinking(r, "reasoning_rl") - thinking(r, "cold_start"),
        lambda x: x >= 0.2,
    ),
    (
        "ThinkFollow after fusion",
        ">= 0.98",
        lambda r: _stage(r, "fusion")["scores"]["think_follow"],
        lambda x: x >= 0.98,
    ),
    (
        "thinking accuracy, fusion against before",
        ">= -0.03",
        lambda r: thinking(r, "fusion") - thinking(r, "reasoning_rl"),
        lambda x: x >= -0.03,
    ),
    (
        "non-thinking accuracy after fusion, above chance (0.1)",
        "> 0.05",
        lambda r: non_thinking(r, "fusion") - CHANCE,
        lambda x: x > 0.05,
    ),
    (
        "non-thinking below thinking after fusion",
        "< 0",
        lambda r: non_thinking(r, "fusion") - thinking(r, "fusion"),
        lambda x: x < 0,
    ),
    ("format tasks after general RL", "+0.3 or >= 0.95", lambda r: _formats(r, "general_rl"), lambda x: x >= 0.95),
    ("largest fall of a score by general RL", ">= -0.03", _worst_loss, lambda x: x >= -0.03),
    (
        "student's gain, on-policy after off-policy",
        ">= 0.25",
        lambda r: thinking(r, "student_on_policy") - thinking(r, "student_off_policy"),
        lambda x: x >= 0.25,
    ),
    (
        "its pass@4",
        "> 0",
        lambda r: thinking(r, "student_on_policy", "pass@4") - thinking(r, "student_off_policy", "pass@4"),
        lambda x: x > 0,
    ),
    ("share of RL's time to reach RL's accuracy", "<= 0.1", _share_of_rl, lambda x: x <= 0.1),
    ("share of RL's FLOPs", "<= 0.1", lambda r: _share_of_rl(r, "flops"), lambda x: x <= 0.1),
    ("budget curve at 0", "<= 0.25", lambda r: r["budget_curve"][0]["accuracy"], lambda x: x <= 0.25),
    ("budget curve at full length", ">= 0.95", lambda r: r["budget_curve"][-1]["accuracy"], lambda x: x >= 0.95),
    ("budget curve, largest step down beyond noise", "0", _steps_down, lambda x: x == 0),
    ("whole run, minutes", f"<= {MINUTES}", lambda r: r["wall_seconds"] / 60, lambda x: x <= MINUTES),
    ("outside trainers and evaluation", "<= 0.15", lambda r: r["time"]["other_share"], lambda x: x <= 0.15),
]


def run(seed: int, output: Path) -> Report:
    """The report of one seed, run now or before."""
    directory = output / f"seed-{seed}"
    command = [
        sys.executable,
        "-m",
        "posttrain",
        "run",
        str(RECIPE),
        "--set",
        f"seed={seed}",
        "--output",
        str(directory),
    ]
    subprocess.run(command, check=True)
    report: Report = json.loads((directory / "report.json").read_text())
    return report


def table(reports: Mapping[int, Report]) -> list[dict[str, Any]]:
    """A row a target: the value of each seed, the median, and whether the median meets the target."""
    rows = []
    for name, bound, measure, holds in TARGETS:
        values = [measure(report) for report in reports.values()]
        median = statistics.median(values)
        met = holds(median)
        if name == "format tasks after general RL":
            gains = [_formats(r, "general_rl") - _formats(r, "fusion") for r in reports.values()]
            met = met or statistics.median(gains) >= 0.3
        rows.append({"figure": name, "target": bound, "values": values, "median": median, "met": met})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs") / "tiny_cpu_seeds")
    parser.add_argument("--results", type=Path, help="also write tiny_cpu.md and tiny_cpu.json there")
    arguments = parser.parse_args()
    reports = {seed: run(seed, arguments.output) for seed in arguments.seeds}
    rows = table(reports)
    seeds = " | ".join(f"seed {seed}" for seed in reports)
    lines = [f"| figure | target | {seeds} | median | met |", "|---" * (len(reports) + 4) + "|"]
    for row in rows:
        values = " | ".join(f"{value:.3f}" for value in row["values"])
        met = "yes" if row["met"] else "**no**"
        lines.append(f"| {row['figure']} | {row['target']} | {values} | {row['median']:.3f} | {met} |")
    print("\n".join(lines))
    if arguments.results:
        arguments.results.mkdir(parents=True, exist_ok=True)
        environment = next(iter(reports.values()))["environment"]
        head = f"# The demo's targets\n\n`python benchmarks/tiny_cpu.py --seeds {' '.join(map(str, reports))}`, on "
        head += f"{environment['cores']} cores ({environment['processor']}).\n\n"
        (arguments.results / "tiny_cpu.md").write_text(head + "\n".join(lines) + "\n")
        kept = {"rows": rows, "environment": environment}
        (arguments.results / "tiny_cpu.json").write_text(json.dumps(kept, indent=2) + "\n")
    minutes = next(row for row in rows if row["figure"] == "whole run, minutes")["median"]
    summary = {"name": "tiny_cpu", "ours": round(minutes, 2), "theirs": MINUTES, "unit": "minutes a run"}
    summary |= {"ratio": round(minutes / MINUTES, 3), "target": 1.0, "met": all(row["met"] for row in rows)}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
