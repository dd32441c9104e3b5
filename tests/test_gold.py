"""Distillation across tokenizers: TRL's GOLD over a teacher's answers, with two tokenizers of different words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from posttrain.model.artifacts import RunDir, write_text
from posttrain.model.policy import build_policy, load_model, load_tokenizer
from posttrain.recipe.kinds import stage_class
from posttrain.recipe.schema import DataSpec, EngineSpec, EvaluationSpec, ModelSpec, Recipe, TrainedTokenizer
from posttrain.recipe.stage import StageContext
from posttrain.tasks.arithmetic import Arithmetic, corpus
from posttrain.templates.families import get_family

QWEN3 = get_family("qwen3")
SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "intermediate_size": 64, "initializer_range": 0.3,
}  # fmt: skip
TRAIN = {
    "max_steps": 12, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "logging_steps": 1, "lmbda": 0.0,
    "max_length": 128, "max_completion_length": 8, "save_strategy": "no", "report_to": "none",
}  # fmt: skip


def model(directory: Path, size: int, seed: int, texts: list[str]) -> None:
    tokenizer = TrainedTokenizer(train_on=["sums"], vocab_size=size)
    spec = ModelSpec(architecture="Qwen3ForCausalLM", config=SHAPE, tokenizer=tokenizer)
    build_policy(spec, QWEN3, directory, seed=seed, texts=texts)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = RunDir(tmp_path_factory.mktemp("run"))
    model(run.base, 330, 1, list(corpus(300, 0)))
    model(run.path / "teacher", 300, 2, ["other words, and numbers like 7 or 12, altogether"] * 50)
    rows = []
    for query in Arithmetic().queries(24, 0):
        answer = {"role": "assistant", "content": query["response"], "reasoning_content": query["reasoning"]}
        rows.append({"messages": [*query["prompt"], answer]})
    data = run.stage("student").data
    data.mkdir(parents=True)
    Dataset.from_list(rows).to_json(str(data / "samples.jsonl"))
    write_text(run.path / "done", "")
    return run.path


def trainer(root: Path, **train: Any) -> Any:
    run = RunDir(root)
    stage = stage_class("gold_distillation").model_validate(
        {"teacher": str(root / "teacher"), "queries": {"from": "sums"}, "train": {**TRAIN, **train}}
    )
    recipe = Recipe(
        name="test",
        model=ModelSpec(path="nowhere"),
        data={"sums": DataSpec(task="arithmetic", size=24)},
        evaluation=EvaluationSpec(data=["sums"]),
        engine=EngineSpec(cpu=True),
        stages={"student": stage},
    )
    given: dict[str, Any] = {"recipe": recipe, "name": "student", "run": run, "dir": run.stage("student")}
    where = StageContext(**given, start=run.base, teacher=root / "teacher", family=QWEN3, kind="hybrid", quiet=True)
    return stage.make_trainer(where, load_model(run.base), load_tokenizer(run.base), None)


def test_the_tokenizers_are_really_two(root: Path) -> None:
    ours, theirs = (load_tokenizer(root / name) for name in ("base", "teacher"))
    assert ours.get_vocab() != theirs.get_vocab()
    assert ours("7 c+5 =?").input_ids != theirs("7 c+5 =?").input_ids


def test_a_student_learns_from_a_teacher_with_other_tokens(root: Path) -> None:
    made = trainer(root)
    before = {name: value.clone() for name, value in made.teacher_model.state_dict().items()}
    made.train()
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    assert all(loss == loss and loss > 0 for loss in losses)
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3]), losses
    assert all(torch.equal(value, before[name]) for name, value in made.teacher_model.state_dict().items())


def test_it_learns_on_its_own_answers_too(root: Path) -> None:
    made = trainer(root, lmbda=1.0, max_steps=2)
    made.train()
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    assert len(losses) == 2 and all(loss == loss for loss in losses)
