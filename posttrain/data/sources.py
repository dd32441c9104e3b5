"""Opens one named data set of a recipe: files, a `datasets` name, or a procedural task, as queries or conversations.

Rows stream from their source through map, filter and normalisation into an Arrow file that is memory-mapped, so memory
stays flat however many there are. Every fault is named by file and line (`faults.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from posttrain.data.columns import compile_map
from posttrain.data.expression import ExpressionFault, compile_filter
from posttrain.data.faults import BadRow, Place, RowFaults
from posttrain.data.locations import looks_local, open_named, open_saved, resolve
from posttrain.data.readers import read_dataset, read_file, rows_in
from posttrain.data.rows import CONVERSATION_COLUMNS, RowReader, shape_of
from posttrain.data.store import write_rows
from posttrain.errors import PosttrainError, Problem
from posttrain.progress import progress
from posttrain.tasks.registry import get_task
from posttrain.tasks.task import QUERY_COLUMNS, derive_seed

if TYPE_CHECKING:
    from datasets import Dataset

Row = dict[str, Any]
R = TypeVar("R")


class Spec(Protocol):
    """What is read of a data set's description in a recipe (`recipe.schema.DataSpec`)."""

    @property
    def path(self) -> str | None: ...
    @property
    def dataset(self) -> str | None: ...
    @property
    def split(self) -> str: ...
    @property
    def task(self) -> str | None: ...
    @property
    def size(self) -> int | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def options(self) -> Mapping[str, Any]: ...
    @property
    def format(self) -> str: ...
    @property
    def map(self) -> Mapping[str, str]: ...
    @property
    def filter(self) -> str | None: ...
    @property
    def limit(self) -> int | None: ...
    @property
    def verifier(self) -> str | None: ...
    @property
    def on_bad_rows(self) -> str: ...


@dataclass
class LoadCounts:
    """What became of the rows of one data set.

    Attributes:
        read: rows that could be read. kept: rows in the data set.
        filtered: rows for which `filter` was false. bad: rows skipped for a fault.
        bad_examples: the first of those, as "file:line: what".
    """

    read: int = 0
    kept: int = 0
    filtered: int = 0
    bad: int = 0
    bad_examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Loaded:
    """A data set with what became of the rows it was read from."""

    dataset: Dataset
    counts: LoadCounts


def load_data(name: str, spec: Spec, *, base_dir: Path, seed: int, cache_dir: Path | None = None) -> Dataset:
    """The data set of `load`, without the counts."""
    return load(name, spec, base_dir=base_dir, seed=seed, cache_dir=cache_dir).dataset


def load(
    name: str, spec: Spec, *, base_dir: Path, seed: int, cache_dir: Path | None = None, quiet: bool = True
) -> Loaded:
    """Read a data set as queries (`tasks.task.QUERY_COLUMNS`) or conversations (`rows.CONVERSATION_COLUMNS`).

    Args:
        name: its name in the recipe; also the default domain of its rows, and part of their default ids.
        base_dir: where relative paths begin: the recipe's folder.
        seed: the recipe's; a procedural task's problems depend on it, on the spec's own seed and on the name.
        cache_dir: where the Arrow file `NAME.arrow` is written; None: a temporary one that goes with the process.
        quiet: show no progress.

    Raises:
        PosttrainError: a source is missing, a description is wrong, rows are bad (all named by file and line, unless
            `on_bad_rows` is "skip"), or no row is left.
    """
    faults = RowFaults(name, skip=spec.on_bad_rows == "skip")
    counts = LoadCounts()
    path = cache_dir / f"{name}.arrow" if cache_dir else None
    total, opened = (spec.size, None) if spec.task else _open(spec, base_dir, faults)
    try:
        with progress(f"reading data {name}", total or 0, quiet=quiet or not total) as advance:
            if opened is None:
                rows = _task_rows(name, spec, seed, counts, advance)
            else:
                rows = _source_rows(name, spec, _counted(opened, counts, advance), faults, counts)
            dataset = write_rows(rows, path, spec.limit, faults.settle)
    except PosttrainError as error:
        raise PosttrainError(_placed(problem, name) for problem in error.problems) from error
    counts.kept = len(dataset) if dataset is not None else 0
    counts.bad = faults.count
    counts.bad_examples = tuple(f"{problem.where}: {problem.what}" for problem in faults.shown)
    if dataset is None:
        what = f"data {name!r} has no row left: {counts.read} read, {counts.filtered} filtered out, {counts.bad} bad"
        raise PosttrainError(Problem(what, remedy="look at its `filter`, its columns and the rows skipped"))
    return Loaded(dataset, counts)


