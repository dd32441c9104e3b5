"""What must stand before the first stage: data sets with their reserved part, and the models that stages start from."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.data.prepare import prepare_data
from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import MANIFEST, RunDir, is_complete, is_made_from, read_json, seal
from posttrain.model.policy import build_policy, family_of
from posttrain.recipe.fingerprint import data_fingerprint, fingerprint_difference, model_fingerprint
from posttrain.recipe.references import start_of
from posttrain.recipe.schema import ModelSpec, Recipe, TrainedTokenizer

log = logging.getLogger("posttrain")


def prepare(recipe: Recipe, run: RunDir, base_dir: Path, *, quiet: bool = True) -> None:
    """Make what is missing of the data sets and starting models, and anew what was made from something else.

    Args:
        base_dir: the recipe's own folder: its relative paths begin there.
        quiet: show no progress.
    """
    made_of = {name: data_fingerprint(recipe, name) for name in recipe.data}
    prepare_data(recipe, run, base_dir, sources=made_of, quiet=quiet)
    for directory, spec in _models(recipe, run):
        made_from = model_fingerprint(recipe, spec)
        if not is_made_from(directory, made_from):
            _build(recipe, run, spec, directory)
            seal(directory, made_from=made_from)


def _models(recipe: Recipe, run: RunDir) -> Iterator[tuple[Path, ModelSpec]]:
    """The places of the models that stages start from, and what they are made from; the base model first."""
    yield run.base, recipe.model
    for name in recipe.stages:
        origin = start_of(recipe, name)
        if origin[0] == "model":
            yield run.stage(name).start, origin[1]


def sources(recipe: Recipe, run: RunDir) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every data set and starting model of a run: its place, and what the recipe makes it from."""
    for name in recipe.data:
        yield run.data(name), data_fingerprint(recipe, name)
    for directory, spec in _models(recipe, run):
        yield directory, model_fingerprint(recipe, spec)


def refuse_others(recipe: Recipe, run: RunDir) -> None:
    """Keep what stands in a run, for a command that does not redo its stages.

    Raises:
        PosttrainError: data sets or starting models that stand there were made from something else.
    """
    problems = []
    for directory, made_from in sources(recipe, run):
        if is_complete(directory) and not is_made_from(directory, made_from):
            before = read_json(directory / MANIFEST)["made_from"] or {}
            for line in fingerprint_difference(before, made_from):
                what = f"{directory} was made from another recipe: {line}"
                problems.append(Problem(what, remedy="undo the change, or choose another --output"))
    if problems:
        raise PosttrainError(problems)


def _build(recipe: Recipe, run: RunDir, spec: ModelSpec, directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    family = family_of(recipe.template)
    seed = recipe.seed + (directory != run.base)
    if spec.architecture and spec.tokenizer is None:
        spec = spec.model_copy(update={"tokenizer": str(run.base)})
    texts: list[str] = []
    if isinstance(spec.tokenizer, TrainedTokenizer):
        texts = list(_texts(run, spec.tokenizer))
        texts += [f" {flag}" for flag in family.flags.values()] * (len(texts) // 10)
    build_policy(spec, family, directory, seed=seed, texts=texts)


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
