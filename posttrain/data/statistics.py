"""How long tokenized samples are, and how much of them is supervised. An all-masked sample is an error here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posttrain.data.tokens import IGNORED
from posttrain.errors import PosttrainError, Problem
from posttrain.templates.families import Family

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset


@dataclass(frozen=True)
class TokenStatistics:
    """What a tokenized data set holds. Lengths are in tokens.

    Attributes:
        rows: what the trainer draws; samples: conversations or turns; more than rows where they are packed.
        fill: mean share of the longest row that is filled, of packed data; else None.
        turns: supervised turns (their end markers); empty_think: empty think blocks, shown or supervised.
            None where no tokenizer was given.
    """

    rows: int
    samples: int
    tokens: int
    supervised_tokens: int
    p50: int
    p95: int
    longest: int
    fill: float | None = None
    turns: int | None = None
    empty_think: int | None = None


def token_statistics(dataset: Dataset, tokenizer: Any = None, family: Family | None = None) -> TokenStatistics:
    """Read a tokenized data set (`input_ids`, `labels`, perhaps `seq_lengths`) once, batch by batch.

    Raises:
        PosttrainError: the columns are missing, or samples have no supervised token (a packed one counts on its own).
    """
    import numpy as np

    missing = [name for name in ("input_ids", "labels") if name not in dataset.column_names]
    if missing:
        raise PosttrainError([Problem(f"the data is not tokenized: no column {name!r}") for name in missing])
    packed = "seq_lengths" in dataset.column_names
    columns = ["input_ids", "labels", *(["seq_lengths"] if packed else [])]
    counter = _MarkerCounter(tokenizer, family) if tokenizer is not None and family is not None else None
    lengths, rows_lengths, masked, supervised = [], [], [], 0
    first_row = 0
    for table in dataset.select_columns(columns).with_format("arrow").iter(1000):
        ids, row_lengths = _flat(table.column("input_ids"))
        labels, _ = _flat(table.column("labels"))
        sample_lengths, samples_a_row = _flat(table.column("seq_lengths")) if packed else (row_lengths, None)
        total = np.concatenate(([0], np.cumsum(labels != IGNORED)))
        ends = np.cumsum(sample_lengths)
        bare = np.flatnonzero(total[ends] == total[ends - sample_lengths])
        rows = (
            np.repeat(np.arange(len(row_lengths)), samples_a_row) if samples_a_row is not None else np.arange(len(ends))
        )
        masked.append(first_row + rows[bare])
        supervised += int(total[-1])
        lengths.append(sample_lengths)
        rows_lengths.append(row_lengths)
        first_row += len(row_lengths)
        if counter:
            counter.count(ids, labels)
    _refuse_masked(np.concatenate(masked or [np.zeros(0)]), sum(map(len, lengths)))
    return _statistics(np.concatenate(lengths), np.concatenate(rows_lengths), supervised, packed, counter)


def _statistics(
    lengths: np.ndarray, rows: np.ndarray, supervised: int, packed: bool, counter: _MarkerCounter | None
) -> TokenStatistics:
    import numpy as np

    p50, p95 = np.percentile(lengths, [50, 95], method="inverted_cdf")
    return TokenStatistics(
        rows=len(rows),
        samples=len(lengths),
        tokens=int(rows.sum()),
        supervised_tokens=supervised,
        p50=int(p50),
        p95=int(p95),
        longest=int(lengths.max()),
        fill=float(rows.mean() / rows.max()) if packed else None,
        turns=counter.turns if counter else None,
        empty_think=counter.empty_think if counter else None,
    )


def _refuse_masked(masked: np.ndarray, samples: int) -> None:
    if not samples:
        raise PosttrainError(Problem("the data set is empty", remedy="see the counts of what was left out"))
    if len(masked):
        raise PosttrainError(
            Problem(
                f"{len(masked)} of {samples} samples have no supervised token",
                where=f"row {int(masked[0])}",
                why="training on them changes nothing, and a batch of them has no loss at all",
                remedy="check that the labels come from the family's training template",
            )
        )


class _MarkerCounter:
    """Counts turns and empty think blocks in token ids."""

    def __init__(self, tokenizer: Any, family: Family) -> None:
        def encode(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])

        self._end = encode(family.message_end)
        # In one piece, and as it is cut where a generation prompt has opened the block.
        blocks = [
            encode(f"{family.think_open}\n\n{family.think_close}"),
            encode(f"{family.think_open}\n") + encode(f"\n{family.think_close}"),
        ]
        self._blocks = [list(each) for each in {tuple(block) for block in blocks}] if family.thinks else []
        self.turns = 0
        self.empty_think = 0

    def count(self, ids: np.ndarray, labels: np.ndarray) -> None:
        self.turns += int(self._matches(labels, self._end).sum())
        self.empty_think += sum(int(self._matches(ids, block).sum()) for block in self._blocks)

    @staticmethod
    def _matches(ids: np.ndarray, pattern: list[int]) -> np.ndarray:
        import numpy as np

        count = max(0, len(ids) - len(pattern) + 1)
        found = np.ones(count, dtype=bool)
        for offset, token in enumerate(pattern):
            found &= ids[offset : offset + count] == token
        return found


def _flat(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """(values, lengths) of a list column."""
    import numpy as np
    import pyarrow.compute as pc  # type: ignore[import-untyped,unused-ignore]

    values = pc.list_flatten(column).to_numpy()
    return values, pc.list_value_length(column).to_numpy().astype(np.int64)
