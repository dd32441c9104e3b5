"""The budget under vLLM's V1 model runner: a row is a request, and its tokens are a list that the runner appends to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from posttrain.budget.vllm_model import ServedModel
from posttrain.budget.vllm_rows import PLACEHOLDER, Row
from posttrain.budget.vllm_scores import Scores


class V1Rows:
    """What `ThinkingBudgetLogitsProcessor` does under the V1 runner.

    Rows that have to be looked at now are awake. Of the others a step checks three things together: that each has one
    token more, that none of these is a mark, and that none has come to its length of waking.
    """

    def __init__(self, vllm_config: Any, model: ServedModel, device: torch.device) -> None:
        self._model = model
        self._marks = model.marks | {PLACEHOLDER}
        self._scores = Scores(model.ends, vllm_config.scheduler_config.max_num_seqs, device)
        self._rows: dict[int, tuple[Row, list[int]]] = {}
        self._awake: list[int] = []
        self._asleep: list[list[int]] = []
        self._changed = False
        self._steps = 0  # since all rows were looked at
        self._length = 0  # of all sleeping rows together, then
        self._patience = 0  # steps until the first of them wakes

    def update_state(self, batch_update: Any) -> None:
        """Follow the batch: requests that came, went and moved."""
        if batch_update is None:
            return
        self._changed = True
        for index in batch_update.removed:
            self._put(index, None)
        for index, params, prompt_ids, output_ids in batch_update.added:
            row = self._model.row(params, prompt_ids or (), _reader(output_ids))
            self._put(index, None if row is None else (row, output_ids))
        for source, target, direction in batch_update.moved:
            moved, other = self._rows.get(source), self._rows.get(target)
            self._put(target, moved)
            self._put(source, other if direction.name == "SWAP" else None)

    def _put(self, index: int, entry: tuple[Row, list[int]] | None) -> None:
        if entry is None:
            self._rows.pop(index, None)
            self._scores.redirect(index, None)
        else:
            self._rows[index] = entry
            self._redirect(index, entry[0])

    def _redirect(self, index: int, row: Row) -> None:
        self._scores.redirect(index, row.redirect(), row.temperature)

    def apply(self, scores: torch.Tensor) -> torch.Tensor:
        """Force and guard in `scores` (rows, vocabulary), in place."""
        if not self._rows:
            return scores
        self._steps += 1
        if self._changed or not self._undisturbed():
            self._look_at_all()
        else:
            for index in self._awake:
                self._look(index)
        forced = [(index, token) for index in self._awake if (token := self._rows[index][0].forced()) is not None]
        self._scores.apply(scores, forced)
        return scores

    def _undisturbed(self) -> bool:
        asleep = self._asleep
        return self._steps < self._patience and (
            not asleep
            or (
                self._marks.isdisjoint([output[-1] for output in asleep])
                and sum(map(len, asleep)) == self._length + self._steps * len(asleep)
            )
        )

    def _look(self, index: int) -> None:
        row, output = self._rows[index]
        if row.follow(len(output)):
            self._redirect(index, row)
            self._changed |= row.sleeps

    def _look_at_all(self) -> None:
        self._changed, self._steps, self._length, self._patience = False, 0, 0, 1 << 60
        self._awake, self._asleep = [], []
        for index, (row, output) in self._rows.items():
            if row.follow(len(output)):
                self._redirect(index, row)
            if row.sleeps and output:
                self._asleep.append(output)
                self._length += len(output)
                self._patience = min(self._patience, row.wake - len(output))
            else:
                self._awake.append(index)


def _reader(output: list[int]) -> Callable[[int, int], list[int]]:
    return lambda start, end: output[start:end]
