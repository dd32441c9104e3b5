"""What vLLM's two model runners do with a logits processor, without a model: batches, moves, preemption, drafts.

Scores are drawn, tokens are sampled from them, and the completions are judged from their ids alone. That takes seconds
where an engine takes minutes, so that thousands of requests can be tried; the engines are tried as well.
"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch


class Request:
    """One request, its completion so far, and whether it is done."""

    def __init__(self, prompt: list[int], params: Any) -> None:
        self.prompt = prompt
        self.params = params
        self.output: list[int] = []
        self.done = False

    def take(self, token: int, ends: frozenset[int]) -> None:
        self.output.append(token)
        self.done = token in ends or len(self.output) >= self.params.max_tokens


class Sampler:
    """Draws scores, in which some ids are likelier than others, and tokens from scores."""

    def __init__(self, vocabulary: int, seed: int, likely: dict[int, float]) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._bias = torch.zeros(vocabulary)
        for token, bias in likely.items():
            self._bias[token] = bias

    def scores(self, rows: int) -> torch.Tensor:
        return torch.randn(rows, len(self._bias), generator=self._generator) + self._bias

    def sample(self, scores: torch.Tensor, temperatures: list[float]) -> list[int]:
        tokens = []
        for row, temperature in zip(scores, temperatures, strict=True):
            if temperature == 0.0:
                tokens.append(int(row.argmax()))
            else:
                chances = torch.softmax(row / temperature, -1)
                tokens.append(int(torch.multinomial(chances, 1, generator=self._generator)))
        return tokens


def run_v1(rows: Any, requests: list[Request], sampler: Sampler, ends: frozenset[int], *, seats: int, seed: int) -> int:
    """Lead requests through a `V1Rows` until all are done. Returns how many were preempted."""
    draw = random.Random(seed)
    waiting, preempted = list(requests), 0
    seated: list[Request] = []
    while waiting or seated:
        batch: list[Request | None] = [*seated]
        update: dict[str, list[Any]] = {"removed": [], "added": [], "moved": []}
        for index, request in enumerate(seated):
            gone = request.done
            if not gone and draw.random() < 0.02:
                waiting.append(request)
                preempted, gone = preempted + 1, True
            if gone:
                batch[index] = None
                update["removed"].append(index)
        while waiting and (None in batch or len(batch) < seats) and draw.random() < 0.7:
            index = batch.index(None) if None in batch else len(batch)
            request = waiting.pop(draw.randrange(len(waiting)))
            batch[index : index + 1] = [request]
            if index in update["removed"]:
                update["removed"].remove(index)
            update["added"].append((index, request.params, request.prompt, request.output))
        while None in batch:
            last = batch.pop()
            if last is not None:
                index = batch.index(None)
                batch[index] = last
                update["moved"].append((len(batch), index, SimpleNamespace(name="UNIDIRECTIONAL")))
        if len(batch) > 1 and draw.random() < 0.2:
            one, other = draw.sample(range(len(batch)), 2)
            batch[one], batch[other] = batch[other], batch[one]
            update["moved"].append((one, other, SimpleNamespace(name="SWAP")))
        rows.update_state(SimpleNamespace(**update) if any(update.values()) else None)
        seated = [request for request in batch if request is not None]
        if not seated:
            continue
        scores = rows.apply(sampler.scores(len(seated)))
        tokens = sampler.sample(scores, [request.params.temperature for request in seated])
        for request, token in zip(seated, tokens, strict=True):
            if request.output or draw.random() < 0.8:  # else its prompt is still being read: the token is thrown away
                request.take(token, ends)
    return preempted


class Slots:
    """What the V2 runner shows of its requests (`LogitsProcRequestState`)."""

    def __init__(self, slots: int, longest: int, vocabulary: int) -> None:
        self.max_num_reqs, self.vocab_size, self.device = slots, vocabulary, torch.device("cpu")
        self.all_token_ids = SimpleNamespace(gpu=torch.zeros(slots, longest, dtype=torch.int32))
        self.prompt_len = SimpleNamespace(np=np.zeros(slots, dtype=np.int32))
        self.prefill_len = SimpleNamespace(np=np.zeros(slots, dtype=np.int32))

    def enter(self, slot: int, request: Request) -> None:
        ids = request.prompt + request.output
        self.all_token_ids.gpu[slot, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
        self.prompt_len.np[slot], self.prefill_len.np[slot] = len(request.prompt), len(ids)


def run_v2(
    rows: Any, slots: Slots, requests: list[Request], sampler: Sampler, ends: frozenset[int], *, seed: int, drafts: int
) -> int:
    """Lead requests through a `V2Rows`, with up to `drafts` drafts a step. Returns how many drafts were accepted."""
    draw = random.Random(seed)
    waiting, free, accepted = list(requests), list(range(slots.max_num_reqs)), 0
    running: dict[int, Request] = {}
    while waiting or running:
        for slot, request in list(running.items()):
            if request.done or draw.random() < 0.02:
                waiting += [] if request.done else [request]
                free.append(slot)
                del running[slot]
        while waiting and free and draw.random() < 0.7:
            slot = free.pop(draw.randrange(len(free)))
            running[slot] = waiting.pop(0)
            slots.enter(slot, running[slot])
            rows.add_request(slot, running[slot].params)
        rows.apply_staged_writes()
        batch = draw.sample(list(running), len(running))
        if not batch:
            continue
        accepted += _v2_step(rows, slots, [(slot, running[slot]) for slot in batch], sampler, ends, draw, drafts)
    return accepted


def _v2_step(
    rows: Any,
    slots: Slots,
    batch: list[tuple[int, Request]],
    sampler: Sampler,
    ends: frozenset[int],
    draw: random.Random,
    drafts: int,
) -> int:
    layout: list[tuple[int, int, int, int]] = []  # slot, offset, token, position of each row of scores
    lengths, proposed = [], []
    for slot, request in batch:
        ids = request.prompt + request.output
        reading = draw.random() < 0.2 and len(ids) == slots.prefill_len.np[slot]  # not yet the whole of its prefill
        length = len(ids) - 1 if reading else len(ids)
        tokens = [] if reading else [draw.randrange(slots.vocab_size) for _ in range(draw.randint(0, drafts))]
        lengths.append(length)
        proposed.append(None if reading else tokens)
        for offset, token in enumerate([ids[length - 1], *tokens]):
            layout.append((slot, offset, token, length - 1 + offset))
    columns = [torch.tensor(column) for column in zip(*layout, strict=True)]
    context = SimpleNamespace(
        idx_mapping_np=np.array([slot for slot, _ in batch]),
        seq_lens_upper_bound_np=np.array(lengths, dtype=np.int32),
        **dict(zip(("expanded_idx_mapping", "expanded_local_pos", "input_ids", "pos"), columns, strict=True)),
    )
    drawn = sampler.scores(len(layout))
    if drafts:  # likely to be accepted, so that drafts matter
        for row, (_, offset, token, _) in enumerate(layout):
            if offset:
                drawn[row - 1, token] += 6
    scores = rows.apply(drawn, context)
    of_slot = dict(batch)
    sampled = sampler.sample(scores, [of_slot[slot].params.temperature for slot, *_ in layout])
    at = accepted = 0
    for (slot, request), drafted in zip(batch, proposed, strict=True):
        if drafted is None:
            at += 1
            continue
        for offset in range(len(drafted) + 1):
            if request.done:
                break
            request.take(sampled[at + offset], ends)
            ids = request.prompt + request.output
            slots.all_token_ids.gpu[slot, len(ids) - 1] = ids[-1]
            if offset == len(drafted) or sampled[at + offset] != drafted[offset]:
                break
            accepted += 1
        at += len(drafted) + 1
    return accepted
