"""Two tiny models with tokenizers of different words, given answers, and a `gold_distillation` stage over them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from posttrain.data.tokens import tokenize_conversations
from posttrain.model.artifacts import RunDir
from posttrain.model.policy import build_policy, load_model, load_tokenizer
from posttrain.recipe.kinds import stage_class
from posttrain.recipe.schema import DataSpec, EngineSpec, EvaluationSpec, ModelSpec, Recipe, TrainedTokenizer
from posttrain.recipe.stage import Stage, StageContext
from posttrain.tasks.arithmetic import Arithmetic, corpus
from posttrain.templates.families import Family, get_family

Stage.model_rebuild(_types_namespace={"ModelSpec": ModelSpec})
Recipe.model_rebuild()

QWEN3 = get_family("qwen3")
THINKS = dataclasses.replace(get_family("qwen3_thinking_2507"), stop_thinking=".</think>\n\n")
"""Its prompts end inside an open think block, so that budgets strike in an untrained model too."""
SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "intermediate_size": 64, "initializer_range": 0.3,
}  # fmt: skip
TRAIN = {
    "max_steps": 12, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "logging_steps": 1, "lmbda": 0.0,
    "max_length": 128, "max_completion_length": 8, "save_strategy": "no", "report_to": "none",
}  # fmt: skip


def models(run: RunDir, family: Family = QWEN3) -> None:
    """The student as the run's base, and a teacher whose tokenizer has other words."""
    for directory, size, seed, texts in (
        (run.base, 330, 1, list(corpus(300, 0))),
        (run.path / "teacher", 300, 2, ["other words, and numbers like 7 or 12, altogether"] * 50),
    ):
        tokenizer = TrainedTokenizer(train_on=["sums"], vocab_size=size)
        spec = ModelSpec(architecture="Qwen3ForCausalLM", config=SHAPE, tokenizer=tokenizer)
        build_policy(spec, family, directory, seed=seed, texts=texts)


def conversations(rows: int) -> list[dict[str, Any]]:
    """Worked sums, thinking."""
    return [
        {
            "messages": [
                *query["prompt"],
                {"role": "assistant", "content": query["response"], "reasoning_content": query["reasoning"]},
            ]
        }
        for query in Arithmetic().queries(rows, 0)
    ]


def write_data(run: RunDir, given: Sequence[Mapping[str, Any]], family: Family, **options: Any) -> None:
    """The conversations as the stage's data, in place of a teacher's answers."""
    rows = tokenize_conversations(
        Dataset.from_list(list(given)), load_tokenizer(run.base), family, history="strip", **options
    )
    rows.save_to_disk(str(run.stage("student").data / "train"))


def context(run: RunDir, family: Family = QWEN3, **options: Any) -> StageContext:
    """The context of the stage with these options."""
    stage = stage_class("gold_distillation").model_validate(
        {
            "teacher": str(run.path / "teacher"),
            "queries": {"from": "sums"},
            **options,
            "train": {**TRAIN, **options.get("train", {})},
        }
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
    return StageContext(
        **given, start=run.base, teacher=run.path / "teacher", family=family, kind=family.kind, quiet=True
    )


def trainer(run: RunDir, family: Family = QWEN3, **options: Any) -> Any:
    """The trainer of the stage with these options."""
    where = context(run, family, **options)
    stage = where.recipe.stages["student"]
    return stage.make_trainer(where, load_model(run.base), load_tokenizer(run.base), None)
