"""A recipe from its file: read, overridden, validated, and every problem told at once with its file and line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from posttrain.errors import PosttrainError, Problem
from posttrain.recipe import schema
from posttrain.recipe.data_faults import task_option_faults
from posttrain.recipe.kinds import STAGE_KINDS, stage_class
from posttrain.recipe.local_paths import path_faults, with_absolute_paths, written_path_faults
from posttrain.recipe.overrides import Override, apply_overrides, parse_overrides
from posttrain.recipe.real_config import real_config_faults
from posttrain.recipe.references import Parts, reference_faults
from posttrain.recipe.schema import Recipe
from posttrain.recipe.schema_faults import validate
from posttrain.recipe.source import Source, read_source
from posttrain.recipe.stage import Fault, Stage
from posttrain.recipe.trainer_options import architecture_faults, lora_faults, train_faults
from posttrain.recipe.words import Loc, describe

SECTIONS = {
    "model": schema.ModelSpec,
    "template": schema.TemplateSpec,
    "evaluation": schema.EvaluationSpec,
    "engine": schema.EngineSpec,
}


@dataclass(frozen=True)
class Places:
    """Where everything in a recipe was written: a line of the file, or a `--set`."""

    file: Source
    overrides: tuple[Override, ...] = ()

    def where(self, loc: Loc) -> str:
        """`recipe.yaml:12`, or `--set KEY=VALUE`, for a place in the recipe."""
        for override in reversed(self.overrides):
            if _starts(loc, override.loc) or (_starts(override.loc, loc) and not self.file.has(loc)):
                return override.where
        inside = [override.where for override in self.overrides if _starts(override.loc, loc)]
        return ", with ".join([self.file.where(loc), *(inside if loc else [])])

    def problems(self, faults: Sequence[Fault]) -> list[Problem]:
        """The faults with their places."""
        return [Problem(fault.what, self.where(fault.loc), fault.why, fault.remedy) for fault in faults]


def _starts(loc: Loc, with_loc: Loc) -> bool:
    return tuple(map(str, loc[: len(with_loc)])) == tuple(map(str, with_loc))


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid recipe and where it came from.

    Attributes:
        recipe: with every default, overrides applied, local paths absolute.
        source: the file.
        places: file and line of everything in it.
    """

    recipe: Recipe
    source: Path
    places: Places

    @property
    def text(self) -> str:
        """The resolved recipe as YAML."""
        from posttrain.recipe.fingerprint import dump_resolved

        return dump_resolved(self.recipe)

    def where(self, *loc: str | int) -> str:
        """The file and line (or the `--set`) of a place, as `where("stages", "fusion", "train")`."""
        return self.places.where(loc)

    def check_libraries(self) -> None:
        """Let the libraries judge what is theirs: build each trainer's configuration, ask each task for its options.

        Imports them, which takes seconds.

        Raises:
            PosttrainError: one of them refuses.
        """
        faults: list[Fault] = []
        for name, spec in self.recipe.data.items():
            faults += task_option_faults(name, spec) if spec.task is not None else []
        self._check(faults, self.recipe.stages)

    def check_trainers(self, stages: Iterable[str]) -> None:
        """Build the configurations of these stages' trainers: what one refuses would else be told when its turn comes.

        Raises:
            PosttrainError: one of them refuses.
        """
        self._check([], stages)

    def _check(self, faults: list[Fault], stages: Iterable[str]) -> None:
        for name in stages:
            loc = ("stages", name, "train")
            faults = [*faults, *real_config_faults(self.recipe.stages[name], self.recipe.engine.processes, loc)]
        if faults:
            raise PosttrainError(sorted(self.places.problems(faults), key=_in_order))


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Load and validate a recipe. Nothing heavy is imported.

    Args:
        overrides: `KEY=VALUE` each, with a dotted key and a YAML value; the last one wins.

    Raises:
        PosttrainError: everything that is wrong with the file and the overrides.
    """
    file = read_source(path)
    value = _without_anchors(file.value())
    if not isinstance(value, dict):
        what = "is empty" if value is None else f"must be a mapping, not {describe(value)}"
        raise PosttrainError(
            Problem(f"the recipe {what}", f"{path}:1", remedy="begin with `name:`, `model:`, `data:` ...")
        )
    parsed, problems = parse_overrides(overrides)
    value, applied, more = apply_overrides(value, parsed)
    folder = path.absolute().parent
    recipe, faults = _checked(with_absolute_paths(value, folder))
    faults += written_path_faults(value.get("stages"), folder)
    places = Places(file, tuple(applied))
    broken = {problem.where for problem in file.problems}  # what else is wrong in such a line is likely its echo
    told = [problem for problem in places.problems(faults) if problem.where not in broken]
    problems = [*file.problems, *told, *problems, *more]
    if problems or recipe is None:
        raise PosttrainError(sorted(problems, key=_in_order))
    return LoadedRecipe(recipe, path, places)


def _without_anchors(value: Any) -> Any:
    """The value without the top-level keys that are only there to hold anchors."""
    if not isinstance(value, dict):
        return value
    return {key: entry for key, entry in value.items() if not str(key).startswith("x-")}


def _in_order(problem: Problem) -> tuple[bool, int]:
    """By line; what `--set` brought comes last."""
    line = re.search(r":(\d+)(?:,|$)", problem.where)
    return line is None, int(line[1]) if line else 0


def _checked(value: dict[Any, Any]) -> tuple[Recipe | None, list[Fault]]:
    """The recipe, and the faults of its form, of the options of libraries, and between its parts."""
    recipe, faults = validate(value)
    parts = _sound_parts(value, recipe, faults)
    faults += _library_faults(value)
    faults += reference_faults(parts)
    faults += path_faults(parts)
    # The same option may be refused by its library's class and by the stage that uses it: once is enough.
    unique: dict[tuple[Any, ...], Fault] = {}
    for fault in faults:
        unique.setdefault(fault.loc if "train" in fault.loc else (fault.loc, fault.what), fault)
    return recipe, list(unique.values())


def _library_faults(value: dict[Any, Any]) -> Iterator[Fault]:
    """Faults of what libraries' own classes take: `train:`, `lora:`, `config:`. Read from the value, sound or not."""
    models: list[tuple[Loc, Any]] = [(("model",), value.get("model"))]
    for name, stage in _mapping(value.get("stages")).items():
        if not isinstance(stage, dict):
            continue
        models.append((("stages", name, "model"), stage.get("model")))
        kind, train = stage.get("kind"), stage.get("train")
        if isinstance(kind, str) and kind in STAGE_KINDS and isinstance(train, dict):
            yield from train_faults(stage_class(kind), train, ("stages", name, "train"))
    for loc, model in models:
        if isinstance(model, dict):
            yield from architecture_faults(model, loc)
            lora = _mapping(model.get("adapter")).get("lora")
            if isinstance(lora, dict):
                yield from lora_faults(lora, (*loc, "adapter", "lora"))


