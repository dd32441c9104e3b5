"""Where a stage's inputs lie in a run: its start, its teacher, its model's settings."""

from __future__ import annotations

from pathlib import Path

from posttrain.model.artifacts import RunDir
from posttrain.model.policy import family_of
from posttrain.recipe.endpoint import EndpointSpec
from posttrain.recipe.references import kinds_of, start_of
from posttrain.recipe.schema import ModelSpec, Recipe
from posttrain.recipe.stage import StageContext
from posttrain.recipe.teacher import Teachers, with_each


def root_spec(recipe: Recipe, name: str) -> ModelSpec:
    """The model at the root of a stage's chain: its type, attention and adapter hold for the whole chain."""
    origin = start_of(recipe, name)
    while origin[0] == "stage":
        origin = start_of(recipe, origin[1])
    return origin[1] if origin[0] == "model" else recipe.model


def start_directory(recipe: Recipe, run: RunDir, name: str) -> Path:
    """The directory of the model that a stage starts from."""
    origin = start_of(recipe, name)
    if origin[0] == "stage":
        return run.stage(origin[1]).model
    return run.stage(name).start if origin[0] == "model" else run.base


def teacher_place(recipe: Recipe, run: RunDir, name: str) -> Path | EndpointSpec | Teachers | None:
    """Where a stage's teacher is: an earlier stage's model, a path or hub id as it stands, a server, or several."""
    teacher = recipe.stages[name].teacher
    if teacher is None:
        return None
    found = with_each(teacher, lambda one: str(run.stage(str(one)).model) if one in recipe.stages else one)
    return Path(found) if isinstance(found, str) else found


def context_of(recipe: Recipe, run: RunDir, name: str, *, quiet: bool = False) -> StageContext:
    """What the stage of that name is given."""
    return StageContext(
        recipe=recipe,
        name=name,
        run=run,
        dir=run.stage(name),
        start=start_directory(recipe, run, name),
        teacher=teacher_place(recipe, run, name),
        family=family_of(recipe.template),
        kind=kinds_of(recipe)[name][0],
        quiet=quiet,
    )
