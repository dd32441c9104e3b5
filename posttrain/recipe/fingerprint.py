"""The resolved recipe as text, and what the result of a stage, a data set and a starting model depend on.

A finished stage is kept as long as its fingerprint is the same. What belongs to it, and what does not:

- in: the stage's name (its seed is drawn from it), kind and options; the recipe's seed; the template; the model that
  the chain of stages starts from; every data set used by the stage or by a stage it depends on, with the content of its
  files; the data sets with reserved rows, because other rows are dropped for being too close to those; the stages that
  it starts from, learns from or builds its data with, and so on down to the base.
- out: `evaluation` and `evaluate_every` (they look, and leave the random numbers alone), `require` (a gate on figures,
  asked anew at each run), `engine` (the recipe stays, the engine changes), later stages and stages unused, the recipe's
  name, the place of a local file, and options of a trainer that only say what is logged, saved or shown.

Keys at their default are left out: a key that a later version adds changes no fingerprint. Nor does a default that a
later version changes, so a default that decides a result is changed by a new key, or told in the changelog.
"""

from __future__ import annotations

import glob
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from posttrain.recipe.endpoint import CARRIER
from posttrain.recipe.references import start_of
from posttrain.recipe.schema import ModelSpec, Recipe, TrainedTokenizer
from posttrain.recipe.source import CORE_SCHEMA, TAG
from posttrain.recipe.stage import Stage
from posttrain.recipe.teacher import each_teacher

