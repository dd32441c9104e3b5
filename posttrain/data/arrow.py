"""Lists of tokens between numpy and Arrow, without a Python object a token: how samples are read and written."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
    from datasets import Dataset


def list_array(values: np.ndarray, lengths: np.ndarray) -> pa.Array:
    """A list column of int32: row i holds the next `lengths[i]` of the flat `values`."""
    import numpy as np
    import pyarrow as pa

    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, type=pa.int32()))


class ListColumn:
    """The lists of a column, read in place: `column[i]` is a view of row i, wherever its chunk lies in the file."""

    def __init__(self, dataset: Dataset, name: str) -> None:
        import numpy as np

        chunks = dataset.data.column(name).chunks
        self._values = [chunk.values.to_numpy(zero_copy_only=False) for chunk in chunks]
        offsets = [chunk.offsets.to_numpy() for chunk in chunks]
        none = [np.zeros(0, dtype=np.int64)]
        self._starts = np.concatenate(none + [each[:-1] for each in offsets])
        self._chunks = np.repeat(np.arange(len(chunks)), [len(chunk) for chunk in chunks])
        self.lengths = np.concatenate(none + [np.diff(each) for each in offsets]).astype(np.int64)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """The lists of `rows` one after the other, flat."""
        import numpy as np

        starts = self._starts[rows]
        spans = zip(self._chunks[rows].tolist(), starts.tolist(), (starts + self.lengths[rows]).tolist(), strict=True)
        return np.concatenate([self._values[chunk][start:end] for chunk, start, end in spans])


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="posttrain-")  # goes with the process


class SampleWriter:
    """Writes rows into an Arrow file, batch by batch, and opens it memory-mapped as a Dataset.

    Args:
        path: the file; None: a temporary one that goes with the process.
        features: `datasets.Features` of the rows.
    """

    def __init__(self, path: Path | None, features: Any) -> None:
        import pyarrow as pa

        if path is None:
            path = Path(tempfile.mkdtemp(dir=_scratch().name)) / "samples.arrow"
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._schema = features.arrow_schema
        path.parent.mkdir(parents=True, exist_ok=True)
        self._sink = pa.OSFile(str(self._partial), "wb")
        self._stream = pa.ipc.new_stream(self._sink, self._schema)

    def write(self, columns: dict[str, Any]) -> None:
        """Write rows, given as one Arrow array a column."""
        import pyarrow as pa

        self._stream.write_table(pa.table([columns[name] for name in self._schema.names], schema=self._schema))

    def finish(self) -> Dataset:
        """Close the file, put it in its place, and open it."""
        from datasets import Dataset

        self._stream.close()
        self._sink.close()
        self._partial.replace(self._path)
        return Dataset.from_file(str(self._path))

    def discard(self) -> None:
        """Leave nothing behind."""
        self._stream.close()
        self._sink.close()
        self._partial.unlink(missing_ok=True)
