"""A tiny SFT stage for tests: its recipe, its run with data and a base model, and what it writes, read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet  # type: ignore[import-untyped,unused-ignore]
import pytest
from datasets import load_from_disk
from pydantic import create_model

from posttrain.data.prepare import prepare_data
from posttrain.model.artifacts import RunDir, seal
from posttrain.model.policy import build_policy, family_of, load_model, load_tokenizer
from posttrain.recipe.kinds import stage_class
from posttrain.recipe.schema import Recipe
from posttrain.recipe.stage import StageContext
from posttrain.sft.stage import SftStage
from posttrain.templates.families import Kind, get_family

stage_class("sft")  # completes the class's forward references, as loading a recipe does
QWEN3 = get_family("qwen3")

BASE: dict[str, Any] = {
    "architecture": "Qwen3ForCausalLM",
    "config": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "intermediate_size": 128,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
    "tokenizer": {"train_on": ["problems"], "vocab_size": 320},
}
DATA: dict[str, Any] = {
    "problems": {
        "task": "arithmetic",
        "size": 60,
        "options": {"steps": [1, 2]},
        "reserve": 4,
        "decontaminate": "key",
    }
}
TRAIN: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": 4, "report_to": "none", "max_length": 128}


def recipe_of(stages: dict[str, Any], data: dict[str, Any] | None = None, **more: Any) -> Recipe:
    """A recipe with SFT stages alone, so that these tests stand without the other kinds."""
    model = create_model("SftRecipe", __base__=Recipe, stages=(dict[str, SftStage], ...))
    given = {"name": "r", "model": BASE, "data": data or DATA, "evaluation": {"data": ["problems"]}, "stages": stages}
    return model.model_validate({**given, "engine": {"cpu": True, "threads": 1}, **more})


def sft(*samples: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"kind": "sft", "samples": list(samples), "train": TRAIN, **more}


def context_of(recipe: Recipe, run: RunDir, name: str, kind: Kind = "base", start: Path | None = None) -> StageContext:
    context = StageContext(
        recipe=recipe,
        name=name,
        run=run,
        dir=run.stage(name),
        start=start or run.base,
        teacher=None,
        family=family_of(recipe.template),
        kind=kind,
        quiet=True,
    )
    context.dir.data.mkdir(parents=True, exist_ok=True)
    return context


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run whose data and base model stand."""
    run = RunDir(tmp_path_factory.mktemp("run"))
    recipe = recipe_of({"only": sft({"data": "problems"})})
    prepare_data(recipe, run, Path())
    rows = load_from_disk(str(run.data("problems")))
    texts = [text for row in rows for text in (row["prompt"][0]["content"], row["reasoning"], row["response"])]
    build_policy(recipe.model, QWEN3, run.base, seed=0, texts=texts)
    seal(run.base)
    return run


@pytest.fixture
def run(prepared: RunDir, tmp_path: Path) -> Iterator[RunDir]:
    """A run of its own over the same data and base model."""
    for name in ("base", "data", "reserved"):
        (tmp_path / name).symlink_to(prepared.path / name)
    yield RunDir(tmp_path)


def build(context: StageContext) -> dict[str, Any]:
    return context.recipe.stages[context.name].build_data(context)


def trainer_of(context: StageContext) -> Any:
    stage = context.recipe.stages[context.name]
    return stage.make_trainer(context, load_model(context.start), load_tokenizer(context.start), None)


def parquet(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


FROM_LEARN: dict[str, Any] = {
    "queries_of": "learn",
    "from": "learn",
    "samples": 3,
    "keep": 1,
    "max_new_tokens": 40,
    "chunk": 6,
}
