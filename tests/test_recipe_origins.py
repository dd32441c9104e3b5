"""Where a model comes from: hub revisions and GGUF files, and what is refused of them before anything is begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.errors import PosttrainError
from posttrain.recipe.load import load_recipe
from posttrain.recipe.schema import ModelSpec

from .conftest import CHAIN

TOKENIZER = "tokenizer: {train_on: [problems], vocab_size: 320}"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The chain recipe, with a folder `weights` beside it that holds a GGUF file."""
    path = tmp_path / "recipe.yaml"
    path.write_text(CHAIN.read_text())
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "tiny.gguf").write_bytes(b"GGUF")
    return path


def model_of(recipe: Path, model: str) -> ModelSpec:
    return load_recipe(recipe, [f"model={model}"]).recipe.model


def told(recipe: Path, model: str) -> list[tuple[str, str]]:
    with pytest.raises(PosttrainError) as raised:
        model_of(recipe, model)
    return [(problem.what, problem.remedy) for problem in raised.value.problems]


def test_a_revision_of_a_hub_id_is_kept_and_looked_up_nowhere(recipe: Path) -> None:
    model = model_of(recipe, "{path: Qwen/Qwen3-0.6B, revision: 12e4567a}")
    assert (model.path, model.revision) == ("Qwen/Qwen3-0.6B", "12e4567a")


def test_a_revision_of_a_local_path_is_refused(recipe: Path) -> None:
    (recipe.parent / "weights" / "config.json").write_text("{}")
    (recipe.parent / "weights" / "pytorch_model.bin").write_text("")
    assert told(recipe, f"{{path: ./weights, revision: main, {TOKENIZER}}}") == [
        ("`revision` is for a hub id, and the path is local", "remove it")
    ]


def test_a_gguf_file_below_a_path(recipe: Path) -> None:
    model = model_of(recipe, f"{{path: ./weights, gguf_file: tiny.gguf, {TOKENIZER}}}")
    assert (model.path, model.gguf_file) == (str(recipe.parent / "weights"), "tiny.gguf")


def test_a_gguf_file_that_is_not_there_is_told_with_the_one_that_is(recipe: Path) -> None:
    folder = recipe.parent / "weights"
    assert told(recipe, f"{{path: ./weights, gguf_file: tinny.gguf, {TOKENIZER}}}") == [
        (f"{folder / 'tinny.gguf'} does not exist", f"did you mean {folder / 'tiny.gguf'}?")
    ]


def test_a_gguf_file_as_path_is_told_how_to_be_written(recipe: Path) -> None:
    folder = recipe.parent / "weights"
    assert told(recipe, f"{{path: ./weights/tiny.gguf, {TOKENIZER}}}") == [
        (f"{folder / 'tiny.gguf'} is a file, not a model's directory", f"write path: {folder} and gguf_file: tiny.gguf")
    ]


def test_neither_goes_with_an_architecture(recipe: Path) -> None:
    for option in ("revision: main", "gguf_file: tiny.gguf"):
        key = option.partition(":")[0]
        with pytest.raises(PosttrainError, match=f"`{key}` is for a model with a `path`"):
            load_recipe(recipe, [f"model.{key}=x"])
