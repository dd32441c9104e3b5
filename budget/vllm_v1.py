"""The budget under vLLM's V1 model runner: a row is a request, and its tokens are a list that the runner appends to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from posttrain.budget.vllm_model import ServedModel
from posttrain.budget.vllm_rows import Row
from posttrain.budget.vllm_scores import Scores


class V1Rows:
    """What `ThinkingBudgetLogitsProcessor` does under the V1 runner.

    Rows that are looked at in every step are awake. The others are settled until a step that is known: sleeping rows
    say nothing of interest unless a mark comes, stopped rows say what they have to. Of settled rows a step checks three
    things together: that each has one token more, that none of the sleeping ones got a mark, and that the stopped ones
    got the ids that were forced. So a step costs little more than reading each row's latest token.
    """

    def __init__(self, vllm_config: Any, model: ServedModel, device: torch.device) -> None:
        self._model = model
        self._marks = model.marks
        self._scores = Scores(model.ends, vllm_config.scheduler_config.max_num_seqs, device)
        self._rows: dict[int, tuple[Row, list[int]]] = {}
        self._awake: dict[int, None] = {}
        self._asleep: dict[int, list[int]] = {}
        self._stopped: dict[int, list[int]] = {}
        self._queues: dict[int, Iterator[int]] = {}  # what the stopped rows have to say
        self._said: list[int] | None = []  # by them in the latest step; None: they are others now
        self._settled: dict[int, tuple[int, int]] = {}  # length less steps so far, and the step in which it wakes
        self._wakes: dict[int, dict[int, None]] = {}  # the settled rows by that step
        self._steps = 0
        self._length = 0  # the sum of the former

    def update_state(self, batch_update: Any) -> None:
        """Follow the batch: requests that came, went and moved."""
        if batch_update is None:
            return
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
        if index in self._rows:
            self._unsettle(index)
            del self._rows[index]
            self._awake.pop(index, None)
        if entry is None:
            self._scores.redirect(index, None)
        else:
            self._rows[index] = entry
            self._awake[index] = None
            self._redirect(index, entry[0])

    def _redirect(self, index: int, row: Row) -> None:
        self._scores.redirect(index, row.redirect(), row.temperature)

    def apply(self, scores: torch.Tensor) -> torch.Tensor:
        """Force and guard in `scores` (rows, vocabulary), in place."""
        if not self._rows:
            return scores
        self._steps += 1
        for index in self._due():
            self._look(index)
        self._scores.apply(scores, self._forced() if self._stopped or self._awake else None)
        return scores

    def _forced(self) -> tuple[list[int], list[int]]:
        """The rows in which an id has to come next, and the ids."""
        forced, said = list(self._stopped), [next(queue) for queue in self._queues.values()]
        self._said = said.copy()
        for index in self._awake:
            if (token := self._rows[index][0].forced()) is not None:
                forced.append(index)
                said.append(token)
        return forced, said

    def _due(self) -> list[int]:
        """The rows that have to be looked at in this step."""
        asleep, stopped = self._asleep, self._stopped
        outputs = asleep.values()
        grown = sum(map(len, outputs))
        if stopped:
            grown += sum(map(len, stopped.values()))
        if grown != self._length + self._steps * len(self._settled):
            return list(self._rows)
        due = list(self._awake)
        latest = [output[-1] for output in outputs]
        if not self._marks.isdisjoint(latest):
            due += [index for index, token in zip(asleep, latest, strict=True) if token in self._marks]
        if stopped and [output[-1] for output in stopped.values()] != self._said:
            due += stopped
        if self._steps in self._wakes:
            due += self._wakes[self._steps]
        for index in due:
            if index in asleep:
                self._rows[index][0].skip(len(asleep[index]) - 1)
        return due

    def _look(self, index: int) -> None:
        row, output = self._rows[index]
        if row.follow(len(output)):
            self._redirect(index, row)
        self._unsettle(index)
        if output and row.sleeps:
            self._asleep[index] = output
        elif output and (due := row.due()):
            self._stopped[index], self._queues[index] = output, iter(due)
        else:
            self._awake[index] = None
            return
        self._awake.pop(index, None)
        length, wakes = len(output) - self._steps, self._steps + row.wake - len(output)
        self._settled[index] = length, wakes
        self._length += length
        self._wakes.setdefault(wakes, {})[index] = None

    def _unsettle(self, index: int) -> None:
        """Take a row out of the settled ones, if it is one of them."""
        if index not in self._settled:
            return
        length, wakes = self._settled.pop(index)
        self._length -= length
        del self._wakes[wakes][index]
        if not self._wakes[wakes]:
            del self._wakes[wakes]
        if self._asleep.pop(index, None) is None:
            del self._stopped[index], self._queues[index]
            self._said = None


def _reader(output: list[int]) -> Callable[[int, int], list[int]]:
    return lambda start, end: output[start:end]
