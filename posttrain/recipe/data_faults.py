"""What is wrong with one data set's description, found without reading a row of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from posttrain.data.columns import compile_map
from posttrain.data.expression import compile_filter
from posttrain.data.locations import OPTIONS, looks_local, resolve
from posttrain.data.prepare import no_queries
from posttrain.errors import PosttrainError
from posttrain.recipe.schema import DataSpec
from posttrain.recipe.stage import Fault
from posttrain.recipe.words import Loc, did_you_mean
from posttrain.tasks.registry import get_task

ROOT = Path("/")  # paths are absolute by now


def data_faults(name: str, spec: DataSpec) -> Iterator[Fault]:
    """What is wrong with the data set of that name; its paths are absolute."""
    here: Loc = ("data", name)
    if spec.path is not None:
        yield from file_faults(spec.path, (*here, "path"))
    if spec.dataset is not None:
        if looks_local(spec.dataset) and not os.path.exists(spec.dataset):
            why = "it is taken as a local path; nothing is looked up on a hub"
            yield Fault((*here, "dataset"), f"{spec.dataset} does not exist", why)
        for option in set(spec.options) - OPTIONS:
            what = f"`datasets` takes no option `{option}` here"
            yield Fault((*here, "options", option), what, remedy=did_you_mean(option, sorted(OPTIONS)))
    if spec.task is None and spec.size is not None:
        what = "`size` is how many rows a task makes, and this is no task"
        yield Fault((*here, "size"), what, remedy="write `limit:` for the rows taken")
    most = min((rows for rows in (spec.size, spec.limit) if rows is not None), default=spec.reserve)
    if spec.reserve > most:
        yield Fault((*here, "reserve"), f"{spec.reserve} rows cannot be reserved of {most}", remedy="reserve fewer")
    if spec.path is not None and spec.options:
        yield Fault((*here, "options"), "a file takes no `options`", remedy="remove them")
    if spec.reserve and spec.format in ("conversational", "prompt_completion"):
        told = no_queries(name)
        yield Fault((*here, "reserve"), told.what, told.why, told.remedy)
    if spec.filter is not None:
        yield from _located(lambda: compile_filter(str(spec.filter)), (*here, "filter"))
    for column, template in spec.map.items():
        yield from _located(lambda: compile_map({column: template}), (*here, "map", column))  # noqa: B023  called at once
    yield from _task_faults(name, spec)


def file_faults(path: str, loc: Loc) -> Iterator[Fault]:
    """What is wrong with a file, a folder or a pattern of data."""
    try:
        found = resolve(path, ROOT)
    except PosttrainError as error:
        for problem in error.problems:
            why = problem.why or "relative paths begin at the recipe's folder"
            yield Fault(loc, f"{problem.where}: {problem.what}", why, problem.remedy)
        return
    for file in found if isinstance(found, list) else []:
        if file.stat().st_size == 0:
            yield Fault(loc, f"{file} is empty")


def _task_faults(name: str, spec: DataSpec) -> Iterator[Fault]:
    faults: list[Fault] = []
    for field, task in (("task", spec.task), ("verifier", spec.verifier)):
        if task is not None:
            faults += _located(lambda: get_task(task), ("data", name, field))  # noqa: B023  called at once
    yield from faults
    # A task of a library asks its library, which takes seconds to import: see LoadedRecipe.check_libraries.
    if not faults and spec.task is not None and ":" not in spec.task:
        yield from task_option_faults(name, spec)


def task_option_faults(name: str, spec: DataSpec) -> Iterator[Fault]:
    """What a data set's task says of its options."""
    loc: Loc = ("data", name, "options") if spec.options else ("data", name, "task")
    taken = [option for option in ("size", "seed") if option in spec.options]
    if taken:
        yield Fault((*loc, taken[0]), f"`{taken[0]}` stands beside `options:`, not in it", remedy="move it up")
        return
    try:
        yield from _located(lambda: get_task(str(spec.task)).queries(1, 0, **spec.options), loc)
    except (TypeError, ValueError) as error:
        yield Fault(loc, f"task {spec.task} cannot take these options: {error}")


def _located(attempt: Callable[[], Any], loc: Loc) -> list[Fault]:
    """The problems of an attempt, at a place of the recipe."""
    try:
        attempt()
    except PosttrainError as error:
        return [Fault(loc, problem.what, problem.why, problem.remedy) for problem in error.problems]
    return []
