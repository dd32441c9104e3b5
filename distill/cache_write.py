"""Fills a cache of log-probabilities (`distill.cache`): shard by shard, by any number of processes, by any teacher.

Which rows a shard has follows from the data alone. A process writes the shards that are its own; a shard that stands
whole is not written again, whoever wrote it, and one whose checksum is wrong is written anew, alone.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from posttrain.data.arrow import ListColumn
from posttrain.distill.cache import FINGERPRINT, LOW, check_fingerprint
from posttrain.model.artifacts import MANIFEST, checksum, read_json, write_json

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

    from posttrain.distill.buckets import TopK

SHARD_TOKENS = 65_536
"""Supervised tokens of a shard: what a kill costs at most."""
BATCH_TOKENS = 8_192
"""Tokens that a teacher is given at once."""
IGNORED = -100

Span = tuple[int, int]
"""Positions of tokens that are to be predicted, from the first to before the second."""


Asked = tuple[Sequence[Sequence[int]], Sequence[Sequence[Span]]]
"""Sequences of token ids with, for each, the spans asked about."""


class TeacherLogprobs(Protocol):
    """Whatever knows the k most probable entries, and the mass of all others, before tokens that are given.

    It takes sequences of token ids and, for each, the spans of positions asked about; position 0 is never asked about.
    It gives the positions of all spans, in order, one after the other.
    """

    def __call__(self, sequences: Sequence[Sequence[int]], spans: Sequence[Sequence[Span]]) -> TopK: ...


@runtime_checkable
class StreamingTeacher(TeacherLogprobs, Protocol):
    """A teacher that is asked about several batches at once, and gives one after the other, in order."""

    def stream(self, asked: Iterable[Asked]) -> Iterator[TopK]: ...


@dataclass(frozen=True)
class Shard:
    """Rows `first` to before `first + rows` of the data, with so many supervised tokens."""

    number: int
    first: int
    rows: int
    tokens: int

    @property
    def file(self) -> str:
        return f"shard-{self.number:05d}.arrow"

    def record(self, directory: Path) -> Path:
        return directory / f"shard-{self.number:05d}.json"

    def is_whole(self, directory: Path) -> bool:
        """Whether it stands there as it was written: its checksum is worked out."""
        record, path = read_json(self.record(directory)), directory / self.file
        if record is None or not path.exists() or path.stat().st_size != record["size"]:
            return False
        return asdict(self).items() <= record.items() and bool(checksum(path) == record["crc32"])


def plan_shards(dataset: Dataset, tokens: int = SHARD_TOKENS) -> list[Shard]:
    """The shards of a data set with `input_ids`, `labels` and, where rows are packed, `seq_lengths`."""
    shards: list[Shard] = []
    first = found = 0
    rows = len(dataset)
    for row, supervised in enumerate(_supervised_tokens(dataset)):
        found += supervised
        if found >= tokens or row == rows - 1:
            shards.append(Shard(len(shards), first, row + 1 - first, found))
            first, found = row + 1, 0
    return shards


def fill(
    directory: Path,
    dataset: Dataset,
    open_teacher: Callable[[], TeacherLogprobs],
    fingerprint: Mapping[str, Any],
    *,
    k: int,
    entries: int,
    process: int = 0,
    processes: int = 1,
    shard_tokens: int = SHARD_TOKENS,
    progress: Callable[[int], None] = lambda tokens: None,
) -> int:
    """Write what is missing of this process's shards; the last to finish declares the cache whole.

    Args:
        open_teacher: called once, and only if a shard is missing.
        fingerprint: everything that the numbers depend on, as JSON-able data.
        entries: of the vocabulary.
        progress: called with the number of tokens just stored.

    Returns:
        Tokens that the teacher was asked about.

    Raises:
        PosttrainError: something else is cached there.
    """
    k = min(k, entries)
    if not check_fingerprint(directory, fingerprint):
        write_json(directory / FINGERPRINT, fingerprint)
    shards = plan_shards(dataset, shard_tokens)
    missing = [shard for shard in shards[process::processes] if not shard.is_whole(directory)]
    asked = 0
    if missing:
        (directory / MANIFEST).unlink(missing_ok=True)
        told = _told(open_teacher(), dataset, missing)
        for shard in missing:
            _write(directory, shard, told, k, entries, progress)
            asked += shard.tokens
    _seal(directory, shards, k, entries)
    return asked


def _seal(directory: Path, shards: Sequence[Shard], k: int, entries: int) -> None:
    records = [read_json(shard.record(directory)) for shard in shards]
    if any(record is None for record in records):
        return  # another process is not done
    names = [FINGERPRINT]
    files = {name: {"size": (directory / name).stat().st_size, "crc32": checksum(directory / name)} for name in names}
    files |= {record["file"]: {"size": record["size"], "crc32": record["crc32"]} for record in records}
    facts = {"k": k, "entries": entries, "tokens": sum(record["tokens"] for record in records)}
    write_json(directory / MANIFEST, {**facts, "shards": records, "files": files})


def _told(teacher: TeacherLogprobs, dataset: Dataset, shards: Sequence[Shard]) -> Iterator[tuple[list[int], TopK]]:
    """What a teacher says of these shards, batch by batch: the supervised tokens of each row, and what was told.

    One that streams is asked about the next batches, and the next shard's, while these are written down.
    """
    rows: deque[list[int]] = deque()

    def asking() -> Iterator[Asked]:
        for shard in shards:
            for sequences, spans, tokens_of_row in _batches(dataset, shard):
                rows.append(tokens_of_row)
                yield sequences, spans

    tops = teacher.stream(asking()) if isinstance(teacher, StreamingTeacher) else itertools.starmap(teacher, asking())
    for top in tops:
        yield rows.popleft(), top


def _write(
    directory: Path,
    shard: Shard,
    told: Iterator[tuple[list[int], TopK]],
    k: int,
    entries: int,
    progress: Callable[[int], None],
) -> None:
    """One shard, batch by batch, from what is told next: complete or absent."""
    import pyarrow as pa

    path, record = directory / shard.file, shard.record(directory)
    record.unlink(missing_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")  # another run may share the cache
    try:
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_stream(sink, _schema(k, entries)) as stream:
            rows = 0
            while rows < shard.rows:
                tokens_of_row, top = next(told)
                rows += len(tokens_of_row)
                stream.write_batch(_encoded(top, tokens_of_row, k, entries))
                progress(sum(tokens_of_row))
        size, crc = partial.stat().st_size, checksum(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    write_json(record, {**asdict(shard), "file": shard.file, "size": size, "crc32": crc})


def _schema(k: int, entries: int) -> Any:
    import datasets

    value = datasets.Value
    columns = {
        "log_probs": datasets.List(datasets.List(value("float16"), length=k)),
        "tail": datasets.List(value("float16")),
        "ids_low": datasets.List(datasets.List(value("uint16"), length=k)),
    }
    if entries > LOW:
        columns["ids_high"] = datasets.List(datasets.List(value("uint8"), length=k))
    return datasets.Features(columns).arrow_schema


def _encoded(top: TopK, tokens_of_row: Sequence[int], k: int, entries: int) -> Any:
    """A record batch. What is below float16's range is as good as its lowest number."""
    import numpy as np
    import pyarrow as pa

    if len(top) != sum(tokens_of_row):
        raise ValueError(f"the teacher gave {len(top)} positions, {sum(tokens_of_row)} were asked about")
    offsets = pa.array(np.concatenate([[0], np.cumsum(tokens_of_row)]).astype(np.int32))

    def lists(values: np.ndarray) -> Any:
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(flat, k))

    ids = top.ids.cpu().numpy()
    lowest = float(np.finfo(np.float16).min)
    log_probs, tail = (
        each.float().clamp(min=lowest).cpu().numpy().astype(np.float16) for each in (top.log_probs, top.tail)
    )
    columns = [
        lists(log_probs),
        pa.ListArray.from_arrays(offsets, pa.array(tail)),
        lists((ids % LOW).astype(np.uint16)),
    ]
    if entries > LOW:
        columns.append(lists((ids // LOW).astype(np.uint8)))
    return pa.record_batch(columns, schema=_schema(k, entries))


def _batches(dataset: Dataset, shard: Shard) -> Iterator[tuple[list[list[int]], list[list[Span]], list[int]]]:
    """A shard's rows, some at a time: their sequences with the spans asked about, and each row's supervised tokens.

    A packed row is as many sequences as it has samples: none of them sees another.
    """
    sequences: list[list[int]] = []
    spans: list[list[Span]] = []
    tokens_of_row: list[int] = []
    packed = "seq_lengths" in dataset.column_names
    size = 0
    for at in range(shard.first, shard.first + shard.rows):
        row = dataset[at]
        start = supervised = 0
        for length in row["seq_lengths"] if packed else [len(row["input_ids"])]:
            ids = row["input_ids"][start : start + length]
            own = spans_of(row["labels"][start : start + length])
            start += length
            sequences.append(ids)
            spans.append(own)
            supervised += sum(end - begin for begin, end in own)
            size += length
        tokens_of_row.append(supervised)
        if size >= BATCH_TOKENS:
            yield sequences, spans, tokens_of_row
            sequences, spans, tokens_of_row, size = [], [], [], 0
    if tokens_of_row:
        yield sequences, spans, tokens_of_row


def spans_of(labels: Sequence[int]) -> list[Span]:
    """Where the supervised tokens of one sample are; its first token has nothing to be predicted from."""
    spans: list[Span] = []
    begin: int | None = None
    for at, label in enumerate([*labels[1:], IGNORED], start=1):
        if label != IGNORED and begin is None:
            begin = at
        elif label == IGNORED and begin is not None:
            spans.append((begin, at))
            begin = None
    return spans


def _supervised_tokens(dataset: Dataset) -> Iterator[int]:
    """Each row's number of supervised tokens, as `spans_of` counts them."""
    import numpy as np

    labels = ListColumn(dataset, "labels")
    lengths = ListColumn(dataset, "seq_lengths") if "seq_lengths" in dataset.column_names else None
    for row in range(len(dataset)):
        own = labels.gather(np.array([row]))
        counted = own != IGNORED
        starts = np.zeros(1, np.int64)
        if lengths is not None:
            starts = np.concatenate([[0], np.cumsum(lengths.gather(np.array([row])))[:-1]])
        counted[starts] = False
        yield int(counted.sum())
