"""A finished run written by hand: what the report is drawn from, without a training."""

from __future__ import annotations

import json
from pathlib import Path

from posttrain.evaluation.scores import flat_score
from posttrain.model.artifacts import RunDir, write_json, write_text

RECIPE = """\
name: synthetic
data: {problems: {task: arithmetic, size: 10}}
stages:
  cold_start: {kind: sft}
  student: {kind: off_policy_distillation}
  student_on_policy: {kind: on_policy_distillation, start_from: student}
  student_rl: {kind: grpo, start_from: student}
"""


AGREEMENT = {
    "rows": [
        {
            "mode": "thinking",
            "data": "problems",
            "task": "arithmetic",
            "answers": 32,
            "tokens": 1234,
            "top1": 0.875,
            "divergence": 0.0625,
        },
        {
            "mode": "non_thinking",
            "data": "problems",
            "task": "",
            "answers": 32,
            "tokens": 99,
            "top1": 0.5,
            "divergence": 1.5,
        },
    ],
    "tokens": [
        {
            "mode": "thinking",
            "data": "problems",
            "task": "arithmetic",
            "divergence": 3.25,
            "before": "<|im_start|>assistant\n<think>\n7 plus <b>5</b> is",
            "token": " 13",
            "student": [[" 13", 0.75], ["\n", 0.2]],
            "teacher": [[" 12", 0.95], [" 价", 0.03]],
        }
    ],
    "top_k": 20,
    "cost": {
        "teacher_answers": 128,
        "teacher_answered": 45678,
        "student_sampled": 34567,
        "trained": 23456,
        "data_seconds": 1.5,
        "train_seconds": 10.0,
        "flops": 1.5e12,
    },
}


def scores(right: int, n: int = 100) -> dict[str, object]:
    accuracy = flat_score([1.0] * right + [0.0] * (n - right))
    figures = {
        "accuracy": accuracy,
        "pass@4": flat_score([1.0] * n),
        "thinking_tokens": {"mean": 20.5, "low": 18.04, "high": 22.96, "p50": 20, "p95": 31, "n": n},
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
    }
    write_json(directory.record, record)
    step = {"source": "problems", "step": "wrong_answer", "in": 10, "kept": 9, "dropped": 1, "why": {"wrong": 1}}
    write_json(directory.data / "manifest.json", {"funnel": {"steps": [step], "tokens": {"supervised_tokens": 1234}}})
    example = {"source": "problems", "step": "wrong_answer", "verdict": "dropped", "why": "wrong", "detail": "it is 2"}
    write_text(directory.data / "examples.jsonl", json.dumps({**example, "query": "<i>1+1</i>", "content": "3"}) + "\n")
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


def write_run(path: Path) -> RunDir:
    """Four stages: a cold start, a student, and the student trained further in two ways."""
    run = RunDir(path)
    write_text(run.recipe, RECIPE)
    facts = {"rows_read": 10, "filtered_out": 0, "bad_rows_skipped": 0, "reserved": 2, "for_training": 7}
    close = {"method": "key", "dropped": {"same_key": 1}}
    write_json(run.data("problems") / "funnel.json", {**facts, "decontamination": close})
    write_json(run.path / "clock.json", {"wall_seconds": 60.0, "preparation_seconds": 3.0})
    write_stage(run, "cold_start", "base", 60, [])
    write_stage(run, "student", "base", 50, [])
    write_stage(run, "student_on_policy", "student", 90, [(0.0, 0.5), (1.0, 0.7), (10.0, 0.9)])
    write_stage(run, "student_rl", "student", 40, [(0.0, 0.5), (20.0, 0.65)])
    write_json(run.stage("student_on_policy").path / "agreement.json", AGREEMENT)
    return run
