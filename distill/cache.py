"""A teacher's log-probabilities on disk: its k most probable entries and the tail's mass, position by position.

    CACHE/fingerprint.json     what they depend on; written first
    CACHE/shard-00000.arrow    an Arrow stream, as `datasets.Dataset.from_file` opens it; one row a row of training data
    CACHE/shard-00000.json     that the shard is whole: its rows, its tokens, its size and checksum
    CACHE/manifest.json        that the cache is whole; written last

Columns of a row with T supervised tokens: `log_probs` (T, k) float16 in nats, most probable first; `tail` (T) float16,
the logarithm of the mass of all other entries; `ids_low` (T, k) uint16 and, where the vocabulary has more than 65,536
entries, `ids_high` (T, k) uint8: an id is low + 65,536 high. That is 4 bytes an entry, or 5, and 2 a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import MANIFEST, faults_of, read_json
from posttrain.recipe.fingerprint import fingerprint_difference

if TYPE_CHECKING:
    import numpy as np

    from posttrain.distill.buckets import TopK

FINGERPRINT = "fingerprint.json"
LOW = 65_536


def check_fingerprint(directory: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether something made with this fingerprint stands there; False where nothing does.

    Raises:
        PosttrainError: it was made with another one; the difference is told.
    """
    found = read_json(directory / FINGERPRINT)
    if found is None:
        return False
    difference = fingerprint_difference(found, wanted)
    if difference:
        raise PosttrainError(
            Problem(
                f"{directory} was made from something else: {'; '.join(difference)}",
                why="a student would learn from log-probabilities of other tokens, or of another teacher",
                remedy="name another place under `logits.cache`, or remove this one",
            )
        )
    return True


class LogprobCache:
    """A whole cache, mapped into memory: reading one row reads the row, however large the cache. Any number may read.

    Args:
        directory: as `cache_write.fill` leaves it.

    Raises:
        PosttrainError: it is not whole.
    """

    def __init__(self, directory: Path) -> None:
        faults = faults_of(directory, checksums=False)
        if faults:
            what = f"the teacher's stored log-probabilities are not whole: {faults[0]}"
            raise PosttrainError(Problem(what, remedy="the same command makes what is missing, and keeps the rest"))
        manifest = read_json(directory / MANIFEST)
        self.directory, self.k, self.entries = directory, int(manifest["k"]), int(manifest["entries"])
        self.tokens: int = manifest["tokens"]
        self._shards: list[dict[str, Any]] = manifest["shards"]
        self._opened: dict[int, ShardFile] = {}

    def __len__(self) -> int:
        return int(self._shards[-1]["first"] + self._shards[-1]["rows"]) if self._shards else 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}  # a worker process maps the files itself

    def read(self, rows: Sequence[int]) -> TopK:
        """The positions of these rows one after the other: ids (N, K) int64, log-probs and tail float32."""
        import numpy as np
        import torch

        from posttrain.distill.buckets import TopK

        parts = [self._shard(row).read(row) for row in rows]
        ids, log_probs, tails = (np.concatenate(each) for each in zip(*parts, strict=True))
        return TopK(torch.from_numpy(ids), torch.from_numpy(log_probs), torch.from_numpy(tails))

    def _shard(self, row: int) -> ShardFile:
        import bisect

        number = bisect.bisect_right(self._shards, row, key=lambda shard: shard["first"]) - 1
        if number not in self._opened:
            path = self.directory / self._shards[number]["file"]
            self._opened[number] = ShardFile(path, self._shards[number]["first"], self.k)
        return self._opened[number]


class ShardFile:
    """One file: its columns as views of the mapped memory."""

    def __init__(self, path: Path, first: int, k: int) -> None:
        import numpy as np
        import pyarrow as pa

        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
            batches = list(stream)
        self._batches = [_Batch(batch, k) for batch in batches]
        self._starts = np.cumsum([first, *(len(batch) for batch in batches)])

    def read(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A row's ids (T, K) int64, log-probabilities (T, K) and tail (T) float32."""
        import numpy as np

        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._batches[number].read(row - int(self._starts[number]))


class _Batch:
    def __init__(self, batch: Any, k: int) -> None:
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        self._offsets = columns["tail"].offsets.to_numpy()
        self._tail = columns["tail"].values.to_numpy(zero_copy_only=True)
        self._log_probs, self._low, *self._high = (
            columns[name].values.values.to_numpy(zero_copy_only=True).reshape(-1, k)
            for name in ("log_probs", "ids_low", "ids_high")
            if name in columns
        )

    def read(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        import numpy as np

        where = slice(*self._offsets[row : row + 2])
        ids = self._low[where].astype(np.int64)
        for high in self._high:
            ids += high[where].astype(np.int64) << 16
        return ids, self._log_probs[where].astype(np.float32), self._tail[where].astype(np.float32)
