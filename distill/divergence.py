"""Divergences between a student's and a teacher's next-token distributions, with the gradient made on the way forward.

`beta` is that of TRL and of Agarwal et al. (arXiv 2306.13649): 0 forward KL(teacher || student), 1 reverse
KL(student || teacher), between them the generalised Jensen-Shannon divergence, whose mixture is
(1 - beta) student + beta teacher. Both distributions are softened by `temperature` first.

The vocabulary is wide and a batch is long, so logits never stand for more than a few tokens at once: a tile of tokens
is projected, compared and turned into gradients with respect to hidden states and output weights, a few thousand
columns at a time, and its memory is used for the next tile. Nothing is left for the backward pass but a multiplication.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posttrain.distill.buckets import TopK, compare_on_buckets
from posttrain.distill.tiles import Logits, Projection, Tiles, compare_in_full
from posttrain.errors import PosttrainError, Problem


@dataclass(frozen=True)
class Divergence:
    """What a comparison gives. `total` alone has a gradient; the rest is for figures.

    Attributes:
        total: the sum over all tokens, of what is minimised.
        per_token: (N) the divergence in nats, never below 0.
        entropy: (N) of the student, in nats.
        cross_entropy: (N) of the labels, in nats; None without labels.
    """

    total: Tensor
    per_token: Tensor
    entropy: Tensor
    cross_entropy: Tensor | None = None


def divergence(
    student: Projection, teacher: Projection | Logits, *, entries: int, beta: float, temperature: float = 1.0
) -> Divergence:
    """Compare N tokens on the full vocabulary.

    Args:
        student: the gradient flows to its hidden states, weight and bias, where these want one.
        teacher: of the same N tokens; its hidden size may differ.
        entries: of the vocabulary that mean something; what lies behind them is padding, and has no probability.
    """

    def compare(tiles: Tiles) -> None:
        compare_in_full(tiles, teacher, beta)

    return _fused(student, compare, entries, temperature, standing=2)


def top_k_divergence(
    student: Projection,
    teacher: TopK,
    *,
    entries: int,
    beta: float,
    temperature: float = 1.0,
    labels: Tensor | None = None,
    weights: tuple[float, float] = (1.0, 0.0),
) -> Divergence:
    """Compare N tokens on the teacher's k most probable entries and one bucket for all others.

    Merging entries never raises a divergence: this is a lower bound of the one on the full vocabulary.

    Args:
        teacher: softened by this `temperature` already.
        labels: (N) the tokens that followed.
        weights: what the divergence and the labels' cross-entropy count for in `total`. The cross-entropy is of the
            distribution as it is, so it goes with temperature 1 alone.
    """
    if weights[1] and (labels is None or temperature != 1.0):
        raise ValueError("a cross-entropy needs labels, and goes with temperature 1 alone")
    cross_entropy = torch.zeros(len(student.hidden), dtype=student.precision, device=student.hidden.device)

    def compare(tiles: Tiles) -> None:
        compare_on_buckets(tiles, teacher, beta, labels, weights, cross_entropy)

    found = _fused(student, compare, entries, temperature, standing=1, weights=weights, second=cross_entropy)
    return found if labels is None else Divergence(found.total, found.per_token, found.entropy, cross_entropy)


def _fused(
    student: Projection,
    compare: Callable[[Tiles], None],
    entries: int,
    temperature: float,
    *,
    standing: int,
    weights: tuple[float, float] = (1.0, 0.0),
    second: Tensor | None = None,
) -> Divergence:
    def run(wanted: tuple[bool, bool, bool]) -> tuple[Tensor, Tiles]:
        tiles = Tiles(student, entries, temperature, standing, wanted)
        with torch.autocast(student.hidden.device.type, enabled=False):
            if len(student.hidden):
                compare(tiles)
        if not tiles.per_token.isfinite().all():
            what = "the divergence of student and teacher is no number"
            why = "the logits of one of them are not finite: training would go on, and every weight become NaN"
            remedy = "look at the teacher's weights; lower train.learning_rate; compute in bfloat16, not in float16"
            raise PosttrainError(Problem(what, why=why, remedy=remedy))
        tiles.per_token.clamp_(min=0)  # below it by rounding alone
        total = tiles.per_token.sum() * weights[0]
        return (total if second is None else total + second.sum() * weights[1]), tiles

    head = student.head
    return Divergence(*_Fused.apply(student.hidden, head.weight, head.bias, run))  # type: ignore[no-untyped-call]


class _Fused(torch.autograd.Function):
    """A sum over tokens whose gradient is ready when the sum is."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
        total, tiles = given[3](tuple(ctx.needs_input_grad[:3]))
        ctx.ready = [tiles.grad_hidden, tiles.grad_weight, tiles.grad_bias]
        ctx.types = [None if tensor is None else tensor.dtype for tensor in given[:3]]
        ctx.mark_non_differentiable(tiles.per_token, tiles.entropy)
        ctx.set_materialize_grads(False)
        return total, tiles.per_token, tiles.entropy

    @staticmethod
    def backward(ctx: Any, *by: Any) -> Any:
        if ctx.ready is None:
            raise RuntimeError("this gradient was made in the forward pass and is used up: run the forward again")
        ready, ctx.ready = ctx.ready, None  # let go of: a parameter may take the memory over
        if by[0] is None:
            return None, None, None, None
        grads = [None if grad is None else grad.mul_(by[0]).to(ctx.types[place]) for place, grad in enumerate(ready)]
        return (*grads, None)
