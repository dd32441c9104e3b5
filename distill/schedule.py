"""A schedule between off-policy and on-policy: which steps learn from stored answers, and from which of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from posttrain.recipe.schema import Spec


class OffPolicyShare(Spec):
    """`off_policy:` of an on-policy stage. The share goes from `first` to `last`, step by step, in a straight line."""

    stage: str = Field(description="an earlier off-policy stage with `logits`, whose stored answers are learned from")
    first: float = Field(default=1.0, ge=0.0, le=1.0, description="share of off-policy steps at the beginning")
    last: float = Field(default=0.0, ge=0.0, le=1.0, description="and at the end")

    @model_validator(mode="after")
    def _is_a_share(self) -> OffPolicyShare:
        if self.first == self.last == 0.0:
            raise ValueError("both shares are 0: leave `off_policy` out")
        return self

    def due(self, step: int, steps: int) -> int:
        """How many of the first `step` steps of so many are off-policy: the line's area, rounded to the nearest."""
        slope = (self.last - self.first) / steps
        return round(self.first * step + slope * step * step / 2)

    def is_off_policy(self, step: int, steps: int) -> bool:
        """Whether step number `step`, from 0, learns from stored answers."""
        return self.due(step + 1, steps) > self.due(step, steps)


class StoredAnswers:
    """Batches of an off-policy stage's rows with what its teacher said of them. The same step, the same rows.

    Args:
        data: the stage's data directory.
        batch: rows of one process in one micro-step; micro_steps: of an optimizer step.

    Attributes:
        packed: whether a row is several samples, which the student must keep apart.
    """

    def __init__(
        self,
        data: Path,
        share: OffPolicyShare,
        *,
        pad_token_id: int,
        batch: int,
        micro_steps: int,
        processes: int,
        seed: int,
    ) -> None:
        from datasets import load_from_disk
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        from posttrain.distill.cache_stage import open_cache
        from posttrain.distill.cached_trainer import CachedCollator

        self.share = share
        self._rows = load_from_disk(str(data / "train"))
        self.packed = "seq_lengths" in self._rows.column_names
        collate = DataCollatorForLanguageModeling(pad_token_id=pad_token_id, padding_free=self.packed)
        self._collate = CachedCollator(collate, open_cache(data))
        self._batch, self._micro_steps, self._processes, self._seed = batch, micro_steps, processes, seed

    def of_step(self, step: int, steps: int, process: int, total: Callable[[list[float]], list[float]]) -> list[Any]:
        """The process's micro-batches of one off-policy step, each with the step's number of supervised tokens.

        Args:
            total: sums over the processes.
        """
        per_step = self._batch * self._micro_steps * self._processes
        first = self.share.due(step, steps) * per_step + process * self._batch * self._micro_steps
        places = [self._place(first + number) for number in range(self._batch * self._micro_steps)]
        rows = [{**self._rows[place], "row": place} for place in places]
        batches = [self._collate(rows[at : at + self._batch]) for at in range(0, len(rows), self._batch)]
        (tokens,) = total([sum(len(batch["teacher_tail"]) for batch in batches)])
        return [{**batch, "supervised": int(tokens)} for batch in batches]

    def _place(self, number: int) -> int:
        """The row of that number, in an order drawn anew for every pass over the rows."""
        import random

        epoch, place = divmod(number, len(self._rows))
        if getattr(self, "_epoch", None) != epoch:
            self._epoch, self._order = epoch, list(range(len(self._rows)))
            random.Random(f"{self._seed}-{epoch}").shuffle(self._order)
        return self._order[place]
