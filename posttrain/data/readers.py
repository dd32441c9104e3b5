"""Rows from files, one at a time: JSONL, a JSON array, parquet, or what `datasets` opens. Nothing is held in memory."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.data.faults import Place, RowFaults

if TYPE_CHECKING:
    from datasets import Dataset

Row = dict[str, Any]
CHUNK = 1 << 16  # bytes
BATCH = 1000  # rows


def read_file(path: Path, faults: RowFaults) -> Iterator[tuple[Place, Row]]:
    """The rows of a JSONL, JSON or parquet file, each with its place. Rows that cannot be read go to `faults`."""
    source = str(path)
    before = faults.count
    empty = True
    try:
        if path.stat().st_size == 0:
            rows: Iterator[tuple[Place, Row]] = iter(())
        elif path.suffix == ".parquet":
            rows = _read_parquet(path, faults)
        elif _starts_an_array(path):
            rows = _read_array(path, faults)
        else:
            rows = _read_lines(path, faults)
        for row in rows:
            empty = False
            yield row
    except OSError as error:
        faults.add(Place(source), f"cannot be read: {error.strerror or error}")
    else:
        if empty and faults.count == before:
            faults.add(
                Place(source), "the file is empty" if path.stat().st_size == 0 else "there is no row in the file"
            )


def rows_in(files: Sequence[Path]) -> int | None:
    """How many rows files hold, by their lines or their footers; None for JSON arrays and what cannot be read."""
    rows = 0
    for path in files:
        try:
            if path.suffix == ".parquet":
                from pyarrow import parquet

                rows += parquet.read_metadata(path).num_rows
            elif _starts_an_array(path):
                return None
            else:
                with path.open("rb") as file:
                    rows += sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
        except (OSError, ValueError):  # told where the rows are read
            return None
    return rows


def read_dataset(dataset: Dataset, source: str) -> Iterator[tuple[Place, Row]]:
    """The rows of a `datasets.Dataset`, each with its place."""
    for number, row in enumerate(dataset, 1):
        yield Place(source, number, is_line=False), row


def _read_lines(path: Path, faults: RowFaults) -> Iterator[tuple[Place, Row]]:
    source = str(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
                if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    faults.add(Place(source), "the file is UTF-16; only UTF-8 is read")
                    return
            if line.isspace() or not line:
                continue
            place = Place(source, number)
            try:
                row = json.loads(line.decode())
                if b"\\u" in line:
                    json.dumps(row, ensure_ascii=False).encode()  # refuses half a surrogate pair, as Arrow would
            except UnicodeDecodeError as error:
                faults.add(place, f"not UTF-8: byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line")
            except UnicodeEncodeError:
                faults.add(place, "half a surrogate pair (\\ud800 to \\udfff): no valid text")
            except json.JSONDecodeError as error:
                faults.add(place, f"broken JSON: {error.msg} (column {error.colno})")
            except (RecursionError, ValueError) as error:
                faults.add(place, f"JSON that cannot be read: {error}")
            else:
                if isinstance(row, dict):
                    yield place, row
                else:
                    faults.add(place, f"a row is a JSON object, not {kind_of(row)}")


def _starts_an_array(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix == ".json" and file.read(CHUNK).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def _read_array(path: Path, faults: RowFaults) -> Iterator[tuple[Place, Row]]:
    """The objects of one JSON array, decoded one at a time as the file is read; a place is the line of its start."""
    text = _Text(path)
    try:
        text.skip("[")
        while text.peek() != "]":
            place = Place(str(path), text.line)
            row = text.value()
            if isinstance(row, dict):
                yield place, row
            else:
                faults.add(place, f"a row is a JSON object, not {kind_of(row)}")
            if text.peek() != "]":
                text.skip(",")
    except UnicodeDecodeError as error:
        faults.add(Place(str(path)), f"not UTF-8: byte 0x{error.object[error.start]:02x} after line {text.line}")
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        faults.add(Place(str(path)), f"broken JSON at or after line {text.line}: {reason}")


class _Text:
    """A JSON text read in chunks: enough of it for the value at hand. Knows the line it is at."""

    def __init__(self, path: Path) -> None:
        self.line = 1
        self._buffer = ""
        self._decoder = json.JSONDecoder()
        self._chunks = self._read(path)

    @staticmethod
    def _read(path: Path) -> Iterator[str]:
        decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield decode(chunk)
        yield decode(b"", True)

    def peek(self) -> str:
        """The next character that is no white space."""
        while True:
            stripped = self._buffer.lstrip()
            self._drop(len(self._buffer) - len(stripped))
            if self._buffer:
                return self._buffer[0]
            if not self._grow():
                raise ValueError("the array is not closed")

    def skip(self, character: str) -> None:
        if self.peek() != character:
            raise ValueError(f"expected {character!r}, found {self._buffer[:20]!r}")
        self._drop(1)

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer)
            except json.JSONDecodeError:
                if not self._grow():
                    raise
                continue
            if end < len(self._buffer) or not self._grow():  # a number may go on in the next chunk
                self._drop(end)
                return value

    def _grow(self) -> bool:
        """Read as much again as is there, so that a long value is tried a few times only."""
        before = wanted = len(self._buffer)
        parts = [self._buffer]
        for chunk in self._chunks:
            parts.append(chunk)
            wanted -= len(chunk)
            if wanted < 0:
                break
        self._buffer = "".join(parts)
        return len(self._buffer) > before

    def _drop(self, count: int) -> None:
        self.line += self._buffer.count("\n", 0, count)
        self._buffer = self._buffer[count:]


def _read_parquet(path: Path, faults: RowFaults) -> Iterator[tuple[Place, Row]]:
    import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH):
                try:
                    rows: list[Row | None] = batch.to_pylist()
                except UnicodeDecodeError:
                    rows = [_decoded(batch.slice(i, 1)) for i in range(len(batch))]
                for row in rows:
                    number += 1
                    place = Place(str(path), number, is_line=False)
                    if row is None:
                        faults.add(place, "not UTF-8")
                    else:
                        yield place, row
    except (pa.ArrowException, OSError) as error:
        where = f" after row {number}" if number else ""
        faults.add(Place(str(path)), f"no sound parquet file{where}: {str(error).splitlines()[0]}")


def _decoded(row: Any) -> Row | None:
    try:
        decoded: Row = row.to_pylist()[0]
        return decoded
    except UnicodeDecodeError:
        return None


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    kinds = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else kinds.get(type(value), f"a {type(value).__name__}")
