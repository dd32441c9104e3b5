"""Sets a validation set aside before anything is generated or trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice, zip_longest
from typing import TYPE_CHECKING

from posttrain.errors import PosttrainError, Problem

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

BATCH = 10_000  # rows


def reserve(dataset: Dataset, n: int, seed: int) -> tuple[Dataset, Dataset]:
    """Split into training and validation rows that share no key.

    A hash of seed and key ranks every problem, and the first ones are reserved: n different problems, one row each (the
    first with that key), in the order of the data. Further rows with a reserved key are on neither side. With a column
    `difficulty`, its values take turns until n is reached, so each has the same share as far as it has problems.

    The choice depends on the set of problems, not on the order or number of their rows. When rows are appended, a
    problem that was left for training stays there: only new ones can enter the validation set.

    Args:
        n: problems to reserve; 0: none.

    Returns:
        The rest for training, and the validation set.

    Raises:
        PosttrainError: there are fewer than n different problems, or no column `key`.
    """
    import numpy as np

    if n == 0:
        return dataset, dataset.select([])
    if "key" not in dataset.column_names:
        what = f"rows without a column 'key' cannot be reserved; there are {', '.join(dataset.column_names)}"
        raise PosttrainError(Problem(what))
    hashes, difficulties = _hashes(dataset, seed)
    ranked, first_row = np.unique(hashes, return_index=True)
    if n > len(ranked):
        what = f"cannot reserve {n} problems: there are {len(ranked)} different ones in {len(dataset)} rows"
        raise PosttrainError(Problem(what, remedy="reserve fewer, or give more data"))
    level_of = difficulties[first_row]
    by_level = {int(level): np.flatnonzero(level_of == level)[:n].tolist() for level in np.unique(level_of)}
    chosen = list(islice(_in_turn(by_level, seed), n))  # places in `ranked`
    train = np.flatnonzero(~np.isin(hashes, ranked[chosen]))
    return dataset.select(train), dataset.select(np.sort(first_row[chosen]))


def _hashes(dataset: Dataset, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """For every row a hash of its key, by which problems are ranked, and its difficulty (0 without one).

    64 bits: in a million problems two share a hash once in 37 million times, and would then stay on one side together.
    """
    import numpy as np

    columns = [name for name in ("key", "difficulty") if name in dataset.column_names]
    salt = str(seed).encode()
    hashes = np.empty(len(dataset), dtype=np.uint64)
    difficulties = np.zeros(len(dataset), dtype=np.int64)
    at = 0
    for batch in dataset.select_columns(columns).iter(BATCH):
        digests = (hashlib.blake2b(key.encode(), digest_size=8, key=salt).digest() for key in batch["key"])
        size = len(batch["key"])
        hashes[at : at + size] = np.frombuffer(b"".join(digests), dtype=">u8")
        if "difficulty" in batch:
            difficulties[at : at + size] = [difficulty or 0 for difficulty in batch["difficulty"]]
        at += size
    return hashes, difficulties


def _in_turn(by_level: dict[int, list[int]], seed: int) -> Iterator[int]:
    """Every level's members in their order, the levels taking turns in an order of their own hash."""
    order = sorted(by_level, key=lambda level: hashlib.blake2b(f"{seed}:{level}".encode()).digest())
    for turn in zip_longest(*(by_level[level] for level in order)):
        yield from (place for place in turn if place is not None)
