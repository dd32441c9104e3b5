"""Data of a command line, as a recipe names them: what a file's columns are, and what scores its answers."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.data.locations import looks_local
from posttrain.errors import PosttrainError, Problem
from posttrain.tasks.task import text_key

PROMPTS = ("prompt", "question", "problem", "instruction", "query", "input")
ANSWERS = ("answer", "final_answer", "solution", "target", "label")
NUMBER = re.compile(r"[-+]?[$€£]?\s?\d[\d,. /]*(?:[eE][-+]?\d+)?\s?%?")
LOOKED_AT = 500
"""Rows of a file that are read to see what they are."""
TASK_ROWS = 2000
MOST_RESERVED = 256


@dataclass(frozen=True)
class Queries:
    """One data set, as the recipe names it.

    Attributes:
        path: as written in the recipe, or "" for a task.
        map: columns under other names.
        why: how the verifier was chosen.
        rows: how many there are, about, each question counted once.
    """

    name: str
    rows: int
    path: str = ""
    task: str = ""
    map: Mapping[str, str] = field(default_factory=dict)
    verifier: str = ""
    why: str = ""

    @property
    def reserve(self) -> int:
        return max(1, min(MOST_RESERVED, self.rows // 10))


def as_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_-") or "data"


def as_written(value: Any, folder: Path) -> Any:
    """A local path as the recipe writes it, from its own folder; everything else as it stands."""
    if not isinstance(value, str) or not looks_local(value, Path.cwd()):
        return value
    relative = os.path.relpath(Path(value).expanduser(), folder)
    return relative if relative.startswith(".") else f"./{relative}"


def data_sets(data: Sequence[str], verifier: str | None, folder: Path) -> list[Queries]:
    from posttrain.tasks.registry import get_task

    if verifier:
        get_task(verifier)  # raises, with the nearest names
    found: list[Queries] = []
    for text in data:
        taken = {one.name for one in found}
        is_file = looks_local(text, Path.cwd())
        name = as_name(Path(text).stem if is_file else text.rpartition(":")[2])
        names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        name = next(one for one in names if one not in taken)
        found.append(_of_file(name, text, verifier, folder) if is_file else _of_task(name, text))
    return found


def _of_task(name: str, task: str) -> Queries:
    from posttrain.tasks.registry import get_task

    if "/" in task:
        what = f"{task} is neither a file here nor a task"
        remedy = f"write its rows to a JSONL or parquet file; a recipe takes a name of the hub as `dataset: {task}`"
        raise PosttrainError(Problem(what, remedy=remedy))
    get_task(task)  # raises, with the nearest names
    return Queries(name, TASK_ROWS, task=task)


def _of_file(name: str, text: str, verifier: str | None, folder: Path) -> Queries:
    rows, count = _first_rows(text)
    if not rows:
        raise PosttrainError(Problem("no row in it can be read", text, remedy="give queries with answers, one a line"))
    columns = list(rows[0])
    prompt = next((column for column in PROMPTS if column in columns), None)
    answer = next((column for column in ANSWERS if column in columns), None)
    if prompt is None or answer is None:
        missing = "no column of prompts" if prompt is None else "no column of answers, which the evaluation scores"
        names = ", ".join(PROMPTS if prompt is None else ANSWERS)
        what = f"{missing}; the columns are {', '.join(columns)}"
        raise PosttrainError(Problem(what, text, remedy=f"call it one of {names}, or write a recipe with `map`"))
    wanted = {"prompt": prompt, "answer": answer}
    different = len({text_key(str(row.get(prompt))) for row in rows})
    if different < 2:
        what = "a single row is in it" if count < 2 else f"the same question stands in all of its {count} rows"
        why = "the evaluation reserves one, and none is left to train on"
        raise PosttrainError(Problem(what, text, why, "give more queries with answers"))
    given = [row[answer] for row in rows if row.get(answer) not in (None, "")]
    chosen, why = (verifier, "as asked") if verifier else verifier_for(given)
    mapped = {ours: theirs for ours, theirs in wanted.items() if ours != theirs}
    return Queries(
        name, round(count * different / len(rows)), as_written(text, folder), map=mapped, verifier=chosen, why=why
    )


def _first_rows(text: str) -> tuple[list[dict[str, Any]], int]:
    """The first rows of a file or folder, and about how many it has: by its size, where it has more."""
    from posttrain.data.faults import RowFaults
    from posttrain.data.locations import resolve
    from posttrain.data.readers import read_file

    files = resolve(text, Path.cwd())
    if isinstance(files, Path):
        remedy = "give its rows as JSONL or parquet, or write a recipe with `path`"
        raise PosttrainError(Problem("a folder of `datasets` is not looked into here", text, remedy=remedy))
    faults = RowFaults("rows")  # the run tells them
    rows = list(itertools.islice((row for file in files for _, row in read_file(file, faults)), LOOKED_AT))
    if len(rows) < LOOKED_AT:
        return rows, len(rows)
    if all(file.suffix == ".parquet" for file in files):  # compressed: its size tells nothing
        from pyarrow import parquet  # type: ignore[import-untyped,unused-ignore]

        return rows, sum(parquet.read_metadata(file).num_rows for file in files)
    size = sum(file.stat().st_size for file in files)
    read = sum(len(json.dumps(row, ensure_ascii=False, default=str).encode()) + 1 for row in rows)
    return rows, max(LOOKED_AT, round(size / read * len(rows)))


def verifier_for(answers: Sequence[Any]) -> tuple[str, str]:
    """The strictest verifier that can read all of some answers, and why it was chosen."""
    from posttrain.tasks.answers import final_answer, parse_choice, parse_number

    texts = [str(answer).strip() for answer in answers]
    finals = [final_answer(text) or text for text in texts]
    if all(NUMBER.fullmatch(text) and parse_number(text) is not None for text in finals):
        return "number", "all answers are numbers"
    if all(len(text) <= 3 and parse_choice(text) is not None for text in finals):
        return "choice", "all answers are letters of a choice"
    if any(re.search(r"[\\^_={}]|\d", text) for text in finals):
        return "math", "answers with formulas or numbers in them"
    return "exact", "answers are words"
