"""What must stand before the first stage: data sets with their reserved part, and the models that stages start from."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from posttrain.data.prepare import prepare_data
from posttrain.model.artifacts import RunDir, is_complete, seal
from posttrain.model.policy import build_policy, family_of
from posttrain.recipe.references import start_of
from posttrain.recipe.schema import ModelSpec, Recipe, TrainedTokenizer

log = logging.getLogger("posttrain")


def prepare(recipe: Recipe, run: RunDir, base_dir: Path, *, quiet: bool = False) -> None:
    """Make what is missing of the data sets and starting models.

    Args:
        base_dir: the recipe's own folder: its relative paths begin there.
    """
    prepare_data(recipe, run, base_dir)
    if not is_complete(run.base):
        _build(recipe, run, recipe.model, run.base, recipe.seed)
    for name in recipe.stages:
        origin = start_of(recipe, name)
        directory = run.stage(name).path / "start"
        if origin[0] == "model" and not is_complete(directory):
            spec: ModelSpec = origin[1]
            if spec.architecture and spec.tokenizer is None:
                spec = spec.model_copy(update={"tokenizer": str(run.base)})
            _build(recipe, run, spec, directory, recipe.seed + 1)


def _build(recipe: Recipe, run: RunDir, spec: ModelSpec, directory: Path, seed: int) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    family = family_of(recipe.template)
    texts: list[str] = []
    if isinstance(spec.tokenizer, TrainedTokenizer):
        texts = list(_texts(run, spec.tokenizer))
        texts += [f" {flag}" for flag in family.flags.values()] * (len(texts) // 10)
    build_policy(spec, family, directory, seed=seed, texts=texts)
    seal(directory)


def _texts(run: RunDir, spec: TrainedTokenizer) -> Iterator[str]:
    """The text of the recipe's own data, as a tokenizer's training text."""
    from datasets import load_from_disk

    for name in spec.train_on:
        rows = load_from_disk(str(run.data(name)))
        for row in rows.select(range(min(spec.samples, len(rows)))):
            for message in row.get("prompt") or row.get("messages") or []:
                yield message["content"] or ""
                yield message.get("reasoning_content") or ""
            yield row.get("reasoning") or ""
            yield row.get("response") or ""
