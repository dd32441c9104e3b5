"""Paths in a recipe: relative ones begin at the recipe's own folder, and one that looks local never goes to a hub."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain.data.locations import looks_local
from posttrain.recipe.endpoint import EndpointSpec
from posttrain.recipe.references import Parts, models_of
from posttrain.recipe.schema import ModelSpec
from posttrain.recipe.stage import Fault
from posttrain.recipe.teacher import each_teacher
from posttrain.recipe.weights import INDEX, directory_faults, has_weights
from posttrain.recipe.words import Loc, nearest

RELATIVE = ("./", "../", "~/")
NO_PATHS = ("train", "require")  # of a stage
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def absolute(text: str, folder: Path) -> str:
    return os.path.normpath(folder / Path(text).expanduser())


def with_absolute_paths(value: Any, folder: Path) -> Any:
    """A recipe's value with its local paths absolute: the resolved recipe means the same wherever it is read."""
    if not isinstance(value, dict):
        return value
    stages = _mapping(value.get("stages"))
    made = dict(value)
    if "model" in value:
        made["model"] = _model(value["model"], folder)
    if isinstance(value.get("data"), dict):
        made["data"] = {name: _data(spec, folder) for name, spec in value["data"].items()}
    if stages:
        made["stages"] = {name: _stage(stage, stages, folder) for name, stage in stages.items()}
    return made


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, dict) else {}


def _replace(value: Any, key: str, folder: Path, *, always: bool = False) -> Any:
    text = _mapping(value).get(key)
    if not isinstance(text, str) or not text or not (always or looks_local(text, folder)):
        return value
    return {**value, key: absolute(text, folder)}


def _model(model: Any, folder: Path) -> Any:
    return _replace(_replace(model, "path", folder), "tokenizer", folder)


def _data(spec: Any, folder: Path) -> Any:
    if isinstance(spec, dict) and "options" in spec:
        spec = {**spec, "options": _deep(spec["options"], folder)}
    return _replace(_replace(spec, "path", folder, always=True), "dataset", folder)


def _stage(stage: Any, stages: Mapping[Any, Any], folder: Path) -> Any:
    if not isinstance(stage, dict):
        return stage
    made = {key: value if key in NO_PATHS else _deep(value, folder) for key, value in stage.items()}
    if "model" in made:
        made["model"] = _model(made["model"], folder)
    if "teacher" in made:
        made["teacher"] = _teacher(made["teacher"], stages, folder)
    return made


def _teacher(value: Any, stages: Mapping[Any, Any], folder: Path) -> Any:
    """A teacher with its paths absolute: a text, a served one, or several by name."""
    if isinstance(value, str):
        return value if value in stages else _replace({"teacher": value}, "teacher", folder)["teacher"]
    if not isinstance(value, dict):
        return value
    made = _replace(value, "tokenizer", folder)
    for key in ("by_data", "by_task"):
        if isinstance(made.get(key), dict):
            made = {**made, key: {name: _teacher(one, stages, folder) for name, one in made[key].items()}}
    return {**made, "default": _teacher(made["default"], stages, folder)} if "default" in made else made


def _deep(value: Any, folder: Path) -> Any:
    """A part of a stage with its paths absolute: a text that begins with `./`, `../` or `~/` is one, wherever it is."""
    if isinstance(value, dict):
        return {key: _deep(entry, folder) for key, entry in value.items()}
    if isinstance(value, list):
        return [_deep(entry, folder) for entry in value]
    return absolute(value, folder) if isinstance(value, str) and value.startswith(RELATIVE) else value


