"""`posttrain data preview`: what a stage trains on, rendered, with the loss mask shown."""

from __future__ import annotations

import tempfile
from pathlib import Path

from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import RunDir, is_complete, read_json, seal
from posttrain.model.policy import load_tokenizer
from posttrain.recipe.load import LoadedRecipe
from posttrain.recipe.references import start_of
from posttrain.run.context import context_of
from posttrain.run.prepare import prepare
from posttrain.run.quiet import hush_libraries


def preview_stage(loaded: LoadedRecipe, output: Path | None, name: str, samples: int) -> None:
    """Print samples of a stage's data and its counts; the data is built where the run has not built it yet.

    Raises:
        PosttrainError: no such stage, or its data needs a stage that has not run.
    """
    from datasets import load_from_disk

    from posttrain.data.preview import print_preview

    hush_libraries()
    recipe = loaded.recipe
    if name not in recipe.stages:
        raise PosttrainError(Problem(f"--stage {name}: no such stage", remedy=f"one of {', '.join(recipe.stages)}"))
    with tempfile.TemporaryDirectory() as scratch:
        run = RunDir(output or Path("runs") / recipe.name)
        if not run.recipe.exists():
            run = RunDir(Path(scratch))
        context = context_of(recipe, run, name)
        if not is_complete(context.dir.data):
            needed = {other for _, other in recipe.stages[name].stage_references()}
            origin = start_of(recipe, name)
            if origin[0] == "stage":
                needed.add(origin[1])
            missing = sorted(
                other for other in needed if other in recipe.stages and not is_complete(run.stage(other).model)
            )
            if missing:
                raise PosttrainError(
                    Problem(
                        f"stage {name} builds its data with {', '.join(missing)}, not trained yet in {run.path}",
                        remedy=f"run `posttrain run {loaded.source}` up to there, and preview again",
                    )
                )
            prepare(recipe, run, loaded.source.parent)
            context.dir.data.mkdir(parents=True, exist_ok=True)
            seal(context.dir.data, funnel=recipe.stages[name].build_data(context))
        dataset = load_from_disk(str(context.dir.data / "train"))
        funnel = (read_json(context.dir.data / "manifest.json") or {}).get("funnel") or {}
        print_preview(dataset, load_tokenizer(context.start), context.family, samples=samples, funnel=funnel)
