"""Rows in and out of Arrow files, a thousand at a time: a row of its own costs ten times as much."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from posttrain.data.arrow import SampleWriter

if TYPE_CHECKING:
    from datasets import Dataset

BATCH = 1000  # rows read or written at once
BATCH_CHARACTERS = 8_000_000  # of JSON text written at once: bounds memory, however long rows are


def iterate(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Every row, in order."""
    for batch in dataset.iter(BATCH):
        names = list(batch)
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(names, values, strict=True))


class RowWriter:
    """Writes rows into an Arrow file. Columns of `json` hold any JSON value, every row with its own types.

    Args:
        columns: name -> `datasets` type, as "string" or "bool"; or "json".
    """

    def __init__(self, path: Path, columns: dict[str, str]) -> None:
        from datasets import Features, Json, Value

        self._json = [name for name, kind in columns.items() if kind == "json"]
        self._features = Features({name: Json() if kind == "json" else Value(kind) for name, kind in columns.items()})
        self._writer = SampleWriter(path, self._features)
        self._rows: list[dict[str, Any]] = []
        self._characters = 0

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self._writer.discard()

    def write(self, row: dict[str, Any]) -> None:
        """Add a row."""
        row = dict(row)
        for name in self._json:
            if row[name] is not None:
                row[name] = json.dumps(row[name], ensure_ascii=False)
                self._characters += len(row[name])
        self._rows.append(row)
        if len(self._rows) == BATCH or self._characters > BATCH_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]

        columns = {}
        for field in self._features.arrow_schema:
            storage = getattr(field.type, "storage_type", field.type)
            array = pa.array([row[field.name] for row in self._rows], storage)
            columns[field.name] = array if storage is field.type else pa.ExtensionArray.from_storage(field.type, array)
        self._writer.write(columns)
        self._rows, self._characters = [], 0

    def finish(self) -> Dataset:
        """Write what is left, and open the file, memory-mapped."""
        self._flush()
        return self._writer.finish()
