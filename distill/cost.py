"""What a distillation cost, read from what its stage has left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from posttrain.model.artifacts import StageDir, read_json, read_rows


def cost(stage: StageDir) -> dict[str, Any]:
    """Tokens of teacher and student, seconds and FLOPs. None where a stage of its kind has no such figure.

    Returns:
        `teacher_answered` and `teacher_answers` (off-policy: what it wrote for this stage), `student_sampled`
        (on-policy: prompts and answers that went through generation), `trained` (tokens through forward and backward,
        the teacher's forward on-policy), `data_seconds`, `train_seconds`, `flops` (of training).
    """
    training = read_json(stage.path / "training.json") or {}
    manifest = read_json(stage.data / "manifest.json") or {}
    last = _last_figures(stage.metrics)
    # A second student finds the answers there: they cost it nothing.
    shared = ((manifest.get("funnel") or {}).get("logprobs") or {}).get("answers_were_there", False)
    answers, tokens = (0, 0) if shared else _answered(stage.data / "completions")
    return {
        "teacher_answers": answers or None,
        "teacher_answered": tokens or None,
        "student_sampled": last.get("tokens/rollout"),
        "trained": last.get("tokens/train") or last.get("num_tokens"),
        "data_seconds": manifest.get("seconds"),
        "train_seconds": training.get("train_seconds"),
        "flops": training.get("flops"),
    }


def _last_figures(path: Path) -> dict[str, Any]:
    """The latest of each figure that grows."""
    found: dict[str, Any] = {}
    for row in read_rows(path):
        found |= {key: value for key, value in row.items() if key.startswith(("tokens/", "num_"))}
    return found


def _answered(directory: Path) -> tuple[int, int]:
    """Answers that were sampled, dropped ones included, and their tokens."""
    answers = tokens = 0
    for path in sorted(directory.rglob("chunk-*.jsonl")):
        with path.open(encoding="utf-8") as file:
            next(file, None)  # what they were made with
            for line in file:
                answers += 1
                tokens += int(json.loads(line)["tokens"])
    return answers, tokens
