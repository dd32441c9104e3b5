"""Models that only answer compute on the accelerator, where there is one. Here the device `meta` stands for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.evaluation import evaluate
from posttrain.model.artifacts import RunDir
from posttrain.model.policy import family_of, load_model
from posttrain.recipe.load import load_recipe
from posttrain.run.model_directory import load

from .vllm_model import write_tiny_model

RECIPE = Path(__file__).parent / "recipes" / "chain.yaml"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("placed") / "model")


@pytest.fixture(autouse=True)
def accelerator(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))


def test_a_model_of_the_command_line(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, tokenizer = load(model)
    assert policy.device.type == "meta"
    half = tmp_path / "half"
    load_model(model).to(torch.bfloat16).save_pretrained(str(half))
    tokenizer.save_pretrained(str(half))
    assert load(half)[0].dtype == torch.bfloat16
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert load(half)[0].dtype == torch.float32


@pytest.mark.parametrize(("cpu", "device"), [("true", "cpu"), ("false", "meta")])
def test_a_stages_model_when_it_is_scored(
    cpu: str, device: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(RECIPE, [f"engine.cpu={cpu}"]).recipe
    asked: list[Any] = []

    def score(generate: Any, *rest: Any) -> tuple[dict[str, Any], str]:
        asked.append(generate)
        return {"scores": {}}, ""

    monkeypatch.setattr(evaluate, "score_policy", score)
    family = family_of(recipe.template)
    evaluate.evaluate_model(
        model,
        recipe=recipe,
        spec=recipe.model,
        run=RunDir(tmp_path),
        family=family,
        kind="hybrid",
        budgets=[],
        label="x",
        suites_in=tmp_path,
    )
    (generate,) = asked
    assert generate._model.device.type == device