LOOKS = (
    *("logging_", "log_", "report_to", "run_name", "project", "trackio_", "disable_tqdm", "num_completions_to_print"),
    *("save_", "push_to_hub", "hub_", "enable_jit_checkpoint"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
)
"""Beginnings of trainer options that change what is seen of a training, or how batches are fetched: not its result."""

WHOLE_FILE = 64 << 20  # bytes; of a larger file, blocks spread over its length are read
BLOCK = 1 << 20


class _Dumper(yaml.SafeDumper):
    """Quotes a text that either YAML 1.1 or the core schema would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, _pattern, _first in CORE_SCHEMA:
    _Dumper.add_implicit_resolver(TAG + _name, _pattern, _first)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text.strip("\n") else None
    if any(mark in text for mark in "\r\x85\u2028\u2029\ufeff"):
        style = '"'  # line breaks to some: only escapes carry them through
    return dumper.represent_scalar(TAG + "str", text, style=style)


_Dumper.add_representer(str, _text)


def dump_resolved(recipe: Recipe) -> str:
    """The recipe as YAML with every default in it; loading it gives an equal recipe. Trainers' options are as given."""
    value = recipe.model_dump(mode="json", by_alias=True)
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def recipe_fingerprint(recipe: Recipe, name: str) -> dict[str, Any]:
    """Everything in a recipe that decides the result of one stage, as JSON-able data.

    Returns:
        `stage`, `seed`, `template`, `options` (its own), `stages` (those of each stage it depends on), `models` and
        `data` (those that any of these uses).
    """
    chain = dependencies_of(recipe, name)
    stages = {other: _options(recipe.stages[other]) for other in recipe.stages if other in chain}
    models = _models(recipe, chain)
    origins = {other: _origin_text(recipe, other) for other in stages}
    used = {data for other in chain for _, data in recipe.stages[other].data_references()}
    used |= {
        data
        for spec in models.values()
        if isinstance(spec.tokenizer, TrainedTokenizer)
        for data in spec.tokenizer.train_on
    }
    if any(recipe.data[data].decontaminate != "off" for data in used):
        used |= {data for data, spec in recipe.data.items() if spec.reserve}
    fingerprint = {
        "stage": name,
        "seed": recipe.seed,
        "template": _plain(recipe.template),
        "options": {**stages[name], "starts_from": origins[name]},
        "stages": {other: {**stages[other], "starts_from": origins[other]} for other in stages if other != name},
        "models": {key: _model(spec) for key, spec in models.items()},
        "data": _data(recipe, used),
    }
    return _canonical(fingerprint)


def data_fingerprint(recipe: Recipe, name: str) -> dict[str, Any]:
    """What a run's data set is made from: its description with the content of its files, the recipe's seed, and the
    data sets whose reserved rows its own must keep away from."""
    used = {name}
    if recipe.data[name].decontaminate != "off":
        used |= {other for other, spec in recipe.data.items() if spec.reserve}
    return _canonical({"seed": recipe.seed, "data": _data(recipe, used)})


def model_fingerprint(recipe: Recipe, spec: ModelSpec) -> dict[str, Any]:
    """What a run's starting model is made from: its description, the template, and the texts of its tokenizer."""
    made: dict[str, Any] = {"seed": recipe.seed, "template": _plain(recipe.template), "model": _model(spec)}
    if isinstance(spec.tokenizer, TrainedTokenizer):
        made["texts"] = {name: data_fingerprint(recipe, name) for name in spec.tokenizer.train_on}
    if _borrows_tokenizer(spec):
        made["base"] = model_fingerprint(recipe, recipe.model)
    return _canonical(made)


def _borrows_tokenizer(spec: ModelSpec) -> bool:
    return spec.tokenizer is None and spec.architecture is not None


def _canonical(fingerprint: dict[str, Any]) -> dict[str, Any]:
    canonical: dict[str, Any] = json.loads(json.dumps(fingerprint, sort_keys=True))
    return canonical


def _data(recipe: Recipe, names: set[str]) -> dict[str, Any]:
    return {name: _with_content(_plain(recipe.data[name]), "path", "dataset") for name in sorted(names)}


def _origin_text(recipe: Recipe, name: str) -> str:
    origin = start_of(recipe, name)
    return (
        f"stage {origin[1]}" if origin[0] == "stage" else "its own model" if origin[0] == "model" else "the base model"
    )


def _plain(spec: Any) -> dict[str, Any]:
    # Without what equals its default: a key that a later version adds does not make a finished stage look changed.
    plain: dict[str, Any] = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return plain


def _model(spec: ModelSpec) -> dict[str, Any]:
    model = _with_content(_plain(spec), "path", "tokenizer")
    # The shape of a model with a path is there to plan by; the model brings its own.
    return {key: value for key, value in model.items() if key != "config" or spec.path is None}


def dependencies_of(recipe: Recipe, name: str) -> set[str]:
    """The stage and every stage its result comes from."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current in found:
            continue
        found.add(current)
        stage = recipe.stages[current]
        origin = start_of(recipe, current)
        others = [other for _, other in stage.stage_references()]
        others += [origin[1]] if origin[0] == "stage" else []
        others += [teacher for _, teacher in each_teacher(stage.teacher) if isinstance(teacher, str)]
        waiting += [other for other in others if other in recipe.stages]
    return found


def _models(recipe: Recipe, chain: set[str]) -> dict[str, ModelSpec]:
    """The models that the stages start from; one built without a tokenizer of its own takes the base model's."""
    models: dict[str, ModelSpec] = {}
    for name in recipe.stages:
        if name not in chain:
            continue
        origin = start_of(recipe, name)
        if origin[0] == "model":
            models[name] = origin[1]
        base_used = any(other == "base" for _, other in recipe.stages[name].stage_references())
        if origin[0] == "base" or base_used or (origin[0] == "model" and _borrows_tokenizer(origin[1])):
            models["base"] = recipe.model
    return models


def _options(stage: Stage) -> dict[str, Any]:
    """A stage's own options that decide its result. Where it starts is told apart, by what it comes to."""
    options = {"train": {}, **_plain(stage), "kind": stage.kind}
    for key in ("require", "evaluate_every", "start_from", "model"):
        options.pop(key, None)
    options["train"] = {key: value for key, value in options["train"].items() if not key.startswith(LOOKS)}
    if isinstance(options.get("logits"), dict):  # where they are stored decides nothing, and fills up meanwhile
        options["logits"] = {key: value for key, value in options["logits"].items() if key != "cache"}
    contents: dict[str, Any] = _deep_content(options)
    return contents


def _deep_content(value: Any) -> Any:
    """A stage's options with the content of every local file or folder in the place of its path."""
    if isinstance(value, dict):
        # A served model is the same wherever and however it is reached.
        reached = CARRIER if "endpoint" in value else ()
        return {key: _deep_content(entry) for key, entry in value.items() if key not in reached}
    if isinstance(value, list):
        return [_deep_content(entry) for entry in value]
    is_path = _is_local(value) and value.count("/") > 1 and os.path.exists(value)
    return content_of(value) if is_path else value


def _with_content(options: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The options with the content of local files in the place of their paths."""
    contents = {key: content_of(options[key]) for key in keys if _is_local(options.get(key))}
    return {**options, **contents}


def _is_local(value: Any) -> bool:
    return isinstance(value, str) and os.path.isabs(value)


@cache
def content_of(path: str) -> dict[str, str]:
    """Names, sizes and checksums of a file, of a folder's files, or of a pattern's; {} where there are none.

    A file over 64 MiB is read in 64 blocks spread evenly over it: seconds saved at every start of a run, for a change
    of the same length between the blocks that goes unseen.
    """
    root = Path(path)
    if root.is_dir():
        files = sorted(file for file in root.rglob("*") if file.is_file())
        return {str(file.relative_to(root)): _checksum(file) for file in files}
    files = sorted(map(Path, glob.glob(path, recursive=True))) if not root.is_file() else [root]
    return {file.name: _checksum(file) for file in files if file.is_file()}


def _checksum(file: Path) -> str:
    size = file.stat().st_size
    starts = range(0, size, BLOCK) if size <= WHOLE_FILE else [step * (size - BLOCK) // 63 for step in range(64)]
    value = 0
    with file.open("rb") as opened:
        for start in starts:
            opened.seek(start)
            value = zlib.crc32(opened.read(BLOCK), value)
    return f"{size} bytes, crc32 {value:08x}"


def fingerprint_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two fingerprints of a stage, a line each: `train.learning_rate: 0.001 -> 0.002`."""
    return [f"{key.removeprefix('options.')}: {before} -> {after}" for key, before, after in _differences(old, new, "")]


def _differences(old: Any, new: Any, key: str) -> Iterator[tuple[str, str, str]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}):
            yield from _differences(
                old.get(name, _ABSENT), new.get(name, _ABSENT), f"{key}.{name}" if key else str(name)
            )
    elif old != new:
        yield key, _shown(old), _shown(new)


_ABSENT = object()


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "(not there)"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
