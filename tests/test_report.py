"""The report is a view over artefacts: a run directory written by hand must come out as it went in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.model.artifacts import RunDir, write_json, write_text
from posttrain.report.build import build_report, stage_table
from posttrain.report.collect import collect, reached

from .written_run import RECIPE, write_run, write_stage


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return write_run(tmp_path / "run")


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
    lengths = next(row for row in stage_table(content) if row["title"] == "Thinking tokens, mean")
    assert lengths["cells"][2] | {"change": None} == {
        "value": "20.5", "interval": "18.0–23.0", "n": lengths["cells"][2]["n"], "change": None, "sign": 0
    }  # fmt: skip
    assert lengths["cells"][2]["n"] > 0
    page = build_report(run).read_text()
    assert 'class="loss">-0.100' in page and 'class="gain">+0.400' in page


def test_page_stands_alone_and_escapes_what_models_wrote(run: RunDir) -> None:
    page = build_report(run).read_text()
    assert "<svg" in page and "&lt;b&gt;1+1&lt;/b&gt;" in page and "<b>1+1</b>" not in page
    for outside in ("src=", "<link", "@import", "url(http"):
        assert outside not in page


def test_what_was_kept_and_dropped_can_be_read(run: RunDir) -> None:
    page = build_report(run).read_text()
    for cell in ("<td>10</td><td>9</td>", "wrong 1", "tokens: supervised_tokens <b>1,234</b>", "by key"):
        assert cell in page, cell
    assert "query: &lt;i&gt;1+1&lt;/i&gt;" in page and "it is 2" in page
    text = (run.path / "report.md").read_text()
    assert "| problems | 10 | 0 | 0 | 2 | 1 | 7 |" in text
    assert "| problems | wrong_answer | 10 | 9 | 1 | wrong 1 |" in text
    report = json.loads((run.path / "report.json").read_text())
    assert report["stages"][0]["funnel"]["steps"][0]["kept"] == 9 and "examples" not in report["stages"][0]


def test_what_killed_starts_spent_is_counted(run: RunDir) -> None:
    write_json(run.path / "clock.json", {"wall_seconds": 20.0, "preparation_seconds": 3.0})
    report = collect(run)
    # 4 stages with 1 s of data, 10 s of training and 2 s of evaluation each, and 3 s of preparation.
    assert report["wall_seconds"] == pytest.approx(55.0) and report["time"]["other"] == pytest.approx(7.0)


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


def test_agreement_with_the_teacher_can_be_read(run: RunDir) -> None:
    page = build_report(run).read_text()
    for said in (
        "Agreement with the teacher",
        "0.875",
        "0.0625",
        "<td>arithmetic</td>",
        "45,678",
        "34,567",
        "1.50e+12",
        "␣价",
        "↵",
    ):
        assert said in page, said
    assert "plus &lt;b&gt;5&lt;/b&gt; is" in page and "plus <b>5</b>" not in page
    text = (run.path / "report.md").read_text()
    assert "| non-thinking | problems |  | 32 | 99 | 0.500 | 1.5000 |" in text
    assert "45,678 tokens of 128 teacher answers" in text
    stages = {stage["name"]: stage for stage in json.loads((run.path / "report.json").read_text())["stages"]}
    assert stages["student_on_policy"]["agreement"]["rows"][0]["top1"] == 0.875
    assert stages["student"]["agreement"] is None
    agreement = json.loads((run.stage("student_on_policy").path / "agreement.json").read_text())
    write_json(run.stage("student").path / "agreement.json", {"not_measured": "it is gone", "cost": agreement["cost"]})
    page = build_report(run).read_text()
    assert "Not measured: it is gone" in page and "0.875" in page
    row = {"mode": "thinking", "data": "problems", "task": "math", "answers": 5, "bytes": 1234}
    by_bytes = {"bytes": [{**row, "student": 0.25, "teacher": 0.75}], "cost": agreement["cost"]}
    write_json(run.stage("student").path / "agreement.json", by_bytes)
    assert "<td>0.2500</td><td>0.7500</td><td>0.5000</td><td>5</td><td>1,234</td>" in build_report(run).read_text()
    text = (run.path / "report.md").read_text()
    assert "| thinking | problems | math | 5 | 1234 | 0.2500 | 0.7500 | 0.5000 |" in text
