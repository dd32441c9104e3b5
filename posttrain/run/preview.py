"""`posttrain data preview`: what a stage trains on, rendered, with the loss mask shown. A run is only looked at."""

from __future__ import annotations

import tempfile
from pathlib import Path

from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import RunDir, is_complete, is_made_from, read_json, seal
from posttrain.model.policy import load_tokenizer
from posttrain.recipe.fingerprint import dependencies_of, recipe_fingerprint
from posttrain.recipe.load import LoadedRecipe
from posttrain.recipe.references import start_of
from posttrain.recipe.schema import Recipe
from posttrain.recipe.teacher import each_teacher
from posttrain.run.context import context_of
from posttrain.run.pipeline import changes
from posttrain.run.prepare import prepare, sources
from posttrain.run.quiet import hush_libraries


def preview_stage(loaded: LoadedRecipe, output: Path | None, name: str, samples: int) -> None:
    """Print samples of a stage's data and its counts.

    What the run has not made yet, or has made from another recipe, is made in a temporary folder.

    Raises:
        PosttrainError: no such stage, or its data needs a stage that has not run, or ran with another recipe.
    """
    from datasets import load_from_disk

    from posttrain.data.preview import print_preview

    hush_libraries()
    recipe = loaded.recipe
    if name not in recipe.stages:
        raise PosttrainError(Problem(f"--stage {name}: no such stage", remedy=f"one of {', '.join(recipe.stages)}"))
    standing = RunDir(output or Path("runs") / recipe.name)
    with tempfile.TemporaryDirectory() as scratch:
        run = RunDir(Path(scratch))
        _link_what_stands(recipe, standing, run, name)
        context = context_of(recipe, run, name)
        if not is_complete(context.dir.data):
            missing = [other for other in _needed(recipe, name) if not is_complete(run.stage(other).model)]
            if missing:
                what = f"stage {name} builds its data with {', '.join(missing)}, not trained yet in {standing.path}"
                remedy = f"run `posttrain run {loaded.source}` up to there, and preview again"
                raise PosttrainError(Problem(what, remedy=remedy))
            if problems := changes(recipe, standing, set(recipe.stages) - dependencies_of(recipe, name) | {name}):
                raise PosttrainError(problems)
            prepare(recipe, run, loaded.source.parent, quiet=False)
            context.dir.data.mkdir(parents=True, exist_ok=True)
            seal(context.dir.data, funnel=recipe.stages[name].build_data(context))
        dataset = load_from_disk(str(context.dir.data / "train"))
        funnel = (read_json(context.dir.data / "manifest.json") or {}).get("funnel") or {}
        print_preview(dataset, load_tokenizer(context.start), context.family, samples=samples, funnel=funnel)


def _needed(recipe: Recipe, name: str) -> list[str]:
    """The stages whose models a stage's data may be built with, in their order."""
    stage = recipe.stages[name]
    needed = {other for _, other in stage.stage_references()} | {str(one) for _, one in each_teacher(stage.teacher)}
    origin = start_of(recipe, name)
    if origin[0] == "stage":
        needed.add(origin[1])
    return [other for other in recipe.stages if other in needed]


def _link_what_stands(recipe: Recipe, standing: RunDir, run: RunDir, name: str) -> None:
    """Links in `run` to what another run has made of the same: other stages, the stage itself, data, models."""
    places = [
        stage.path for other in recipe.stages if other != name and is_complete((stage := standing.stage(other)).model)
    ]
    own = standing.stage(name)
    if is_complete(own.data) and read_json(own.started) == recipe_fingerprint(recipe, name):
        places.append(own.path)
    places += [directory for directory, made_from in sources(recipe, standing) if is_made_from(directory, made_from)]
    places += [standing.reserved(data) for data in recipe.data if standing.data(data) in places]
    for place in places:
        link = run.path / place.relative_to(standing.path)
        if place.exists() and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(place.resolve())
