"""The shards of a cache of log-probabilities: which rows each has, and whether it stands whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.data.arrow import ListColumn
from posttrain.model.artifacts import Damaged, checksum, read_json

if TYPE_CHECKING:
    from datasets import Dataset

SHARD_TOKENS = 65_536
"""Supervised tokens of a shard: what a kill costs at most."""
IGNORED = -100


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

    def recorded(self, directory: Path) -> dict[str, Any] | None:
        """What is recorded of it; None where nothing is, or nothing that can be read: a machine went down."""
        try:
            record = read_json(self.record(directory))
        except Damaged:
            return None
        known = {**asdict(self), "file": self.file}
        whole = isinstance(record, dict) and known.items() <= record.items() and {"size", "crc32"} <= record.keys()
        return record if whole else None

    def is_whole(self, directory: Path) -> bool:
        """Whether it stands there as it was written: its checksum is worked out."""
        record, path = self.recorded(directory), directory / self.file
        if record is None or not path.exists() or path.stat().st_size != record["size"]:
            return False
        return bool(checksum(path) == record["crc32"])


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
