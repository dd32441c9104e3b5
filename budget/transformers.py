"""The thinking budget inside transformers' `generate`: one state per row, forced ids by way of the scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor

from posttrain.budget.state import BudgetRule, BudgetState
from posttrain.errors import PosttrainError, Problem

HISTORY = 16  # ids of each row compared from one call to the next


class ThinkingBudgetProcessor(LogitsProcessor):  # type: ignore[misc]  # transformers is not typed
    """Enforces the rule of `posttrain.budget.state` in one call of `generate(logits_processor=[...])`.

    A processor sees the scores before sampling, not what is sampled. So an EOS inside a limited block closes it where
    EOS is the most probable token, and is kept from being sampled where it is not. Under greedy decoding that is
    exactly "the close in the place of the EOS"; `posttrain.model.generation` does that under sampling as well.

    Scores are changed in place, and only in rows with something to force or to guard. Prompts may be padded on the
    left; what `generate` appends to a finished row (a row ends with one of the rule's `eos_ids` or `pad_token_id`) is
    not observed. Afterwards call `finish` with the output, whose last ids no later step has shown; the state of a row
    then stands in `states[row]`. Make a new processor for each call.

    Args:
        rule: the ids.
        budgets: one per row, in tokens, None or -1 for no limit. With `num_return_sequences=n` a row is a sequence, and
            those of a prompt follow each other.
        thinking_open: one per row: the generation prompt ends inside an open block. Default: none does.
        pad_token_id: what `generate` pads finished rows with, where that is not an EOS. Rows with a limit cannot sample
            it: taken for the end of its row, it would be the end of the limit.

    Raises:
        PosttrainError: when called, if the rows are not those budgeted, or move between calls, as beams do.
        RuntimeError: when called, if something else overruled a forced id.
    """

    supports_continuous_batching = False

    def __init__(
        self,
        rule: BudgetRule,
        budgets: Sequence[int | None],
        *,
        thinking_open: Sequence[bool] | None = None,
        pad_token_id: int | None = None,
    ) -> None:
        opened = thinking_open if thinking_open is not None else [False] * len(budgets)
        self.states = [
            BudgetState(rule, budget, thinking_open=is_open) for budget, is_open in zip(budgets, opened, strict=True)
        ]
        self._rule = rule
        self._eos_ids = sorted(rule.eos_ids)
        self._pad = None if pad_token_id in rule.eos_ids else pad_token_id
        self._limited = [row for row, budget in enumerate(budgets) if budget not in (None, -1)]
        self._running = list(range(len(self.states)))
        self._history: torch.Tensor | None = None  # (rows, up to HISTORY) ids that ended the previous call's input

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (rows, vocabulary) of the next id, given the ids (rows, length) so far."""
        self._check_rows(input_ids)
        if self._history is not None:
            self._observe(input_ids)
        self._history = input_ids[:, -HISTORY:]
        if self._pad is not None:
            scores[self._limited, self._pad] = float("-inf")
        self._guard_eos(scores)
        forced = [(row, token) for row in self._running if (token := self.states[row].forced_token()) is not None]
        if forced:
            rows, tokens = (torch.tensor(column, device=scores.device) for column in zip(*forced, strict=True))
            scores[rows] = float("-inf")
            scores[rows, tokens] = 0.0
        return scores

    def finish(self, sequences: torch.Tensor) -> list[BudgetState]:
        """The states after the last ids of `sequences` (rows, length), the output of `generate`."""
        self._check_rows(sequences)
        self._observe(sequences)
        return self.states

    def _observe(self, input_ids: torch.Tensor) -> None:
        latest = input_ids[:, -1].tolist()
        self._running = [row for row in self._running if latest[row] != self._pad]
        for row in self._running:
            self.states[row].observe(latest[row])
        self._running = [row for row in self._running if latest[row] not in self._rule.eos_ids]

    def _guard_eos(self, scores: torch.Tensor) -> None:
        guarded = [row for row in self._running if self.states[row].guards_eos]
        if not guarded or not self._eos_ids:
            return
        rows = torch.tensor(guarded, device=scores.device)
        eos_ids = torch.tensor(self._eos_ids, device=scores.device)
        wants_end = scores[:, eos_ids].amax(-1)[rows] >= scores.amax(-1)[rows]
        for row, wants in zip(guarded, wants_end.tolist(), strict=True):
            if wants:
                self.states[row].close_for_eos()
        scores[rows[:, None], eos_ids] = float("-inf")

    def _check_rows(self, input_ids: torch.Tensor) -> None:
        why = "the state of a thinking budget belongs to a row that stays where it is, and beams move"
        remedy = "give one budget for every returned sequence, and num_beams=1"
        if len(input_ids) != len(self.states):
            raise PosttrainError(
                Problem(f"{len(self.states)} budgets for {len(input_ids)} rows", why=why, remedy=remedy)
            )
        if self._history is not None:
            before = input_ids[:, :-1][:, -HISTORY:]
            if before.shape != self._history.shape or not torch.equal(before, self._history):
                raise PosttrainError(
                    Problem("the rows were moved or replaced between two steps", why=why, remedy=remedy)
                )
