"""`posttrain eval`: one model scored on a recipe's reserved queries, apart from any run's stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import RunDir, read_json, write_json, write_text
from posttrain.model.policy import family_of
from posttrain.recipe.load import LoadedRecipe
from posttrain.recipe.references import kinds_of
from posttrain.run.context import root_spec
from posttrain.run.model_directory import check_directory
from posttrain.run.output import check_directory_to_write
from posttrain.run.prepare import prepare, refuse_others
from posttrain.run.quiet import hush_libraries


def evaluate_and_print(
    loaded: LoadedRecipe, output: Path | None, model: str, budgets: Sequence[int], *, quiet: bool = False
) -> None:
    """Score a model (a stage of the run, or a directory), print the figures, keep them under RUN/evaluations/.

    Raises:
        PosttrainError: no such stage or directory.
    """
    from posttrain.evaluation.evaluate import evaluate_model

    hush_libraries()
    recipe = loaded.recipe
    run = RunDir(output or Path("runs") / recipe.name)
    stage = run.stage(model) if model in recipe.stages else None
    directory = stage.model if stage else Path(model)
    remedy = f"a directory, or one of the stages {', '.join(recipe.stages)}"
    if stage and not (directory / "config.json").exists():
        raise PosttrainError(Problem(f"stage {model} has no model yet under {run.path}", remedy=remedy))
    check_directory(directory, remedy)
    check_directory_to_write(run.path)
    kind = kinds_of(recipe)[model][1] if stage else recipe.model.kind
    if not stage and kind == "base":
        kind = family_of(recipe.template).kind
    refuse_others(recipe, run)
    prepare(recipe, run, loaded.source.parent, quiet=quiet)
    folder = run.path / "evaluations" / (model if stage else directory.name)
    result, samples = evaluate_model(
        directory,
        recipe=recipe,
        spec=root_spec(recipe, model) if stage else recipe.model,
        run=run,
        family=family_of(recipe.template),
        kind=kind,
        budgets=list(budgets) or recipe.evaluation.budgets,
        label=directory.name if not stage else model,
        suites_in=folder / "suites",
        quiet=quiet,
    )
    write_json(folder / "evaluation.json", result)
    write_text(folder / "samples.jsonl", samples)
    print_scores(read_json(folder / "evaluation.json"))
    print(f"figures and samples: {folder}")


def print_scores(result: Mapping[str, Any]) -> None:
    """The figures as a table, with their intervals and counts."""
    from rich.console import Console
    from rich.table import Table

    modes = [mode for mode in ("thinking", "non_thinking") if mode in result["scores"]]
    table = Table("figure", *modes)
    rows: dict[str, list[str]] = {}
    for mode in modes:
        for name, score in result["scores"][mode].items():
            if isinstance(score, Mapping) and ("value" in score or "mean" in score):
                rows.setdefault(name, [""] * len(modes))[modes.index(mode)] = _shown(score)
    for name, cells in rows.items():
        table.add_row(name, *cells)
    console = Console()
    console.print(table)
    if follow := result["scores"].get("think_follow"):
        console.print(f"ThinkFollow {_shown(follow)}")
    for point in result.get("budget_curve", []):
        console.print(
            f"budget {point['thinking_budget']:>6}: accuracy {point['accuracy']:.3f} "
            f"({point['low']:.3f}-{point['high']:.3f}, n={point['n']})"
        )


def _shown(score: Mapping[str, Any]) -> str:
    if "mean" in score:  # of tokens
        return f"{score['mean']:.1f} ({score['low']:.1f}-{score['high']:.1f}, n={score['n']})"
    return f"{score['value']:.3f} ({score['low']:.3f}-{score['high']:.3f}, n={score['n']})"
