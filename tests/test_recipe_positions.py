"""Answers that leave no room for a prompt are refused before anything is begun."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.errors import PosttrainError
from posttrain.recipe.load import load_recipe
from posttrain.recipe.positions import positions
from posttrain.recipe.schema import ModelSpec

from .conftest import CHAIN

STRETCHED = {"max_position_embeddings": 256, "rope_parameters": {"rope_type": "yarn", "factor": 4.0}}


def spec(**options: object) -> ModelSpec:
    return ModelSpec.model_validate({"architecture": "Qwen3ForCausalLM", **options})


def test_answers_longer_than_the_model_are_refused_where_they_are_asked_for() -> None:
    asked = ["evaluation.max_new_tokens=256", "stages.reasoning_rl.train.max_completion_length=300"]
    with pytest.raises(PosttrainError) as raised:
        load_recipe(CHAIN, asked)
    told = {problem.where: problem.what for problem in raised.value.problems}
    assert told == {
        f"--set {asked[0]}": "256 new tokens leave no room for a prompt: the model has 256 positions "
        "(max_position_embeddings)",
        f"--set {asked[1]}": "300 new tokens leave no room for a prompt: the model has 256 positions "
        "(max_position_embeddings)",
    }
    load_recipe(CHAIN, ["evaluation.max_new_tokens=255"])


def test_a_student_has_positions_of_its_own() -> None:
    with pytest.raises(PosttrainError, match="64 positions") as raised:
        load_recipe(CHAIN, ["stages.student_off_policy.model.config.max_position_embeddings=64", *ROLLOUTS])
    assert len(raised.value.problems) == 1  # the flagship's stages ask for as much, and have the room


ROLLOUTS = [f"stages.{name}.train.max_completion_length=70" for name in ("reasoning_rl", "student_on_policy")]


def test_positions_of_a_model(tmp_path: Path) -> None:
    assert positions(spec()) is None
    assert positions(spec(config={"max_position_embeddings": 256})) == 256
    assert positions(spec(config=STRETCHED)) == 1024
    assert positions(ModelSpec(path="Qwen/Qwen3-0.6B")) is None
    assert positions(ModelSpec(path=str(tmp_path))) is None
    (tmp_path / "config.json").write_text(json.dumps(STRETCHED))
    assert positions(ModelSpec(path=str(tmp_path))) == 1024