def written_path_faults(value: Any, folder: Path, loc: Loc = ("stages",)) -> Iterator[Fault]:
    """Paths inside stages, as written, that lead nowhere."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        if len(loc) != 2 or key not in (*NO_PATHS, "teacher", "model"):
            yield from written_path_faults(entry, folder, (*loc, key))
    if isinstance(value, str) and value.startswith(RELATIVE) and not os.path.exists(absolute(value, folder)):
        yield _missing(absolute(value, folder), loc)


def path_faults(parts: Parts) -> Iterator[Fault]:
    """Paths of a recipe (made absolute) that lead nowhere, and names that are neither a path nor a hub id."""
    for loc, model in models_of(parts):
        yield from _model_path_faults(model, loc)
    for name, stage in parts.stages.items():
        for loc, teacher in each_teacher(stage.teacher):
            here: Loc = ("stages", name, "teacher", *loc)
            if isinstance(teacher, EndpointSpec):
                yield from _tokenizer_faults(teacher.tokenizer, (*here, "tokenizer"))
            elif teacher not in parts.stage_names:
                yield from _model_directory_faults(teacher, here, stages=parts.stage_names)


def _model_path_faults(model: ModelSpec, loc: Loc) -> Iterator[Fault]:
    if model.path is not None:
        yield from _model_directory_faults(model.path, (*loc, "path"), gguf=model.gguf_file, made_by=model.made_by)
        path = Path(model.path)
        own = any((path / file).exists() for file in TOKENIZER_FILES)
        if (path / "config.json").exists() and model.tokenizer is None and not own:
            what = f"{path} has no tokenizer, and the recipe names none"
            yield Fault((*loc, "path"), what, remedy="give `tokenizer:` (a path, a hub id, or train_on)")
    if isinstance(model.tokenizer, str):
        yield from _tokenizer_faults(model.tokenizer, (*loc, "tokenizer"))


def _tokenizer_faults(text: str | None, here: Loc) -> Iterator[Fault]:
    path = Path(text or "")
    if text is None:
        return
    if not path.is_absolute():
        yield from _hub_faults(text, here, [])
    elif not path.exists():
        yield _missing(text, here)
    elif not any((path / file).exists() for file in TOKENIZER_FILES):
        yield Fault(here, f"{path} holds no tokenizer", remedy=f"it needs one of {', '.join(TOKENIZER_FILES)}")


def _model_directory_faults(
    text: str, loc: Loc, *, gguf: str | None = None, made_by: str | None = None, stages: list[str] | None = None
) -> Iterator[Fault]:
    path = Path(text)
    if not path.is_absolute():
        yield from _hub_faults(text, loc, stages or [])
    elif not path.exists():
        yield _missing(text, loc, made_by)
    elif path.is_file():
        remedy = "name its folder"
        if path.suffix == ".gguf":
            remedy = f"write path: {path.parent} and gguf_file: {path.name}"
            remedy = "a teacher is a directory with safetensors, or served" if "teacher" in loc else remedy
        yield Fault(loc, f"{path} is a file, not a model's directory", remedy=remedy)
    elif gguf is not None and not (path / gguf).is_file():
        yield _missing(str(path / gguf), (*loc[:-1], "gguf_file"))
    elif gguf is None and not (path / "config.json").exists():
        yield Fault(loc, f"{path} is no model's directory: it has no config.json")
    elif gguf is None and not has_weights(path) and not (path / INDEX).exists():
        yield Fault(loc, f"{path} holds no weights", remedy="for a new model write `architecture:` and `config:`")
    elif gguf is None:
        for what in directory_faults(path):
            yield Fault(loc, what, "a copy or a download that was broken off leaves such files", "fetch it once more")


def _hub_faults(text: str, loc: Loc, stages: list[str]) -> Iterator[Fault]:
    """A name that exists nowhere here: a hub id has an owner. Nothing is looked up."""
    if "/" in text:
        return
    near = nearest(text, stages)
    remedy = (
        f"did you mean the stage `{near}`?" if near else f"write ./{text} for a directory, owner/{text} for a hub id"
    )
    what = f"`{text}` is neither a path nor a hub id" + (" nor a stage" if stages else "")
    yield Fault(loc, what, remedy=remedy)


def _missing(text: str, loc: Loc, made_by: str | None = None) -> Fault:
    """A path that is not there: what makes it, or the nearest name in its folder, which may be what was meant."""
    path = Path(text)
    folder = next(parent for parent in path.parents if parent.exists())
    wanted = path.relative_to(folder).parts[0]
    near = nearest(wanted, os.listdir(folder)) if folder.is_dir() else None
    remedy = f"did you mean {folder / near}?" if near else "relative paths begin at the recipe's folder"
    remedy = f"run `{made_by}`, which makes it" if made_by else remedy
    return Fault(
        loc, f"{text} does not exist", why="it is taken as a local path; nothing is looked up on a hub", remedy=remedy
    )
