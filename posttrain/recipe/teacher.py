"""Who teaches a stage: one model, here or served, or several by task or data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from posttrain.recipe.endpoint import EndpointSpec

OneTeacher = str | EndpointSpec


class Teachers(BaseModel):
    """Several teachers. A query's teacher is the one of its data set, else the one of its task, else the default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    by_data: dict[str, OneTeacher] = Field(default_factory=dict, description="teachers by name under `data:`")
    by_task: dict[str, OneTeacher] = Field(
        default_factory=dict, description="teachers by task: what makes or scores the queries, as math or arithmetic"
    )
    default: OneTeacher | None = Field(default=None, description="the teacher of all other queries")

    def of(self, data: str | None, task: str) -> OneTeacher | None:
        """The teacher of a query, from its data set (None: not known) and its task; None where there is none."""
        return self.by_data.get(data or "") or self.by_task.get(task) or self.default


Teacher = OneTeacher | Teachers


def each_teacher(teacher: Teacher | None) -> Iterator[tuple[tuple[str | int, ...], OneTeacher]]:
    """Every single teacher, with its place below `teacher`."""
    if isinstance(teacher, Teachers):
        for key in ("by_data", "by_task"):
            for name, one in getattr(teacher, key).items():
                yield (key, name), one
        if teacher.default is not None:
            yield ("default",), teacher.default
    elif teacher is not None:
        yield (), teacher


def with_each(teacher: Teacher, changed: Callable[[OneTeacher], OneTeacher]) -> Teacher:
    """The teacher with every single one replaced."""
    if not isinstance(teacher, Teachers):
        return changed(teacher)
    by_data, by_task = ({name: changed(one) for name, one in by.items()} for by in (teacher.by_data, teacher.by_task))
    default = None if teacher.default is None else changed(teacher.default)
    return Teachers(by_data=by_data, by_task=by_task, default=default)


def in_words(teacher: Teacher | Path | None) -> str | None:
    """A teacher for people: its name, or every name with what it teaches."""
    if isinstance(teacher, EndpointSpec):
        return f"{teacher.model} (served)"
    if not isinstance(teacher, Teachers):
        return None if teacher is None else str(teacher)
    each = ((in_words(one), place[-1] if place[1:] else "the rest") for place, one in each_teacher(teacher))
    return ", ".join(f"{name} for {taught}" for name, taught in each)