def _placed(problem: Problem, name: str) -> Problem:
    where = problem.where or f"data.{name}"
    return Problem(problem.what, where, problem.why, problem.remedy)


def _counted(rows: Iterable[R], counts: LoadCounts, advance: Callable[[int], None]) -> Iterator[R]:
    for row in rows:
        counts.read += 1
        advance(1)
        yield row


def _task_rows(name: str, spec: Spec, seed: int, counts: LoadCounts, advance: Callable[[int], None]) -> Iterator[Row]:
    assert spec.task is not None
    if spec.size is None:
        raise PosttrainError(Problem("a procedural task needs `size`: how many rows to make", f"data.{name}"))
    keeps = compile_filter(spec.filter, f"data.{name}.filter") if spec.filter else None
    remap = compile_map(spec.map, f"data.{name}.map")
    queries = get_task(spec.task).queries(spec.size, derive_seed(name, seed, spec.seed), **spec.options)
    return _kept_queries(_counted(queries, counts, advance), keeps, remap, spec.verifier, counts)


def _kept_queries(
    queries: Iterable[Row],
    keeps: Callable[[Row], bool] | None,
    remap: Callable[[Row], Row],
    verifier: str | None,
    counts: LoadCounts,
) -> Iterator[Row]:
    for query in queries:
        try:
            row = remap(query)
            kept = keeps is None or keeps(row)
        except (BadRow, ExpressionFault) as problem:
            raise PosttrainError(Problem(str(problem))) from None  # a task's rows are all alike
        if kept and "messages" in row:  # a task may make conversations, as games that were played
            yield {column: row[column] for column in CONVERSATION_COLUMNS}
        elif kept:
            yield {**{column: row[column] for column in QUERY_COLUMNS}, "task": verifier or row["task"]}
        else:
            counts.filtered += 1


def _source_rows(
    name: str, spec: Spec, opened: Iterator[tuple[Place, Row]], faults: RowFaults, counts: LoadCounts
) -> Iterator[Row]:
    if spec.verifier:
        get_task(spec.verifier)
    keeps = compile_filter(spec.filter, f"data.{name}.filter") if spec.filter else None
    remap = compile_map(spec.map, f"data.{name}.map")
    return _normalised(name, spec, opened, remap, keeps, faults, counts)


def _open(spec: Spec, base_dir: Path, faults: RowFaults) -> tuple[int | None, Iterator[tuple[Place, Row]]]:
    """How many rows there are, about, or None where that is not told quickly; and the rows."""
    path = spec.path if spec.path is not None else spec.dataset
    assert path is not None
    if spec.path is None and not looks_local(path):
        opened = open_named(path, spec.split, spec.options)
        return len(opened), read_dataset(opened, f"{path}[{spec.split}]")
    files = resolve(path, base_dir)
    if isinstance(files, Path):
        saved = open_saved(files, spec.split)
        return len(saved), read_dataset(saved, str(files))
    return rows_in(files), (row for file in files for row in read_file(file, faults))


def _normalised(
    name: str,
    spec: Spec,
    rows: Iterator[tuple[Place, Row]],
    remap: Callable[[Row], Row],
    keeps: Callable[[Row], bool] | None,
    faults: RowFaults,
    counts: LoadCounts,
) -> Iterator[Row]:
    reader: RowReader | None = None
    for place, raw in rows:
        try:
            row = remap(raw)
            if keeps is not None and not keeps(row):
                counts.filtered += 1
                continue
            if reader is None:
                shape: Any = shape_of(row, spec.map, spec.verifier) if spec.format == "auto" else spec.format
                reader = RowReader(name, shape, spec.verifier)
            yield reader(row, counts.read)
        except (BadRow, ExpressionFault) as problem:
            faults.add(place, str(problem))
        except PosttrainError as error:  # the format of the first row is unknown: so is the others'
            first = error.problems[0]
            raise PosttrainError(Problem(first.what, str(place), first.why, first.remedy)) from None