def _sound_parts(value: dict[Any, Any], recipe: Recipe | None, faults: Sequence[Fault]) -> Parts:
    """The parts of a value that no fault lies in."""
    data, stages = _mapping(value.get("data")), _mapping(value.get("stages"))
    names = [str(name) for name in data], [str(name) for name in stages]
    if recipe is not None:
        return Parts(*names, recipe.data, recipe.stages, recipe.model, recipe.evaluation, recipe)
    unsound = {fault.loc[:2] if fault.loc[:1] in (("data",), ("stages",)) else fault.loc[:1] for fault in faults}
    sections = {name: _part(model, value.get(name, {})) for name, model in SECTIONS.items() if (name,) not in unsound}
    sound_data = {
        str(name): _part(schema.DataSpec, spec) for name, spec in data.items() if ("data", name) not in unsound
    }
    sound_stages: dict[str, Stage] = {
        str(name): _part(stage_class(stage["kind"]), stage)
        for name, stage in stages.items()
        if ("stages", name) not in unsound
    }
    partial = None
    if len(sections) == len(SECTIONS):
        named = {"name": "recipe", "seed": 0, "data": sound_data, "stages": sound_stages}
        partial = Recipe.model_construct(**{**named, **sections})
    return Parts(*names, sound_data, sound_stages, sections.get("model"), sections.get("evaluation"), partial)


def _part(model: Any, value: Any) -> Any:
    import json

    try:
        return model.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:  # a part without a fault of its own is sound
        raise AssertionError(f"{model.__name__}: {error}") from error


def _mapping(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}
