"""The report is a view over artefacts: a run directory written by hand must come out as it went in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.evaluation.scores import flat_score
from posttrain.model.artifacts import RunDir, write_json, write_text
from posttrain.report.build import build_report, stage_table
from posttrain.report.collect import collect, reached

RECIPE = """\
name: synthetic
data: {problems: {task: arithmetic, size: 10}}
stages:
  cold_start: {kind: sft}
  student: {kind: off_policy_distillation}
  student_on_policy: {kind: on_policy_distillation, start_from: student}
  student_rl: {kind: grpo, start_from: student}
"""


def scores(right: int, n: int = 100) -> dict[str, object]:
    accuracy = flat_score([1.0] * right + [0.0] * (n - right))
    figures = {
        "accuracy": accuracy,
        "pass@4": flat_score([1.0] * n),
        "thinking_tokens": {"mean": 20.5, "p50": 20, "p95": 31, "n": n},
        "by_difficulty": {"1": accuracy, "2": accuracy},
        "by_data": {"problems": accuracy},
    }
    return {"thinking": figures, "non_thinking": figures}


def write_stage(run: RunDir, name: str, parent: str, right: int, curve: list[tuple[float, float]]) -> None:
    directory = run.stage(name)
    record = {
        "name": name,
        "parent": parent,
        "train_seconds": 10.0,
        "evaluation_seconds": 2.0,
        "data_seconds": 1.0,
        "flops": 1e9,
        "steps": 5,
        "funnel": {"queries": {"read": 10, "kept": 9}},
    }
    write_json(directory.record, record)
    point = {"thinking_budget": 4, "accuracy": 0.5, "low": 0.4, "high": 0.6, "n": 100, "thinking_tokens": 3.5}
    budget = [{**point, "closed_by_budget": 0.9}] if name == "cold_start" else []
    write_json(directory.evaluation, {"scores": scores(right), "budget_curve": budget})
    rows = [{"step": step, "loss": 1.0 / (step + 1), "reward": 0.1 * step} for step in range(4)]
    write_text(directory.metrics, "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "los')
    points = [
        {"step": i, "train_seconds": s, "flops": s * 1e6, "accuracy": a, "low": a, "high": a, "n": 64}
        for i, (s, a) in enumerate(curve)
    ]
    write_text(directory.curve, "".join(json.dumps(row) + "\n" for row in points))
    sample = {"mode": "thinking", "prompt": "<b>1+1</b>", "answer": "2", "completion": "<think>\nx\n</think>\n\n2"}
    write_text(directory.samples, json.dumps({**sample, "score": 1.0, "truncated": False, "thinking_tokens": 3}) + "\n")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run")
    write_text(run.recipe, RECIPE)
    write_json(run.path / "clock.json", {"wall_seconds": 60.0, "preparation_seconds": 3.0})
    write_stage(run, "cold_start", "base", 60, [])
    write_stage(run, "student", "base", 50, [])
    write_stage(run, "student_on_policy", "student", 90, [(0.0, 0.5), (1.0, 0.7), (10.0, 0.9)])
    write_stage(run, "student_rl", "student", 40, [(0.0, 0.5), (20.0, 0.65)])
    return run


def test_report_json_has_what_is_promised(run: RunDir) -> None:
    build_report(run)
    report = json.loads((run.path / "report.json").read_text())
    stage = report["stages"][2]
    assert (stage["name"], stage["kind"], stage["parent"]) == ("student_on_policy", "on_policy_distillation", "student")
    assert stage["train_seconds"] == 10.0
    assert stage["scores"]["thinking"]["accuracy"] == 0.9
    assert stage["scores"]["non_thinking"]["pass@4"] == 1.0
    assert report["budget_curve"][0]["thinking_budget"] == 4
    assert report["wall_seconds"] == 60.0
    # 60 s in all, 4 stages with 10 s of training and 2 s of evaluation each: 12 s are ours.
    assert report["time"]["other"] == pytest.approx(12.0)
    against = report["distillation_vs_rl"]
    assert against["start"]["stage"] == "student"
    assert [point["accuracy"] for point in against["on_policy"]] == [0.5, 0.7, 0.9]
    # RL ends at 0.65 after 20 s; distillation first measures at least that at 1 s.
    assert against["rl_accuracy_reached"]["share_of_seconds"] == pytest.approx(1 / 20)


def test_losses_are_shown_as_plainly_as_gains(run: RunDir) -> None:
    content = collect(run)
    accuracy = next(row for row in stage_table(content) if row["title"] == "Accuracy" and row["mode"] == "thinking")
    on_policy, rl = accuracy["cells"][2], accuracy["cells"][3]
    assert (on_policy["change"], on_policy["sign"]) == ("+0.400", 1)
    assert (rl["change"], rl["sign"]) == ("-0.100", -1)
    page = build_report(run).read_text()
    assert 'class="loss">-0.100' in page and 'class="gain">+0.400' in page


def test_page_stands_alone_and_escapes_what_models_wrote(run: RunDir) -> None:
    page = build_report(run).read_text()
    assert "<svg" in page and "&lt;b&gt;1+1&lt;/b&gt;" in page and "<b>1+1</b>" not in page
    for outside in ("src=", "<link", "@import", "url(http"):
        assert outside not in page


def test_report_of_an_unfinished_run(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    write_text(run.recipe, RECIPE)
    write_stage(run, "cold_start", "base", 60, [])
    page = build_report(run).read_text()
    assert "not finished" in page
    report = json.loads((run.path / "report.json").read_text())
    assert [stage["finished"] for stage in report["stages"]] == [True, False, False, False]
    assert report["distillation_vs_rl"] is None


def test_rl_accuracy_never_reached() -> None:
    row = {"flops": 1.0, "step": 1}
    assert (
        reached([{**row, "accuracy": 0.2, "train_seconds": 1.0}], [{**row, "accuracy": 0.3, "train_seconds": 9.0}])
        is None
    )
