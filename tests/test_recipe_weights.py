"""A model's directory with damaged weights is named, file by file, before anything is imported or begun."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from posttrain.errors import PosttrainError
from posttrain.recipe.load import load_recipe
from posttrain.recipe.weights import INDEX, weight_faults

from .conftest import CHAIN


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The files of a model in two shards."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("a", "b"):
        save_file(
            {name: torch.ones(64, 8), f"{name}2": torch.ones(3)}, folder / f"{name}.safetensors", {"format": "pt"}
        )
    places = {tensor: f"{tensor[0]}.safetensors" for tensor in ("a", "a2", "b", "b2")}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_whole_weights_have_no_fault(model: Path) -> None:
    assert list(weight_faults(model)) == []
    save_file({}, model / "empty.safetensors")
    assert list(weight_faults(model)) == []


@pytest.mark.parametrize("size", [0, 7, 8, 40, 500, 1500])
def test_a_truncated_file_is_named_wherever_it_was_cut(model: Path, size: int) -> None:
    path = model / "b.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    (fault,) = weight_faults(model)
    assert fault.startswith(f"{path} is ") and ("cut off" in fault or "damaged" in fault)


def test_other_damage_is_named_too(model: Path) -> None:
    (model / "a.safetensors").unlink()
    with (model / "b.safetensors").open("ab") as file:
        file.write(b"x")
    missing, longer = weight_faults(model)
    assert missing == f"{model / 'a.safetensors'} is missing: {INDEX} names it"
    assert longer.startswith(f"{model / 'b.safetensors'} is damaged: ")
    path = model / "b.safetensors"
    path.write_bytes(b"\x04" + bytes(7) + b"nope")
    assert "its header cannot be read" in list(weight_faults(model))[1]
    (model / INDEX).write_text("[]")
    assert list(weight_faults(model)) == [f"{model / INDEX} is damaged: it names no weights"]


def test_a_recipe_is_refused_with_the_files_name(model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    shutil.copy(CHAIN, recipe)
    path = model / "b.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PosttrainError) as raised:
        load_recipe(recipe, ["model={path: ./model}"])
    assert [problem.what.split(":")[0] for problem in raised.value.problems] == [f"{path} is damaged"]
    assert raised.value.problems[0].where == "--set model={path: ./model}"
