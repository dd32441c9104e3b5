"""A teacher in this process that tells its most probable entries: `cache_write.TeacherLogprobs` by a model here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from posttrain.distill.buckets import TopK
from posttrain.distill.cache_write import BATCH_TOKENS, Span
from posttrain.distill.heads import whole_head
from posttrain.distill.tiles import COLUMNS, LN_2, Projection, Tiles

PIECE = 256
"""Tokens whose whole distributions stand in memory at once."""


class LocalTeacher:
    """A transformers model, in evaluation mode, asked for its k most probable entries.

    Args:
        entries: of the vocabulary that mean something; the padding behind them has no probability.
        temperature: that its distribution is softened by.
    """

    def __init__(self, model: Any, *, entries: int, k: int, temperature: float = 1.0) -> None:
        self._model, self._entries, self._temperature = model.eval(), entries, temperature
        self._k = min(k, entries)

    @torch.no_grad()
    def __call__(self, sequences: Sequence[Sequence[int]], spans: Sequence[Sequence[Span]]) -> TopK:
        parts = []
        for some in read_at_once(sequences):
            hidden_N_H = self._hidden(sequences[some], spans[some])
            with whole_head(self._model, hidden_N_H.dtype) as head:
                parts.append(top_k_of(Projection(hidden_N_H, head), self._entries, self._k, self._temperature))
        return TopK.concatenate(parts)

    def _hidden(self, sequences: Sequence[Sequence[int]], spans: Sequence[Sequence[Span]]) -> Tensor:
        """The hidden states (N, H) that the tokens asked about are predicted from."""
        device = self._model.get_output_embeddings().weight.device
        longest = max(map(len, sequences))
        ids = torch.zeros(len(sequences), longest, dtype=torch.long)
        mask, asked = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for row, (sequence, own) in enumerate(zip(sequences, spans, strict=True)):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
            for start, end in own:
                asked[row, start - 1 : end - 1] = True
        backbone = backbone_of(self._model)
        states = backbone(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).last_hidden_state
        found: Tensor = states[asked.to(states.device)]
        return found.to(device)


def read_at_once(sequences: Sequence[Sequence[int]]) -> Iterator[slice]:
    """Neighbours that are padded to the longest of them: `BATCH_TOKENS` with the padding at most, or one alone.

    A thinking answer is a hundred times as long as one without: padded to it, a batch of those would be as large.
    """
    first = longest = 0
    for at, sequence in enumerate(sequences):
        longest = max(longest, len(sequence))
        if at > first and (at + 1 - first) * longest > BATCH_TOKENS:
            yield slice(first, at)
            first, longest = at, len(sequence)
    yield slice(first, len(sequences))


def backbone_of(model: Any) -> Any:
    """What of a causal language model gives hidden states, with adapters where it has them."""
    if hasattr(model, "peft_config"):
        model = model.base_model.model
    return model.base_model


@torch.no_grad()
def distributions(
    model: Any, ids: Sequence[int], places: Sequence[int], entries: int
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Log-probabilities (N, V) before the tokens at these places, `PIECE` of them at a time, padding left out."""
    device = model.get_output_embeddings().weight.device
    states = backbone_of(model)(input_ids=torch.tensor([list(ids)], device=device), use_cache=False).last_hidden_state
    hidden = states[0, [place - 1 for place in places]]
    with whole_head(model, hidden.dtype) as head:
        projection = Projection(hidden, head)  # in single precision: half of it makes equals of neighbours
        for first in range(0, len(places), PIECE):
            rows = slice(first, min(first + PIECE, len(places)))
            logits = torch.empty(rows.stop - first, entries, device=hidden.device, dtype=projection.precision)
            for start in range(0, entries, COLUMNS):
                columns = slice(start, min(start + COLUMNS, entries))
                projection.fill(logits[:, columns], rows, columns, 1.0)
            yield rows, logits.log_softmax(-1)


def top_k_of(teacher: Projection, entries: int, k: int, temperature: float) -> TopK:
    """The k most probable entries of N distributions and the mass of the others, tile by tile."""
    tiles = Tiles(teacher, entries, temperature, 1, (False, False, False))
    parts = []
    for rows, (logits_R_V,) in tiles:
        for columns in tiles.steps():
            teacher.fill(logits_R_V[:, columns], rows, columns, tiles.unit * LN_2)
        top = logits_R_V.topk(k, dim=1)
        values = top.values.clone()
        # What is left is summed up by itself: 1 less the others' sum would be rounding where they are nearly all.
        rest = logits_R_V.scatter_(1, top.indices, float("-inf")).logsumexp(1)
        norm = torch.logaddexp(values.logsumexp(1), rest)
        parts.append(TopK(top.indices, values - norm[:, None], rest - norm))
    if not parts:
        empty = torch.zeros(0, k)
        return TopK(empty.long(), empty, torch.zeros(0))
    return TopK.concatenate(parts)
