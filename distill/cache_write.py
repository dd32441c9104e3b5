"""Fills a cache of log-probabilities (`distill.cache`): shard by shard, by any number of processes, by any teacher.

Which rows a shard has follows from the data alone. A process writes the shards that are its own; a shard that stands
whole is not written again, whoever wrote it, and one whose checksum is wrong is written anew, alone.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from posttrain.distill.cache import FINGERPRINT, LOW, check_fingerprint
from posttrain.distill.cache_shards import IGNORED, SHARD_TOKENS, Shard, plan_shards
from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import MANIFEST, Damaged, checksum, read_json, write_json

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

    from posttrain.distill.buckets import TopK

BATCH_TOKENS = 8_192
"""Tokens that a teacher is given at once."""

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
        PosttrainError: something else is cached there, or the teacher tells no numbers.
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
    records = [record for shard in shards if (record := shard.recorded(directory)) is not None]
    if len(records) < len(shards):
        return  # another process is not done
    names = [FINGERPRINT]
    files = {name: {"size": (directory / name).stat().st_size, "crc32": checksum(directory / name)} for name in names}
    files |= {record["file"]: {"size": record["size"], "crc32": record["crc32"]} for record in records}
    facts = {"k": k, "entries": entries, "tokens": sum(record["tokens"] for record in records)}
    manifest = {**facts, "shards": records, "files": files}
    if _manifest(directory) != manifest:  # a folder that is only read may be one that cannot be written to
        write_json(directory / MANIFEST, manifest)


def _manifest(directory: Path) -> Any:
    try:
        return read_json(directory / MANIFEST)
    except Damaged:
        return None


def _told(teacher: TeacherLogprobs, dataset: Dataset, shards: Sequence[Shard]) -> Iterator[tuple[list[int], TopK]]:
    """What a teacher says of these shards, batch by batch: the supervised tokens of each row, and what was told.

    One that streams is asked about the next batches, and the next shard's, while these are written down.
    """
    rows: deque[list[int]] = deque()

    def asking() -> Iterator[Asked]:
        for shard in shards:
            for sequences, spans, tokens_of_row in batches_of(dataset, shard):
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
    if bool(top.log_probs.isnan().any()) or bool(top.tail.isnan().any()):
        why = "a student would learn from them that nothing is right"
        remedy = "look at its weights; in float16 large models overflow, and `model.dtype: bfloat16` does not"
        raise PosttrainError(Problem("the teacher's log-probabilities are no numbers (NaN)", why=why, remedy=remedy))
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


def batches_of(dataset: Dataset, shard: Shard) -> Iterator[tuple[list[list[int]], list[list[Span]], list[int]]]:
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
