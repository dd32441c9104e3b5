"""The path of a run, and the only loop over stages: data, training, evaluation, gate, report.

Everything finished is found again and left as it is; everything else is made, from the last whole piece on. So the same
command starts a run, resumes it after any kill, and does nothing when all is done.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import GateMissed, PosttrainError, Problem
from posttrain.evaluation.suites.stage import suite_problems
from posttrain.model.artifacts import RunDir, faults_of, is_complete, read_json, seal, write_json, write_text
from posttrain.model.lock import alone
from posttrain.recipe.fingerprint import dependencies_of, dump_resolved, fingerprint_difference, recipe_fingerprint
from posttrain.recipe.load import LoadedRecipe
from posttrain.recipe.references import kinds_of
from posttrain.recipe.schema import Recipe
from posttrain.recipe.stage import StageContext
from posttrain.recipe.teacher import in_words
from posttrain.run import engine
from posttrain.run.context import context_of, root_spec
from posttrain.run.environment import environment
from posttrain.run.gates import missed
from posttrain.run.machines import check_machines, follow, leading, machine_rank
from posttrain.run.output import check_directory_to_write
from posttrain.run.prepare import prepare
from posttrain.run.quiet import hush_libraries

log = logging.getLogger("posttrain")


@dataclass(frozen=True)
class Pipeline:
    """A recipe in its run directory."""

    recipe: Recipe
    run: RunDir
    quiet: bool = False

    def stages(self) -> Iterator[StageContext]:
        for name in self.recipe.stages:
            yield context_of(self.recipe, self.run, name, quiet=self.quiet)


def run_recipe(loaded: LoadedRecipe, directory: Path, *, restart_from: str | None = None, quiet: bool = False) -> Path:
    """Run a recipe to its end, or on from where it was stopped.

    Args:
        directory: the run's directory; made if it is not there.
        restart_from: redo this stage and all after it.

    Returns:
        The report's path.

    Raises:
        PosttrainError: the recipe was changed under a finished stage, a stage's input is wrong, or the directory cannot
            be written to.
        GateMissed: a stage misses what it must reach; the report is written first.
    """
    hush_libraries()
    check_directory_to_write(directory)
    pipeline = Pipeline(loaded.recipe, RunDir(directory), quiet)
    check_machines(loaded.recipe.engine)
    if machine_rank(loaded.recipe.engine) > 0:
        _follow(pipeline)
        return pipeline.run.path / "report.html"
    with alone(directory), leading(pipeline.run, loaded.recipe.engine):
        return _lead(pipeline, loaded, restart_from)


def _lead(pipeline: Pipeline, loaded: LoadedRecipe, restart_from: str | None) -> Path:
    began = time.monotonic()
    redone = _redone(pipeline, restart_from)
    if problems := changes(pipeline.recipe, pipeline.run, redone):
        raise PosttrainError(problems)
    waiting = [context for context in pipeline.stages() if context.name in redone or not _trained(context)]
    loaded.check_trainers(context.name for context in waiting)
    write_text(pipeline.run.recipe, dump_resolved(loaded.recipe))
    write_json(pipeline.run.path / "environment.json", environment())
    with _clock(pipeline, "preparation_seconds"):
        prepare(pipeline.recipe, pipeline.run, loaded.source.parent, quiet=pipeline.quiet)
    _check_outside(pipeline.recipe, waiting)
    for name in reversed(redone):  # a kill in the middle leaves no stage that stands on one redone
        pipeline.run.stage(name).clear()
    try:
        for context in pipeline.stages():
            run_stage(context)
    finally:
        _add_seconds(pipeline.run, "wall_seconds", time.monotonic() - began)
        report = _report(pipeline)
    return report


def _trained(context: StageContext) -> bool:
    return context.dir.record.exists() or is_complete(context.dir.model)


def _check_outside(recipe: Recipe, waiting: Sequence[StageContext]) -> None:
    """What the stages still to be trained need from outside the recipe: all that is wrong, before the first begins."""
    problems = suite_problems(recipe.evaluation)
    for context in waiting:
        try:
            recipe.stages[context.name].check_outside(context)
        except PosttrainError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise PosttrainError(problems)


def _follow(pipeline: Pipeline) -> None:
    """What a machine other than the first does: its part of every training, until machine 0 ends the run."""
    stages = {context.name: context for context in pipeline.stages()}
    follow(
        pipeline.run,
        lambda name: engine.train(stages[name], root_spec(pipeline.recipe, name)),
        lambda: all(context.dir.record.exists() for context in stages.values()),
    )


def run_stage(context: StageContext) -> None:
    """One stage: what it trains on, its training, its scores, its gate. Whatever is there already is kept."""
    if context.dir.record.exists():
        log.info("%s: finished already", context.name)
    else:
        stage = context.recipe.stages[context.name]
        log.info("%s: %s", context.name, stage.kind)
        began = time.monotonic()
        if not context.dir.started.exists():
            write_json(context.dir.started, recipe_fingerprint(context.recipe, context.name))
        if not is_complete(context.dir.data):
            context.dir.data.mkdir(parents=True, exist_ok=True)
            funnel = stage.build_data(context)
            seal(context.dir.data, funnel=funnel, seconds=time.monotonic() - began)
        elif not is_complete(context.dir.model):
            stage.mend_data(context)
        if not is_complete(context.dir.model):
            engine.train(context, root_spec(context.recipe, context.name))
        if not context.dir.evaluation.exists():
            _evaluate(context)
        stage.examine(context)
        _finish(context)
    _gate(context)


def _evaluate(context: StageContext) -> None:
    from posttrain.evaluation.evaluate import evaluate_model

    recipe = context.recipe
    began = time.monotonic()
    result, samples = recipe.stages[context.name].evaluate(context) or evaluate_model(
        context.dir.model,
        recipe=recipe,
        spec=root_spec(recipe, context.name),
        run=context.run,
        family=context.family,
        kind=kinds_of(recipe)[context.name][1],
        budgets=recipe.evaluation.budgets if context.name in budget_stages(recipe) else [],
        label=context.name,
        suites_in=context.dir.path / "suites",
        quiet=context.quiet,
    )
    write_text(context.dir.samples, samples)
    write_json(
        context.dir.evaluation,
        {
            "stage": context.name,
            "kind": kinds_of(recipe)[context.name][1],
            **result,
            "seconds": time.monotonic() - began,
        },
    )


def budget_stages(recipe: Recipe) -> list[str]:
    """The stages whose budget curve is drawn: those named, or the last stage of the first model that ends hybrid."""
    if recipe.evaluation.budget_stages or not recipe.evaluation.budgets:
        return list(recipe.evaluation.budget_stages)
    hybrid = [
        name
        for name, (_, kind) in kinds_of(recipe).items()
        if kind in ("hybrid", "thinking")
        and root_spec(recipe, name) is recipe.model
        and recipe.stages[name].leaves_policy
    ]
    return hybrid[-1:]


def _finish(context: StageContext) -> None:
    """Record the stage as finished. Written last: a stage with a record is done."""
    stage = context.recipe.stages[context.name]
    training = read_json(context.dir.path / "training.json") or {}
    data = read_json(context.dir.data / "manifest.json") or {}
    write_json(
        context.dir.record,
        {
            "name": context.name,
            "kind": stage.kind,
            "parent": _parent(context),
            "teacher": in_words(stage.teacher),
            "model_kind": kinds_of(context.recipe)[context.name][1],
            "funnel": data.get("funnel"),
            "data_seconds": data.get("seconds"),
            "train_seconds": training.get("train_seconds"),
            "flops": training.get("flops"),
            "steps": training.get("steps"),
            "evaluation_seconds": read_json(context.dir.evaluation)["seconds"],
        },
    )
    shutil.rmtree(context.dir.checkpoints, ignore_errors=True)


def _parent(context: StageContext) -> str:
    from posttrain.recipe.references import start_of

    origin = start_of(context.recipe, context.name)
    return origin[1] if origin[0] == "stage" else "base" if origin[0] == "base" else f"model of {context.name}"


def _gate(context: StageContext) -> None:
    require = context.recipe.stages[context.name].require
    lines = missed(require, read_json(context.dir.evaluation)["scores"]) if require else []
    if lines:
        raise GateMissed(
            [
                Problem(
                    f"stage {context.name}: {line}",
                    why="the recipe stops a run that misses a required figure",
                    remedy="read the report; change the stage and run with --restart-from, or lower `require`",
                )
                for line in lines
            ]
        )


def _redone(pipeline: Pipeline, restart_from: str | None) -> list[str]:
    """The stages to be redone. They are cleared once nothing is left that could refuse the run."""
    names = list(pipeline.recipe.stages)
    if restart_from is None:
        return []
    if restart_from not in names:
        raise PosttrainError(
            Problem(f"--restart-from {restart_from}: no such stage", remedy=f"one of {', '.join(names)}")
        )
    return names[names.index(restart_from) :]


def changes(recipe: Recipe, run: RunDir, redone: Collection[str] = ()) -> list[Problem]:
    """What keeps a run from going on with a recipe: stages begun or finished with another one, models damaged since.

    Args:
        redone: stages that are not looked at.
    """
    problems = []
    changed: set[str] = set()
    for name in recipe.stages:
        stage = run.stage(name)
        started = read_json(stage.started)
        if started is None or name in redone:
            continue
        state = "finished" if stage.record.exists() else "half done"
        differences = fingerprint_difference(started, recipe_fingerprint(recipe, name))
        if differences and changed & dependencies_of(recipe, name):
            continue  # told where it began
        changed |= {name} if differences else set()
        for line in differences:
            problems.append(
                Problem(
                    f"stage {name} is {state}, and the recipe has changed under it: {line}",
                    where=str(stage.started),
                    remedy=f"undo the change, run with --restart-from {name}, or choose another --output",
                )
            )
        if stage.record.exists():
            problems += [Problem(fault, remedy=f"run with --restart-from {name}") for fault in faults_of(stage.model)]
    return problems


def _report(pipeline: Pipeline) -> Path:
    from posttrain.report.build import build_report

    with _clock(pipeline, "report_seconds"):
        return build_report(pipeline.run)


@contextlib.contextmanager
def _clock(pipeline: Pipeline, key: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        _add_seconds(pipeline.run, key, time.monotonic() - began)


def _add_seconds(run: RunDir, key: str, seconds: float) -> None:
    """Seconds over all the starts of a run."""
    path = run.path / "clock.json"
    clock: dict[str, Any] = read_json(path) or {}
    write_json(path, {**clock, key: clock.get(key, 0.0) + seconds})
