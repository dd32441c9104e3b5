"""What one part of a recipe says of another: which model a stage starts from, which data it uses, of what kind it is.

Everything here works on a recipe that is partly wrong as well, so that all its problems are told at once: `Parts` holds
what is sound, and a check that would need an unsound part waits until that is mended.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from posttrain.budget.tokens import stop_text_problems
from posttrain.errors import PosttrainError
from posttrain.recipe.data_faults import data_faults
from posttrain.recipe.demands import demand_faults, figure_names
from posttrain.recipe.positions import position_faults
from posttrain.recipe.schema import DataSpec, EvaluationSpec, ModelSpec, Recipe, TrainedTokenizer
from posttrain.recipe.stage import Fault, Stage
from posttrain.recipe.teacher import each_teacher
from posttrain.recipe.words import Loc, did_you_mean
from posttrain.templates.families import Family, Kind, get_family

BASE = "base"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
Origin = tuple[Literal["stage"], str] | tuple[Literal["model"], ModelSpec] | tuple[Literal["base"]]


def start_of(recipe: Recipe, name: str) -> Origin:
    """What a stage starts from: an earlier stage's model, a model of its own, or the recipe's base model."""
    return _start(recipe.stages, list(recipe.stages), name)


def _start(stages: Mapping[str, Stage], order: list[str], name: str) -> Origin:
    stage = stages[name]
    if stage.model is not None:
        return "model", stage.model
    if stage.start_from is not None:
        return ("base",) if stage.start_from == BASE else ("stage", stage.start_from)
    before = order[: order.index(name)]
    policies = [other for other in before if other not in stages or stages[other].leaves_policy]
    return ("stage", policies[-1]) if policies else ("base",)


def kinds_of(recipe: Recipe) -> dict[str, tuple[Kind, Kind]]:
    """For each stage, the kind of the model it starts from and the kind of the model it leaves."""
    return _kinds(recipe.stages, list(recipe.stages), recipe.model)


def _kinds(stages: Mapping[str, Stage], order: list[str], base: ModelSpec) -> dict[str, tuple[Kind, Kind]]:
    """As `kinds_of`, for the stages that are sound and start from a sound one."""
    kinds: dict[str, tuple[Kind, Kind]] = {}
    for name in order:
        if name not in stages:
            continue
        origin = _start(stages, order, name)
        if origin[0] == "stage" and origin[1] not in kinds:
            continue
        start = kinds[origin[1]][1] if origin[0] == "stage" else origin[1].kind if origin[0] == "model" else base.kind
        kinds[name] = (start, stages[name].result_kind(start))
    return kinds


def _roots(stages: Mapping[str, Stage], order: list[str], base: ModelSpec) -> dict[str, ModelSpec]:
    """For each stage that is sound and starts from a sound one, the model at the root of its chain."""
    roots: dict[str, ModelSpec] = {}
    for name in order:
        if name not in stages:
            continue
        origin = _start(stages, order, name)
        if origin[0] != "stage":
            roots[name] = origin[1] if origin[0] == "model" else base
        elif origin[1] in roots:
            roots[name] = roots[origin[1]]
    return roots


@dataclass(frozen=True)
class Parts:
    """A recipe's parts that are sound, and the names of all of them.

    Attributes:
        data_names, stage_names: every name in the file, in order, sound or not.
        recipe: the recipe made of the sound parts; None where model, template, evaluation or engine is not sound.
    """

    data_names: list[str]
    stage_names: list[str]
    data: Mapping[str, DataSpec]
    stages: Mapping[str, Stage]
    model: ModelSpec | None
    evaluation: EvaluationSpec | None
    recipe: Recipe | None


def reference_faults(parts: Parts) -> Iterator[Fault]:
    """Everything wrong between the parts of a recipe."""
    yield from _name_faults(parts)
    for name, stage in parts.stages.items():
        yield from _stage_reference_faults(parts, name, stage)
    for loc, model in models_of(parts):
        if isinstance(model.tokenizer, TrainedTokenizer):
            for index, name in enumerate(model.tokenizer.train_on):
                yield from _data_faults(parts, name, (*loc, "tokenizer", "train_on", index))
        yield from _unused_faults(model, loc)
    if parts.model is not None and parts.model.architecture and parts.model.tokenizer is None:
        remedy = "give `tokenizer:` (a path, or train_on)"
        yield Fault(("model",), "a model built from its configuration needs a tokenizer", remedy=remedy)
    for name, spec in parts.data.items():
        yield from data_faults(name, spec)
    yield from _evaluation_faults(parts)
    if parts.recipe is not None:
        yield from _whole_faults(parts, parts.recipe)


def models_of(parts: Parts) -> Iterator[tuple[Loc, ModelSpec]]:
    """Every model that is described in the recipe, with its place."""
    if parts.model is not None:
        yield ("model",), parts.model
    for name, stage in parts.stages.items():
        if stage.model is not None:
            yield ("stages", name, "model"), stage.model


def _unused_faults(model: ModelSpec, loc: Loc) -> Iterator[Fault]:
    """Options of a model that nothing would read: told, not dropped."""
    for key in ("revision", "gguf_file", "made_by"):
        if model.architecture is not None and getattr(model, key) is not None:
            yield Fault((*loc, key), f"`{key}` is for a model with a `path`", remedy="remove it")
    if model.revision is not None and model.path is not None and os.path.isabs(model.path):
        yield Fault((*loc, "revision"), "`revision` is for a hub id, and the path is local", remedy="remove it")


def _name_faults(parts: Parts) -> Iterator[Fault]:
    for section, names in (("data", parts.data_names), ("stages", parts.stage_names)):
        for name in names:
            if not NAME.fullmatch(name):
                why = "it names a folder of the run, and is written after a dot in --set"
                remedy = "use letters, digits, `-` and `_`, a letter or digit first"
                yield Fault((section, name), f"{name!r} cannot be a name under `{section}:`", why, remedy)
    if BASE in parts.stage_names:
        yield Fault(
            ("stages", BASE), "no stage can be called `base`", "`start_from: base` is the recipe's model", "rename it"
        )


def _earlier(parts: Parts, name: str) -> list[str]:
    return parts.stage_names[: parts.stage_names.index(name)]


def _stage_reference_faults(parts: Parts, name: str, stage: Stage) -> Iterator[Fault]:
    here: Loc = ("stages", name)
    if stage.start_from is not None and stage.model is not None:
        what = f"stage `{name}` is told to start from two models: `start_from` and `model`"
        yield Fault((*here, "start_from"), what, remedy="keep one of the two")
    elif stage.start_from not in (None, BASE):
        yield from _earlier_faults(parts, name, str(stage.start_from), (*here, "start_from"), extra=[BASE])
    if stage.optimizer is not None and "optim" in stage.train:
        what = f"the optimizer of stage `{name}` is given twice: `optimizer` and `train.optim`"
        yield Fault((*here, "train", "optim"), what, remedy="keep one of the two")
    for loc, teacher in each_teacher(stage.teacher):
        if teacher in parts.stage_names:
            yield from _earlier_faults(parts, name, str(teacher), (*here, "teacher", *loc))
        if loc[:1] == ("by_data",):
            yield from _data_faults(parts, str(loc[1]), (*here, "teacher", *loc))
    starts = [
        ((), "start_from", stage.start_from),
        *((loc, "teacher", one) for loc, one in each_teacher(stage.teacher)),
    ]
    for place, key, other in starts:
        if isinstance(other, str) and other in parts.stages and not parts.stages[other].leaves_policy:
            what = f"stage `{other}` leaves no policy, but a model of kind {parts.stages[other].kind}"
            yield Fault((*here, key, *place), what, remedy="name a stage that leaves a policy")
    for loc, other in stage.stage_references():
        samples = loc[-1] in ("from", "model")  # the base model answers; it has asked nothing
        yield from _earlier_faults(parts, name, other, (*here, *loc), extra=[BASE] if samples else [])
    for loc, data in stage.data_references():
        yield from _data_faults(parts, data, (*here, *loc))


def _earlier_faults(
    parts: Parts, name: str, other: str, loc: Loc, *, extra: list[str] | None = None
) -> Iterator[Fault]:
    """A reference of stage `name` to a stage `other`, which must be an earlier one or one of `extra`."""
    known = [*_earlier(parts, name), *(extra or [])]
    if other in known:
        return
    if other == name:
        yield Fault(loc, f"stage `{name}` refers to itself", remedy=did_you_mean("", known))
    elif other in parts.stage_names:
        yield Fault(
            loc, f"stage `{other}` comes after `{name}`", "stages run in the order written", "move one of the two"
        )
    elif loc[-1] == "start_from" and "/" in other:
        remedy = "a stage starts from a model of its own by `model: {path: ...}`"
        yield Fault(loc, f"`{other}` is no stage", remedy=remedy)
    else:
        yield Fault(loc, f"there is no stage `{other}`", remedy=did_you_mean(other, known))


def _data_faults(parts: Parts, name: str, loc: Loc) -> Iterator[Fault]:
    if name not in parts.data_names:
        yield Fault(loc, f"there is no `{name}` under `data:`", remedy=did_you_mean(name, parts.data_names))


def _evaluation_faults(parts: Parts) -> Iterator[Fault]:
    evaluation = parts.evaluation
    if evaluation is None:
        return
    for index, name in enumerate(evaluation.data):
        loc: Loc = ("evaluation", "data", index)
        yield from _data_faults(parts, name, loc)
        if name in parts.data and parts.data[name].reserve == 0:
            why = "evaluation scores rows that no stage trains on"
            remedy = f"give data.{name} a `reserve:`, as 256"
            yield Fault(loc, f"`{name}` sets no rows aside for evaluation", why, remedy)
    for index, name in enumerate(evaluation.budget_stages):
        if name not in parts.stage_names:
            remedy = did_you_mean(name, parts.stage_names)
            yield Fault(("evaluation", "budget_stages", index), f"there is no stage `{name}`", remedy=remedy)
    for index, budget in enumerate(evaluation.budgets):
        if budget < 0:
            what = f"a thinking budget of {budget} tokens is less than none"
            yield Fault(("evaluation", "budgets", index), what, remedy="0 is no thinking at all")


def _whole_faults(parts: Parts, recipe: Recipe) -> Iterator[Fault]:
    """What only the whole recipe shows: the family, the engine, kinds along the stages, each stage's own faults."""
    if recipe.engine.strategy in ("zero2", "zero3") and find_spec("deepspeed") is None:
        what = f"engine.strategy: {recipe.engine.strategy} needs DeepSpeed, which is not installed"
        yield Fault(("engine", "strategy"), what, remedy="pip install 'posttrain[deepspeed]'")
    for name, stage in parts.stages.items():
        if stage.optimizer is not None and recipe.engine.strategy in ("zero2", "zero3"):
            what = (
                f"Muon needs whole matrices, and engine.strategy: {recipe.engine.strategy} gives it flat pieces of them"
            )
            yield Fault(("stages", name, "optimizer"), what, remedy="use fsdp2 or ddp, or the trainer's own optimizer")
    try:
        family = get_family(recipe.template.family)
    except PosttrainError as error:
        for problem in error.problems:
            yield Fault(("template", "family"), problem.what, problem.why, problem.remedy)
        return
    if recipe.template.stop_thinking is not None:
        for problem in stop_text_problems(recipe.template.stop_thinking, family):
            yield Fault(("template", "stop_thinking"), problem.what, problem.why, problem.remedy)
    for loc, model in models_of(parts):
        yield from _kind_faults(model, family, loc)
    yield from position_faults(recipe, _roots(parts.stages, parts.stage_names, recipe.model))
    for name, (start, result) in _kinds(parts.stages, parts.stage_names, recipe.model).items():
        stage = parts.stages[name]
        used = {data for _, data in stage.data_references()} | {other for _, other in stage.stage_references()}
        if used <= {*parts.data, *parts.stages, BASE}:
            for fault in stage.faults(recipe, start):
                yield Fault(("stages", name, *fault.loc), fault.what, fault.why, fault.remedy)
        figures = figure_names(recipe.evaluation, family, result)
        for figure, demand in stage.require.items():
            yield from demand_faults(figure, demand, figures, ("stages", name, "require", figure))


def _kind_faults(model: ModelSpec, family: Family, loc: Loc) -> Iterator[Fault]:
    needed = {"hybrid": 2, "thinking": 1, "instruct": 1, "base": 0}[model.kind]
    modes = {"hybrid": {"thinking", "non_thinking"}, "thinking": {"thinking"}, "instruct": {"non_thinking"}}
    if needed and not modes[model.kind] <= set(family.modes):
        what = f"a {model.kind} model does not go with the template family {family.name}"
        why = f"that family has only {' and '.join(family.modes)}"
        yield Fault((*loc, "kind"), what, why, "change `kind:`, or `template.family:`")
