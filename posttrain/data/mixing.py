"""Several data sets as one, by weight. What each gave is reported; nothing repeats or ends unsaid."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from posttrain.errors import PosttrainError, Problem
from posttrain.tasks.task import derive_seed

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger("posttrain")


@dataclass(frozen=True)
class SourceShare:
    """What one data set gave to a mixture.

    Attributes:
        rows: rows it has. taken: rows of the mixture that are from it.
        exhausted: its weight asked for more rows than it has: they repeat, or the mixture ended there.
    """

    name: str
    rows: int
    taken: int
    exhausted: bool

    @property
    def passes(self) -> float:
        """How often each of its rows is in the mixture, on average."""
        return self.taken / self.rows


def mix(
    datasets: Mapping[str, Dataset],
    weights: Mapping[str, float] | None,
    size: int | None,
    seed: int,
    *,
    when_exhausted: Literal["repeat", "stop"] = "repeat",
) -> tuple[Dataset, list[SourceShare]]:
    """Draw a mixture. The same arguments give the same rows in the same order.

    A source's rows are taken in an order shuffled by seed and name, every row once before any comes again, so a
    source gives the same rows whatever it is mixed with. The counts are the weights' exact shares, rounded to the
    largest remainder, and are shuffled into each other.

    Args:
        datasets: by name, all queries or all conversations.
        weights: by name, from 0 up; None: the sizes of the data sets. A name that is not there weighs 1.
        size: rows of the mixture; None: as many as can be had without repeating a row.
        when_exhausted: a source that has too few rows repeats them ("repeat"), or the mixture is made as large as it
            can be without that ("stop"). Both are logged.

    Raises:
        PosttrainError: there is nothing to mix, a weight is wrong, or the columns differ.
    """
    from datasets import concatenate_datasets

    rows = {name: len(dataset) for name, dataset in datasets.items()}
    given = {name: float(rows[name] if weights is None else weights.get(name, 1.0)) for name in datasets}
    _check(datasets, given, weights or {}, size)
    largest = min(rows[name] * sum(given.values()) / weight for name, weight in given.items() if weight)
    wanted = math.floor(largest + 1e-9) if size is None else size
    quotas = _quotas(given, wanted)
    short = [name for name in datasets if quotas[name] > rows[name]]
    if short and (size is None or when_exhausted == "stop"):
        quotas = _quotas(given, min(wanted, math.floor(largest + 1e-9)))
        quotas = {name: min(quota, rows[name]) for name, quota in quotas.items()}
    shares = [SourceShare(name, rows[name], quotas[name], name in short) for name in datasets]
    _report(shares, quotas, size, when_exhausted)
    taken = [name for name in datasets if quotas[name]]
    offset = dict(zip(taken, _offsets([rows[name] for name in taken]), strict=True))
    picked = {name: [offset[name] + row for row in _order(name, rows[name], quotas[name], seed)] for name in taken}
    everything = concatenate_datasets([datasets[name] for name in taken])
    return everything.select(_interleaved(picked, seed)), shares


def _check(
    datasets: Mapping[str, Dataset], given: dict[str, float], weights: Mapping[str, float], size: int | None
) -> None:
    problems = [Problem(f"no data set is called {name!r}", "weights") for name in weights if name not in datasets]
    problems += [Problem(f"data {name!r} has no row") for name, dataset in datasets.items() if not len(dataset)]
    for name, weight in given.items():
        if not (weight >= 0 and math.isfinite(weight)):
            problems.append(Problem(f"the weight of {name!r} is a number from 0 up, not {weight}", "weights"))
    if not problems and not sum(given.values()):
        problems.append(Problem("there is nothing to mix: no data set has a weight above 0"))
    if size is not None and size < 1:
        problems.append(Problem(f"a mixture has at least one row, not {size}"))
    features = {name: dataset.features for name, dataset in datasets.items()}
    first = next(iter(features), "")
    for name, columns in features.items():
        if columns != features[first]:
            what = f"data {name!r} and {first!r} cannot be mixed: their columns differ"
            why = f"{', '.join(columns)} against {', '.join(features[first])}"
            problems.append(Problem(what, why=why, remedy="mix queries with queries, conversations with conversations"))
    if problems:
        raise PosttrainError(problems)


def _quotas(weights: dict[str, float], size: int) -> dict[str, int]:
    """Rows for each source: the weights' shares of `size`, the last ones to the largest remainders."""
    total = sum(weights.values())
    exact = {name: size * weight / total for name, weight in weights.items()}
    quotas = {name: math.floor(share) for name, share in exact.items()}
    by_remainder = sorted(weights, key=lambda name: (quotas[name] - exact[name], name))
    for name in by_remainder[: size - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def _offsets(lengths: list[int]) -> list[int]:
    return [sum(lengths[:i]) for i in range(len(lengths))]


def _order(name: str, rows: int, quota: int, seed: int) -> list[int]:
    import numpy as np

    order: list[int] = []
    while len(order) < quota:
        rng = np.random.default_rng(derive_seed("mix", seed, name, len(order) // rows))
        order += rng.permutation(rows)[: quota - len(order)].tolist()
    return order


def _interleaved(picked: Mapping[str, list[int]], seed: int) -> list[int]:
    import numpy as np

    slots = np.repeat(np.arange(len(picked)), [len(rows) for rows in picked.values()])
    np.random.default_rng(derive_seed("mix", seed)).shuffle(slots)
    rows = [iter(rows) for rows in picked.values()]
    return [next(rows[slot]) for slot in slots]


def _report(shares: list[SourceShare], quotas: dict[str, int], size: int | None, when_exhausted: str) -> None:
    for share in shares:
        if not share.exhausted or size is None:
            continue
        if when_exhausted == "repeat":
            log.warning("data %s: %d rows for %d places: they repeat", share.name, share.rows, share.taken)
        else:
            total = sum(quotas.values())
            log.warning("data %s: only %d rows: the mixture stops at %d of %d", share.name, share.rows, total, size)
