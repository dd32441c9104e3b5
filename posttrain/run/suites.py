"""`posttrain eval --suite`: models, here or behind an endpoint, on suites; no recipe needed."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.evaluation.suites.data import offer_nltk
from posttrain.evaluation.suites.play import Generate, chosen, play_suite
from posttrain.evaluation.suites.registry import get_suite
from posttrain.evaluation.suites.suite import Item, Setting, Suite, Tabulated
from posttrain.evaluation.suites.table import compare, finished, markdown, shown
from posttrain.model.artifacts import RunDir, write_json, write_text
from posttrain.progress import progress
from posttrain.recipe.load import LoadedRecipe
from posttrain.run.output import check_directory_to_write
from posttrain.run.quiet import hush_libraries
from posttrain.run.subjects import Asked, Subject, local, served
from posttrain.templates.families import Family

log = logging.getLogger("posttrain")

Work = list[tuple[Suite, list[Item], Setting]]


def evaluate_as_asked(arguments: argparse.Namespace, loaded: LoadedRecipe | None) -> None:
    """`posttrain eval --suite` as its options say. With a recipe, a model may be named by its stage.

    Raises:
        PosttrainError: a model, a server, a suite or its data are not there.
    """
    offer_nltk()
    asked = Asked(
        budgets=list(dict.fromkeys(arguments.budget)),
        modes=arguments.mode,
        limit=arguments.limit,
        max_new_tokens=arguments.max_new_tokens,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    )
    run = RunDir(arguments.output or Path("runs") / loaded.recipe.name) if loaded else None
    if arguments.endpoint is None:
        named = [_stage(given, loaded, run) for given in arguments.model]
        subjects = [local(given, asked) for given in named]
    else:
        options = {"family": arguments.family, "api_key_env": arguments.api_key_env}
        subjects = [served(arguments.endpoint, given, asked, **options) for given in arguments.model]
    output = run.path / "evaluations" if run else arguments.output or Path("runs") / "evaluations"
    evaluate_suites(arguments.suite, subjects, output, asked, quiet=arguments.quiet)


def _stage(given: str, loaded: LoadedRecipe | None, run: RunDir | None) -> str:
    """The directory of a stage's model, where that is what is named."""
    if loaded is None or run is None or given not in loaded.recipe.stages:
        return given
    return f"{given}={run.stage(given).model}"


def evaluate_suites(
    names: Sequence[str], subjects: Sequence[Subject], output: Path, asked: Asked, *, quiet: bool = False
) -> None:
    """Play every suite with every model, print the table, and keep all of it under `output`.

    Raises:
        PosttrainError: a suite is unknown or lacks its data; two models have one name; `output` cannot be written to.
            All of it before any question.
    """
    hush_libraries()
    check_directory_to_write(output)
    suites = _read(names, asked.limit)
    labels = [subject.label for subject in subjects]
    if twice := {label for label in labels if labels.count(label) > 1}:
        what = f"two models are called {', '.join(sorted(twice))}"
        raise PosttrainError(Problem(what, why="their answers would share a directory", remedy="write LABEL=MODEL"))
    work = _settings(subjects, suites, asked)
    for subject, settings in zip(subjects, work, strict=True):
        _evaluate(subject, settings, output, asked, quiet)
    rows = compare(output, labels)
    write_json(output / "suites.json", rows)
    write_text(output / "suites.md", markdown(rows, labels))
    for suite, _ in suites:
        if isinstance(suite, Tabulated):
            write_text(output / f"{suite.name}.md", suite.table(finished(output, labels, suite.name)))
    _print(rows, labels)
    print(f"figures, answers and samples: {output}")


def _read(names: Sequence[str], limit: int | None) -> list[tuple[Suite, list[Item]]]:
    found, problems = [], []
    for name in dict.fromkeys(names):
        try:
            suite = get_suite(name)
            found.append((suite, chosen(suite, limit)))
        except PosttrainError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise PosttrainError(problems)
    return found


def _settings(subjects: Sequence[Subject], suites: Sequence[tuple[Suite, list[Item]]], asked: Asked) -> list[Work]:
    """What each model is asked. A suite that a model is not asked is told, in a log.

    Raises:
        PosttrainError: a model is asked nothing at all, or no question has the budgets that are given.
    """
    found, problems = [], []
    modes = " and ".join(asked.modes)
    for subject in subjects:
        work: Work = []
        for suite, items in suites:
            settings = suite.settings(subject.family, asked.budgets)
            fit = [s for s in settings if not asked.modes or s.mode is None or s.mode in asked.modes]
            work += [(suite, items, setting) for setting in fit]
            if not fit:
                why = f"no mode {modes}" if settings else "no flags, which this suite is about"
                log.warning(
                    "%s is not asked %s: the family %s has %s", subject.label, suite.name, subject.family.name, why
                )
        if not work:
            what = f"{subject.label}, of the family {subject.family.name}, is asked nothing: no suite fits"
            problems.append(Problem(what, remedy=f"it has {' and '.join(subject.family.modes)}: see --mode, --family"))
        found.append(work)
    if asked.budgets and not any(setting.budget is not None for work in found for _, _, setting in work):
        what = f"no question is asked under --budget {', '.join(map(str, asked.budgets))}"
        problems.append(Problem(what, why="a budget is one of thinking", remedy="add --mode thinking, or leave it out"))
    if problems:
        raise PosttrainError(problems)
    return found


def _evaluate(subject: Subject, work: Work, output: Path, asked: Asked, quiet: bool) -> None:
    loaded: list[Generate] = []

    def generate(*prompts: Any, **options: Any) -> Any:
        if not loaded:
            loaded.append(subject.load())
        return loaded[0](*prompts, **options)

    total = sum(len(items) for _, items, _ in work)
    depends_on = {"model": subject.identity, "max_new_tokens": asked.max_new_tokens}
    with progress(f"evaluating {subject.label}", total, quiet=quiet) as advance:
        for suite, items, setting in work:
            directory = output / subject.label / suite.name / setting.name
            facts = {**depends_on, "sampling": _sampling(subject.family, setting)}
            play_suite(
                *(suite, items, setting, generate, directory),
                depends_on=facts,
                seed=asked.seed,
                chunk=subject.chunk,
                advance=advance,
            )


def _sampling(family: Family, setting: Setting) -> dict[str, Any]:
    modes = [setting.mode] if setting.mode else list(family.modes)
    return {mode: dataclasses.asdict(family.sampling[mode]) for mode in modes}


def _print(rows: Sequence[dict[str, Any]], labels: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("suite", "setting", "metric", *labels)
    for row in rows:
        table.add_row(
            row["suite"], row["setting"], row["metric"], *(shown(row["cells"].get(label)) for label in labels)
        )
    Console().print(table)
