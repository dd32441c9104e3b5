"""The thinking budget inside transformers' `generate`: one state per row, forced ids by way of the scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor

from posttrain.budget.request import BudgetRequest
from posttrain.budget.state import BudgetRule, BudgetState
from posttrain.errors import PosttrainError, Problem

HISTORY = 16  # ids of each row compared from one call to the next


class ThinkingBudgetProcessor(LogitsProcessor):  # type: ignore[misc]  # transformers is not typed
    """Enforces the rule of `posttrain.budget.state` in one call of `generate(logits_processor=[...])`.

    A processor sees the scores before sampling, not what is sampled. So it decides itself, before, whether an end that
    has to be replaced (an EOS inside limited thinking; any end of thinking below a minimum) comes: with the
    probability that the scores give it at `temperature`. If it comes, its replacement is forced; if not, it cannot be
    sampled. Every token comes as often as if the sample had been seen and replaced, but for what top-k and top-p cut.

    Scores are changed in place, and only in rows with something to force or to guard. Prompts may be padded on the
    left; what `generate` appends to a finished row (a row ends with one of the rule's `eos_ids` or `pad_token_id`, or
    where a stop string or another criterion ended it) is not observed. Afterwards call `finish` with the output, whose
    last ids no later step has shown; the state of a row then stands in `states[row]`. Make a new processor for each
    call.

    Args:
        rule: the ids, for all rows, or one per row (`posttrain.budget.tokens.budget_rules`), as stop texts need.
        requests: one per row: a `BudgetRequest`, or a budget in tokens, None or -1 for no limit. With
            `num_return_sequences=n` a row is a sequence, and those of a prompt follow each other.
        thinking_open: one per row: the generation prompt ends inside an open block. Default: none does.
        pad_token_id: what `generate` pads finished rows with, where that is not an EOS. Rows with a limit cannot sample
            it: taken for the end of its row, it would be the end of the limit.
        temperature: what `generate` samples with; 0 for greedy decoding.
        max_new_tokens: what `generate` is given; an answer reserve is a part of it.

    Raises:
        PosttrainError: a stop text of a request stands in no rule, or a request cannot be kept. When called: the rows
            are not those budgeted, or move between calls, as beams do.
        RuntimeError: when called, if something else overruled a forced id.
    """

    supports_continuous_batching = False

    def __init__(
        self,
        rule: BudgetRule | Sequence[BudgetRule],
        requests: Sequence[BudgetRequest | int | None],
        *,
        thinking_open: Sequence[bool] | None = None,
        pad_token_id: int | None = None,
        temperature: float = 0.0,
        max_new_tokens: int | None = None,
    ) -> None:
        asked = [each if isinstance(each, BudgetRequest) else BudgetRequest(each) for each in requests]
        rules = [rule] * len(asked) if isinstance(rule, BudgetRule) else list(rule)
        opened = thinking_open if thinking_open is not None else [False] * len(asked)
        if isinstance(rule, BudgetRule) and any(each.stop_text is not None for each in asked):
            what = "a request has a stop text of its own, and one rule is given for all rows"
            raise PosttrainError(Problem(what, remedy="give budget_rules(tokenizer, family, requests)"))
        try:
            self.states = [
                BudgetState(own, request, thinking_open=is_open, max_tokens=max_new_tokens)
                for own, request, is_open in zip(rules, asked, opened, strict=True)
            ]
        except ValueError as error:
            raise PosttrainError(Problem(str(error), remedy="give max_new_tokens, or another request")) from None
        self._eos_ids = frozenset().union(*(each.eos_ids for each in rules))
        self._pad = None if pad_token_id in self._eos_ids else pad_token_id
        self._temperature = temperature
        self._limited = [row for row, each in enumerate(asked) if each.limited]
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
        self._guard_ends(scores)
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
        self._running = [row for row in self._running if not self._is_padding(row, latest[row])]
        for row in self._running:
            self.states[row].observe(latest[row])
        self._running = [row for row in self._running if latest[row] not in self._eos_ids]

    def _is_padding(self, row: int, token: int) -> bool:
        """Whether `token` was appended to a row that is finished. An EOS that its scores ruled out was: something else,
        a stop string perhaps, had ended the row before."""
        if token not in self._eos_ids:
            return token == self._pad
        state = self.states[row]
        if (due := state.forced_token()) is not None:
            return token != due
        redirect = state.redirect()
        return redirect is not None and token in redirect[0]

    def _guard_ends(self, scores: torch.Tensor) -> None:
        guarded = [(row, *redirect) for row in self._running if (redirect := self.states[row].redirect())]
        if not guarded:
            return
        pairs = [(at, token) for at, (_, ids, _) in enumerate(guarded) for token in sorted(ids)]
        at, tokens = (torch.tensor(column, device=scores.device) for column in zip(*pairs, strict=True))
        rows = torch.tensor([row for row, _, _ in guarded], device=scores.device)
        scores_R_V = scores[rows].float()
        others_R_V = scores_R_V.index_put((at, tokens), scores_R_V.new_tensor(float("-inf")))
        if self._temperature:
            others_R = (others_R_V / self._temperature).logsumexp(-1)
            all_R = (scores_R_V / self._temperature).logsumexp(-1)
            comes_R = torch.rand(len(guarded), device=scores.device) >= (others_R - all_R).exp()
        else:
            comes_R = others_R_V.amax(-1) < scores_R_V.amax(-1)
        for (row, _, _), comes in zip(guarded, comes_R.tolist(), strict=True):
            if comes:
                self.states[row].close_for_eos()
        scores[rows[at], tokens] = float("-inf")

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
