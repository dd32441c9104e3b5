"""Queries that several teachers answer, each the ones that are its own."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from posttrain.errors import PosttrainError, Problem
from posttrain.recipe.teacher import OneTeacher, Teachers
from posttrain.sft.completions import Candidate, Completions
from posttrain.sft.query_filters import Query
from posttrain.templates.families import Mode

if TYPE_CHECKING:
    from datasets import Dataset

    from posttrain.recipe.stage import StageContext

log = logging.getLogger("posttrain")


def by_teacher(teachers: Teachers, queries: Dataset, data: str | None, stage: str) -> dict[OneTeacher, list[int]]:
    """The places of the queries that each teacher answers.

    Args:
        data: the name of the data set that the queries come from, if they come from one.
        stage: that asks.

    Raises:
        PosttrainError: some have no teacher; their tasks are named.
    """
    tasks = queries["task"] if "task" in queries.column_names else [""] * len(queries)
    places: dict[OneTeacher, list[int]] = {}
    without: dict[str, int] = {}
    for place, task in enumerate(tasks):
        teacher = teachers.of(data, str(task or ""))
        if teacher is None:
            without[str(task)] = without.get(str(task), 0) + 1
        else:
            places.setdefault(teacher, []).append(place)
    if without:
        listed = ", ".join(f"{count} of task `{task}`" for task, count in without.items())
        what = f"stage {stage}: queries have no teacher: {listed}"
        raise PosttrainError(Problem(what, remedy="give teacher.default, or name the task"))
    return places


def check_routes(context: StageContext) -> None:
    """See that every query of a stage with several teachers has one; warn of tasks that are named and have no query.

    Raises:
        PosttrainError: some have none; their tasks are named.
    """
    from datasets import load_from_disk

    teachers, stage = context.teacher, context.recipe.stages[context.name]
    if not isinstance(teachers, Teachers):
        return
    tasks: set[str] = set()
    for name in dict.fromkeys(name for _, name in stage.data_references()):
        rows = load_from_disk(str(context.run.data(name)))
        by_teacher(teachers, rows, name, context.name)
        tasks |= set(rows.unique("task")) if "task" in rows.column_names else set()
    unused = ", ".join(f"`{task}`" for task in teachers.by_task if task not in tasks)
    if unused and not stage.stage_references():  # whose queries are not there yet
        there = ", ".join(f"`{task}`" for task in sorted(tasks))
        log.warning(
            "%s: no query is of task %s, which teacher.by_task names; there are %s", context.name, unused, there
        )


class RoutedCompletions:
    """Several `Completions` over parts of the same queries, read as one in the queries' order.

    Args:
        queries: all of them.
        parts: for each teacher the places of its queries, and what opens their completions.
    """

    def __init__(self, queries: Sequence[Query], parts: Sequence[tuple[list[int], Completions]]) -> None:
        self.queries, self._parts = queries, parts

    @property
    def samples(self) -> int:
        return self._parts[0][1].samples

    @property
    def mode(self) -> Mode:
        return self._parts[0][1].mode

    @property
    def parts(self) -> list[Completions]:
        return [part for _, part in self._parts]

    def __len__(self) -> int:
        return sum(len(part) for _, part in self._parts)

    def generate(self, advance: Callable[[int], None] = lambda done: None) -> None:
        """Generate what is missing, teacher after teacher."""
        for _, part in self._parts:
            part.generate(advance)

    def __iter__(self) -> Iterator[list[Candidate]]:
        readers = [iter(part) for _, part in self._parts]
        owner = {place: number for number, (places, _) in enumerate(self._parts) for place in places}
        for place in range(len(self.queries)):
            group = next(readers[owner[place]])
            yield [dataclasses.replace(candidate, query=place) for candidate in group]
