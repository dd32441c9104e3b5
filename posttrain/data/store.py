"""Queries and conversations as Arrow files, written as they stream in and opened memory-mapped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.data.arrow import SampleWriter
from posttrain.data.rows import CONVERSATION_COLUMNS
from posttrain.tasks.task import QUERY_COLUMNS

if TYPE_CHECKING:
    from datasets import Dataset, Features

Row = dict[str, Any]
BATCH = 1000  # rows written at once, or fewer of many characters
BATCH_CHARACTERS = 8_000_000


def row_features(conversations: bool) -> Features:
    """The columns of conversations, or of queries. Messages and tools of conversations are JSON: types and all."""
    from datasets import Features, Json, List, Value

    text = Value("string")
    special = {"prompt": List({"role": text, "content": text}), "messages": Json(), "tools": Json()}
    special["difficulty"] = Value("int32")
    names = CONVERSATION_COLUMNS if conversations else QUERY_COLUMNS
    return Features({name: special.get(name, text) for name in names})


def write_rows(
    rows: Iterator[Row], path: Path | None, limit: int | None, before_opening: Callable[[], None]
) -> Dataset | None:
    """Write rows into an Arrow file and open it; None if there is none.

    Args:
        rows: all queries, or all conversations.
        path: the file; None: a temporary one that goes with the process.
        limit: rows to take at most.
        before_opening: called when all are written; if it raises, no file is left.
    """
    writer: SampleWriter | None = None
    features: Any = None
    try:
        for batch in _batches(islice(rows, limit)):
            if writer is None:
                features = row_features("messages" in batch[0])
                writer = SampleWriter(path, features)
            writer.write(_columns(batch, features))
        before_opening()
    except BaseException:
        if writer:
            writer.discard()
        raise
    return writer.finish() if writer else None


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    characters = 0
    for row in rows:
        if "messages" in row:
            row |= {"messages": _json(row["messages"]), "tools": _json(row["tools"]) if row["tools"] else None}
            characters += len(row["messages"])
        else:
            characters += sum(len(message["content"]) for message in row["prompt"])
        batch.append(row)
        if len(batch) == BATCH or characters > BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _columns(batch: list[Row], features: Any) -> dict[str, Any]:
    import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]

    columns = {}
    for field in features.arrow_schema:
        storage = getattr(field.type, "storage_type", field.type)
        array = pa.array([row[field.name] for row in batch], storage)
        columns[field.name] = array if storage is field.type else pa.ExtensionArray.from_storage(field.type, array)
    return columns
