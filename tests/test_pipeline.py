"""The run as a whole: killed and resumed, changed under its feet, gated, restarted."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from posttrain.model.artifacts import MANIFEST, seal, write_text
from posttrain.run.train import newest_whole_checkpoint

from . import warm
from .conftest import CHAIN, posttrain

STAGES = ["cold_start", "reasoning_rl", "fusion", "student_off_policy", "student_on_policy", "student_rl"]

# Each in another kind of stage: after a checkpoint, in the middle of a generation buffer that dynamic sampling filled
# (steps_per_generation is 2), while a checkpoint is being written, and while the data of a stage is being made.
KILLS = [
    "reasoning_rl/checkpoints/checkpoint-3/manifest.json",
    "fusion/checkpoints/checkpoint-80",
    "student_on_policy/checkpoints/checkpoint-2/manifest.json",
    "student_on_policy/training.json",
]


def kill_when_there(arguments: list[str], path: Path, output: Path) -> None:
    """Start the command, and kill -9 it as soon as the path exists."""
    process = warm.start(arguments, output)
    assert process.pid is not None
    while not path.exists():
        assert process.is_alive(), f"the run ended before {path} was there"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()


@pytest.mark.timeout(900)  # a process for every kill
def test_killed_at_any_moment_ends_in_the_same_weights(finished_run: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    command = ["run", str(CHAIN), "--output", str(directory)]
    for place in KILLS:
        kill_when_there(command, directory / "stages" / place, tmp_path)
    last = posttrain(*command)
    assert last.returncode == 0, last.stderr
    assert "cold_start: finished already" in last.stderr and "fusion: finished already" in last.stderr
    for stage in STAGES:
        ours, theirs = (run / "stages" / stage for run in (directory, finished_run))
        for file in ("model/model.safetensors", "model/tokenizer.json"):
            assert (ours / file).read_bytes() == (theirs / file).read_bytes(), f"{stage}: {file}"
        figures = [json.loads((side / "evaluation.json").read_text())["scores"] for side in (ours, theirs)]
        assert figures[0] == figures[1], stage
        steps = [[row["step"] for row in lines(side / "metrics.jsonl")] for side in (ours, theirs)]
        assert steps[0] == steps[1], f"{stage}: figures of a killed step were kept or lost"


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def test_a_finished_run_is_left_as_it_is(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.glob("stages/*/**/*") if path.is_file()}
    done = posttrain("run", CHAIN, "--output", run)
    assert done.returncode == 0, done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in run.glob("stages/*/**/*") if path.is_file()}


def test_report_json_of_a_real_run(finished_run: Path) -> None:
    report = json.loads((finished_run / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == STAGES
    for stage in report["stages"]:
        assert stage["train_seconds"] > 0
        assert set(stage["scores"]) >= {"thinking", "non_thinking"}
        assert 0 <= stage["scores"]["thinking"]["accuracy"] <= 1
    assert [point["thinking_budget"] for point in report["budget_curve"]] == [0, 4]
    against = report["distillation_vs_rl"]
    assert [point["step"] for point in against["on_policy"]] == [0, 3, 6]
    assert [point["step"] for point in against["rl"]] == [0, 1, 2]
    assert all(point["flops"] > 0 for point in against["rl"][1:] + against["on_policy"][1:])
    assert "think_follow" in report["stages"][2]["scores"]


def test_a_recipe_changed_under_a_finished_stage_is_refused(run: Path) -> None:
    done = posttrain("run", CHAIN, "--output", run, "--set", "stages.fusion.train.learning_rate=1e-4")
    assert done.returncode == 2
    assert "stage fusion is finished, and the recipe has changed under it" in done.stderr
    assert "0.003" in done.stderr and "0.0001" in done.stderr and "--restart-from fusion" in done.stderr
    assert "Traceback" not in done.stderr
    assert (run / "stages/fusion/stage.json").exists()


def test_restart_from_redoes_a_stage_and_all_after_it(run: Path) -> None:
    weights = (run / "stages/student_on_policy/model/model.safetensors").read_bytes()
    change = ["--set", "stages.student_rl.train.learning_rate=1e-2"]
    done = posttrain("run", CHAIN, "--output", run, *change, "--restart-from", "student_rl")
    assert done.returncode == 0, done.stderr
    assert (run / "stages/student_on_policy/model/model.safetensors").read_bytes() == weights
    assert "learning_rate: 0.01" in (run / "recipe.yaml").read_text()


def test_a_missed_gate_stops_the_run_with_its_report(run: Path) -> None:
    (run / "report.html").unlink()
    demand = 'stages.fusion.require={thinking.accuracy: ">= 1.0"}'
    done = posttrain("run", CHAIN, "--output", run, "--set", demand)
    assert done.returncode == 3
    assert "stage fusion: thinking.accuracy is" in done.stderr and ">= 1 is required" in done.stderr
    assert (run / "report.html").exists()


def test_a_damaged_model_of_a_finished_stage_is_named(run: Path) -> None:
    weights = run / "stages/cold_start/model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    done = posttrain("run", CHAIN, "--output", run)
    assert done.returncode == 2
    assert "model.safetensors" in done.stderr and "bytes" in done.stderr and "expected" in done.stderr


def test_the_newest_whole_checkpoint_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (5, 10, 15, 20):
        write_text(tmp_path / f"checkpoint-{step}" / "model.safetensors", f"weights of step {step}")
        seal(tmp_path / f"checkpoint-{step}", step=step)
    (tmp_path / "checkpoint-20" / MANIFEST).unlink()
    (tmp_path / "checkpoint-15" / "model.safetensors").write_text("weights of stEp 15")
    with caplog.at_level(logging.WARNING):
        found = newest_whole_checkpoint(tmp_path)
    assert found is not None and found.name == "checkpoint-10"
    assert "checkpoint-20 is damaged or incomplete" in caplog.text
    assert "checkpoint-15 is damaged or incomplete" in caplog.text and "checksum differs" in caplog.text


def test_models_load_as_they_are(finished_run: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = finished_run / "stages/fusion/model"
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "7 a+5 =?"}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert text == "<|im_start|>user\n7 a+5 =?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    out = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=4)
    assert out.shape[1] > 0
    assert model.generation_config.temperature == 0.6 and model.generation_config.top_k == 20
    assert "- **stage**: fusion\n- **kind**: sft\n" in (directory / "README.md").read_text()
    student = (finished_run / "stages/student_on_policy/model/README.md").read_text()
    assert "- **kind**: on_policy_distillation\n" in student and "- **teacher**: fusion\n" in student


def test_check_tells_what_a_run_would_refuse(finished_run: Path) -> None:
    before = sorted(path.name for path in finished_run.iterdir())
    done = posttrain("check", CHAIN, "--output", finished_run)
    assert done.returncode == 0, done.stderr
    assert "6 of 6 stages finished" in done.stdout
    changed = posttrain("check", CHAIN, "--output", finished_run, "--set", "stages.fusion.train.learning_rate=1e-3")
    assert changed.returncode == 2
    assert "stage fusion is finished, and the recipe has changed under it: train.learning_rate" in changed.stderr
    assert sorted(path.name for path in finished_run.iterdir()) == before


def test_a_stage_is_asked_the_recipes_suites(run: Path) -> None:
    named = ["--set", "evaluation.suites=[length-ctrl]", "--set", "evaluation.suite_limit=2", "--output", str(run)]
    done = posttrain("eval", CHAIN, "--model", "fusion", "--quiet", *named)
    assert done.returncode == 0, done.stderr
    assert re.search(r"thinking_tokens\W+\d+\.\d \(", done.stdout)
    scores = json.loads((run / "evaluations/fusion/evaluation.json").read_text())["scores"]
    assert all(scores[mode]["by_suite"]["length-ctrl"]["n"] == 2 for mode in ("thinking", "non_thinking"))
    assert (run / "evaluations/fusion/suites/length-ctrl/thinking/samples.md").exists()
