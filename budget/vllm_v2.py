"""The budget under vLLM's V2 model runner: a request has a slot, and its tokens lie in a matrix on the device.

The runner keeps that matrix in memory that the host reads as well (on a GPU: pinned, written through unified
addresses). What the previous step sampled is there before this step's forward pass begins, so the host waits for an
event in front of the forward pass, not for the pass itself. Only with speculation, whose drafts the host has to read,
does a step wait for the device.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from posttrain.budget.vllm_model import ServedModel
from posttrain.budget.vllm_rows import PLACEHOLDER, Row
from posttrain.budget.vllm_scores import Redirect, Scores


class V2Rows:
    """What `ThinkingBudgetLogitsProcessor` does under the V2 runner. Lengths include the prompt here."""

    def __init__(self, vllm_config: Any, model: ServedModel, requests: Any) -> None:
        slots = requests.max_num_reqs
        self._requests = requests
        self._model = model
        self._speculates = vllm_config.speculative_config is not None
        self._scores = Scores(model.ends, slots, requests.device)
        self._marks = np.zeros(requests.vocab_size + 1, dtype=np.bool_)
        self._marks[list(model.marks)] = True  # PLACEHOLDER's is the last
        self._params: dict[int, Any] = {}  # of requests whose prompt was not read yet
        self._rows: dict[int, Row] = {}
        self._limited = np.zeros(slots, dtype=np.bool_)
        self._wake = np.zeros(slots, dtype=np.int64)
        self._checked = np.zeros(slots, dtype=np.int64)
        self._stopped = np.zeros(slots, dtype=np.bool_)  # rows whose next ids are known:
        self._queue = np.zeros((slots, 64), dtype=np.int64)  # these,
        self._queue_at = np.zeros(slots, dtype=np.int64)  # from that length on
        self._written: Any = torch.Event(device=requests.device) if requests.device.type == "cuda" else None
        self._tokens_host = _host_view(requests.all_token_ids)

    def add_request(self, slot: int, sampling_params: Any) -> bool:
        """A request enters `slot`; whoever was there before is gone. Returns whether it has a limit."""
        limited = self._model.limits(sampling_params)
        self._rows.pop(slot, None)
        self._scores.redirect(slot, None)
        self._limited[slot] = limited
        self._stopped[slot] = False
        self._wake[slot] = 0
        self._params[slot] = sampling_params
        return limited

    def apply_staged_writes(self) -> None:
        """Mark the point in the device's work where the tokens sampled so far are written."""
        if self._written is not None and self._limited.any():
            self._written.record()

    def apply(self, scores: torch.Tensor, context: Any) -> torch.Tensor:
        """Force and guard in `scores` (rows, vocabulary), in place."""
        slots = context.idx_mapping_np
        if not self._limited[slots].any():
            return scores
        if self._speculates:
            self._apply_to_drafts(scores, context)
            return scores
        if self._written is not None:
            self._written.synchronize()
        lengths = context.seq_lens_upper_bound_np[: len(slots)].astype(np.int64)
        latest = self._latest(slots, lengths)
        unexpected = self._marks[np.minimum(latest, len(self._marks) - 1)]
        places = self._stopped[slots].nonzero()[0]
        if len(places):
            at = slots[places]
            column = np.minimum(np.maximum(lengths[places] - self._queue_at[at] - 1, 0), self._queue.shape[1] - 1)
            unexpected[places] = latest[places] != self._queue[at, column]
        watched = lengths == self._checked[slots] + 1
        due = (lengths >= self._wake[slots]) | ~watched | unexpected
        self._checked[slots] = lengths
        if len(looked := (due & self._limited[slots]).nonzero()[0]):
            for place in looked.tolist():
                self._look(int(slots[place]), int(lengths[place]), bool(watched[place]))
            places = self._stopped[slots].nonzero()[0]
        at = slots[places]
        forced = self._queue[at, lengths[places] - self._queue_at[at]]
        self._scores.apply(scores, (places, forced), (context.expanded_idx_mapping, slots))
        return scores

    def _apply_to_drafts(self, scores: torch.Tensor, context: Any) -> None:
        """A request has a row for each draft: what would be due if the drafts before it were accepted."""
        layout = (context.expanded_idx_mapping, context.expanded_local_pos, context.input_ids, context.pos)
        slots, offsets, ids, positions = torch.stack([part.long() for part in layout]).cpu().numpy()
        starts = np.flatnonzero(offsets == 0).tolist()
        forced: tuple[list[int], list[int]] = [], []
        redirects: list[tuple[Redirect | None, float]] = [(None, 1.0)] * len(slots)
        for start, end in zip(starts, [*starts[1:], len(slots)], strict=True):
            slot, length = int(slots[start]), int(positions[start]) + 1
            if not self._limited[slot] or (row := self._look(slot, length)) is None:
                continue
            state = row.ahead()
            for place in range(start, end):
                token, redirect = state.forced_token(), state.redirect()
                if token is not None:
                    forced[0].append(place)
                    forced[1].append(token)
                redirects[place] = (redirect, row.temperature)
                draft = int(ids[place + 1]) if place + 1 < end else PLACEHOLDER
                if draft == PLACEHOLDER or token not in (None, draft) or (redirect and draft in redirect[0]):
                    break  # the draft is refused, so no row after it counts
                state.observe(draft)
        self._scores.apply(scores, forced, redirects=redirects)

    def _look(self, slot: int, length: int, watched: bool = False) -> Row | None:
        """The row of a request, led to its end; None while its prompt is read. `watched`: all tokens but the latest
        were seen since it was looked at."""
        if length < self._requests.prefill_len.np[slot]:
            self._stopped[slot] = False
            return None  # the prompt is still being read, and what is sampled now is thrown away
        prompt = int(self._requests.prompt_len.np[slot])
        row = self._rows.get(slot)
        if row is None:
            prompt_ids = self._read(slot, 0, prompt)
            params = self._params.pop(slot)
            row = self._model.row(params, prompt_ids, lambda start, end: self._read(slot, prompt + start, prompt + end))
            assert row is not None
            self._rows[slot] = row
            self._scores.redirect(slot, row.redirect(), row.temperature)
        elif watched:
            row.skip(length - prompt - 1)
        if row.follow(length - prompt):
            self._scores.redirect(slot, row.redirect(), row.temperature)
        self._wake[slot] = prompt + row.wake
        self._stop(slot, length, row.due())
        return row

    def _stop(self, slot: int, length: int, due: list[int]) -> None:
        """Note what has to come next; nothing, most of the time."""
        self._stopped[slot] = bool(due)
        self._queue_at[slot] = length
        if len(due) > self._queue.shape[1]:
            self._queue = np.pad(self._queue, ((0, 0), (0, len(due))))
        self._queue[slot, : len(due)] = due

    def _latest(self, slots: Any, lengths: Any) -> Any:
        """The last id of each request, (requests,)."""
        if self._tokens_host is not None:
            return self._tokens_host[slots, lengths - 1]
        at = (torch.from_numpy(each).to(self._requests.device) for each in (slots.astype(np.int64), lengths - 1))
        return self._requests.all_token_ids.gpu[tuple(at)].cpu().numpy()

    def _read(self, slot: int, start: int, end: int) -> list[int]:
        matrix = self._tokens_host if self._tokens_host is not None else self._requests.all_token_ids.gpu
        ids: list[int] = matrix[slot, start:end].tolist()
        return ids


def _host_view(tokens: Any) -> Any | None:
    """The matrix of tokens as the host sees it; None where it lies on the device alone."""
    if tokens.gpu.device.type == "cpu":
        return tokens.gpu.numpy()
    buffer = getattr(tokens, "_uva_buf", None)
    return None if buffer is None else buffer.np
