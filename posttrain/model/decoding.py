"""Batched decoding of a causal language model: the loop beneath `posttrain.model.generation`.

It is our own, and not `generate`, because each row has its own sampling, budget and noise, because an EOS inside
thinking has to be seen after it is sampled, and because it is faster: keys and values are appended in place, rows that
end leave the batch at once, equal prompts are read once, and grouped-query heads are not copied. Any architecture
whose `forward` takes a transformers cache will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from posttrain.budget.state import BudgetState
from posttrain.errors import PosttrainError, Problem
from posttrain.model.inference import growing_cache
from posttrain.templates.families import Sampling


@dataclass(eq=False)
class Row:
    """One completion in the making.

    Attributes:
        prompt_ids: at least one id.
        seed: of the randomness of this row alone.
        limit: tokens the completion may have; own_limit: not forced ones among them.
        ids: the completion so far.
        budget: the thinking budget that `state` keeps; None: none.
        log_probs: of these ids, from an engine that tells them; None from others.
    """

    prompt_ids: list[int]
    state: BudgetState
    sampling: Sampling
    seed: int
    limit: int
    own_limit: int
    ids: list[int] = field(default_factory=list)
    own: int = 0
    log_probs: list[float] | None = None
    budget: int | None = None

    def noise(self, steps: int) -> torch.Tensor:
        """(steps,) float64 in [0, 1): what samples the row's ids, one number each."""
        return torch.rand(steps, dtype=torch.float64, generator=torch.Generator().manual_seed(self.seed))

    def take(self, sampled: int, eos_ids: frozenset[int]) -> bool:
        """Append what the budget makes of a sampled id; whether the completion ends there."""
        token = self.state.emit(sampled)
        self.ids.append(token)
        self.own += not self.state.last_forced
        return token in eos_ids or self.own == self.own_limit or len(self.ids) == self.limit


@torch.no_grad()
def decode(
    model: Any,
    rows: Sequence[Row],
    *,
    eos_ids: frozenset[int],
    vocabulary: int,
    ended: Callable[[int], None] = lambda count: None,
) -> None:
    """Complete all rows in one batch; their `ids` and `state` hold the result.

    Args:
        model: in evaluation mode, with all its parameters at hand.
        vocabulary: ids from here on are padding of the embedding, and never sampled.
        ended: called with the number of rows that have just ended.

    Raises:
        PosttrainError: the model's scores are not finite.
    """
    batch = _Batch(model, rows, vocabulary)
    while True:
        sampled = batch.sample()
        staying = [at for at, row in enumerate(batch.rows) if not row.take(sampled[at], eos_ids)]
        if len(staying) < len(batch.rows):
            ended(len(batch.rows) - len(staying))
            if not staying:
                return
            batch.keep(staying)
        batch.step()


class _Batch:
    """The rows still running (B of them), their cache, and the scores of their next ids."""

    def __init__(self, model: Any, rows: Sequence[Row], vocabulary: int) -> None:
        self._model = model
        self._vocabulary = vocabulary
        self._cache = growing_cache(model.config)
        self._device = next(model.parameters()).device
        self.rows = list(rows)
        steps = max(row.limit for row in rows)
        self._noise_B_T = torch.stack([row.noise(steps) for row in rows]).to(self._device)
        self._steps = 0
        self._read_prompts()
        penalised = any(row.sampling.presence_penalty for row in rows)
        self._seen_B_V = torch.zeros_like(self._scores_B_V, dtype=torch.bool) if penalised else None
        self._group()

    def _read_prompts(self) -> None:
        """Every different prompt once; the rows that share it get copies of its keys and values."""
        distinct: dict[tuple[int, ...], int] = {}
        of_row = [distinct.setdefault(tuple(row.prompt_ids), len(distinct)) for row in self.rows]
        longest = max(map(len, distinct))
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in distinct], device=self._device)
        lengths = torch.tensor([len(prompt) for prompt in distinct], device=self._device)[:, None]
        mask = torch.arange(longest, device=self._device) >= longest - lengths
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        index = torch.tensor(of_row, device=self._device)
        self._scores_B_V = self._forward(ids, mask, positions)[index]
        self._cache.batch_select_indices(index)
        room = torch.ones(len(self.rows), self._noise_B_T.shape[1], dtype=torch.bool, device=self._device)
        self._mask_B_T = torch.cat([mask[index], room], -1)  # of the prompts and what may follow
        self._length = longest
        self._positions_B = lengths[index]

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        scores: torch.Tensor = output.logits[:, -1, : self._vocabulary]
        return scores.float()

    def _group(self) -> None:
        """Which rows are sampled alike: (sampling, their positions), None for all of them."""
        groups: dict[Sampling, list[int]] = {}
        for at, row in enumerate(self.rows):
            groups.setdefault(row.sampling, []).append(at)
        self._groups: list[tuple[Sampling, torch.Tensor | None]] = [
            (sampling, torch.tensor(members, device=self._device) if len(groups) > 1 else None)
            for sampling, members in groups.items()
        ]

    def sample(self) -> list[int]:
        """The next id of every row."""
        noise_B = self._noise_B_T[:, self._steps]
        sampled_B = torch.empty(len(self.rows), dtype=torch.long, device=self._device)
        for sampling, members in self._groups:
            scores, noise, seen = self._scores_B_V, noise_B, self._seen_B_V
            if members is not None:
                scores, noise = scores[members], noise[members]
                seen = seen[members] if seen is not None else None
            if sampling.presence_penalty and seen is not None:
                scores = scores - sampling.presence_penalty * seen
            sampled_B[slice(None) if members is None else members] = draw(scores, noise, sampling)
        return sampled_B.tolist()

    def keep(self, staying: Sequence[int]) -> None:
        """Drop the other rows. Rows from the end move into their places, so that little is copied."""
        size = len(staying)
        movers = [at for at in staying if at >= size]
        kept = set(staying)
        order = [at if at in kept else movers.pop() for at in range(size)]
        index = torch.tensor(order, device=self._device)
        self.rows = [self.rows[at] for at in order]
        self._cache.batch_select_indices(index)
        self._noise_B_T, self._mask_B_T = self._noise_B_T[index], self._mask_B_T[index]
        self._positions_B = self._positions_B[index]
        self._seen_B_V = self._seen_B_V[index] if self._seen_B_V is not None else None
        self._group()

    def step(self) -> None:
        """Read the latest id of every row."""
        latest_B = torch.tensor([row.ids[-1:] for row in self.rows], device=self._device)
        if self._seen_B_V is not None:
            self._seen_B_V.scatter_(1, latest_B, True)
        self._steps += 1
        self._length += 1
        self._scores_B_V = self._forward(latest_B, self._mask_B_T[:, : self._length], self._positions_B)
        self._positions_B = self._positions_B + 1


def draw(scores_B_V: torch.Tensor, noise_B: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """One id per row (B,), by the inverse of the cumulative distribution at the row's noise in [0, 1).

    Top-k comes before top-p, which keeps the fewest ids that reach it (as in `generate`); temperature 0 is greedy.

    Raises:
        PosttrainError: the scores are not finite.
    """
    if sampling.temperature == 0:
        best_B, ids_B = scores_B_V.max(-1)
        _require_finite(best_B)
        return ids_B
    if sampling.temperature != 1:
        scores_B_V = scores_B_V / sampling.temperature
    ids_B_K: torch.Tensor | None = None
    if 0 < sampling.top_k < scores_B_V.shape[-1]:
        scores_B_V, ids_B_K = scores_B_V.topk(sampling.top_k)
    elif sampling.top_p < 1:
        scores_B_V, ids_B_K = scores_B_V.sort(descending=True)
    reached_B_K = scores_B_V.softmax(-1).cumsum(-1, dtype=torch.float64)
    total_B = reached_B_K[:, -1:]
    _require_finite(total_B)
    if sampling.top_p < 1:
        last_B = torch.searchsorted(reached_B_K, total_B * sampling.top_p)
        total_B = reached_B_K.gather(1, last_B)
    picked_B = torch.searchsorted(reached_B_K, noise_B[:, None] * total_B, right=True)
    return (picked_B if ids_B_K is None else ids_B_K.gather(1, picked_B))[:, 0]


def _require_finite(values: torch.Tensor) -> None:
    if not torch.isfinite(values).all():
        raise PosttrainError(
            Problem(
                what="the model's scores are not finite: nothing can be sampled from it",
                why="its weights hold infinities or NaN, as after a training that diverged",
                remedy="go back to an earlier checkpoint and lower the learning rate",
            )
        )
