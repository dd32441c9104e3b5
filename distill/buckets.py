"""A distribution in buckets: its k most probable entries, one each, and all others in one, the tail.

What a teacher's log-probabilities come to when only the k highest are stored or served. Merging entries can only lower
a divergence (data processing), and it stays one: never below 0, and 0 where the buckets' masses are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.distill.tiles import LN_2, Softmax, Tiles

FLOOR = -60.0
"""In nats, the least logarithm of a bucket's mass: what is below it is 0 to any measure, and its logarithm is not."""
MASKED = -1e30


@dataclass(frozen=True)
class TopK:
    """What is known of N distributions.

    Attributes:
        ids: (N, K) the entries, each once.
        log_probs: (N, K) their logarithms, in nats.
        tail: (N) the logarithm of the mass of all others, in nats; -inf where there is none.
    """

    ids: Tensor
    log_probs: Tensor
    tail: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice) -> TopK:
        return TopK(self.ids[rows], self.log_probs[rows], self.tail[rows])

    @staticmethod
    def concatenate(parts: Sequence[TopK]) -> TopK:
        return TopK(*(torch.cat([getattr(part, name) for part in parts]) for name in ("ids", "log_probs", "tail")))

    def buckets(self, dtype: torch.dtype) -> Tensor:
        """(N, K + 1) logarithms of masses that add up to 1, the tail last."""
        logs = torch.cat([self.log_probs, self.tail[:, None]], dim=1).to(dtype).clamp(min=FLOOR)
        return logs - logs.logsumexp(1, keepdim=True)


def bucket_divergence(student_N_B: Tensor, teacher_N_B: Tensor, beta: float) -> Tensor:
    """The divergence (N) of two distributions, given as logarithms of their masses, each adding up to 1."""
    if beta == 0.0:
        return (teacher_N_B.exp() * (teacher_N_B - student_N_B)).sum(1)
    if beta == 1.0:
        return (student_N_B.exp() * (student_N_B - teacher_N_B)).sum(1)
    weights = torch.tensor([1 - beta, beta], dtype=student_N_B.dtype, device=student_N_B.device).log()
    mixture = torch.logaddexp(student_N_B + weights[0], teacher_N_B + weights[1])
    of_teacher, of_student = ((logs.exp() * (logs - mixture)).sum(1) for logs in (teacher_N_B, student_N_B))
    return beta * of_teacher + (1 - beta) * of_student


def _slopes(student_R_B: Tensor, teacher_R_B: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The divergence (R), and its slope (R, B) by the logarithm of each of the student's masses."""
    with torch.enable_grad():
        logs = student_R_B.detach().requires_grad_()
        value = bucket_divergence(logs, teacher_R_B, beta)
        (slope,) = torch.autograd.grad(value.sum(), logs)
    return value.detach(), slope


def compare_on_buckets(
    tiles: Tiles,
    teacher: TopK,
    beta: float,
    labels: Tensor | None,
    weights: tuple[float, float],
    cross_entropy: Tensor,
) -> None:
    """The divergence on the teacher's buckets, and the labels' cross-entropy, written into `cross_entropy` (N)."""
    for rows, (logits_R_V,) in tiles:
        known = teacher[rows]
        label_R_1 = None if labels is None else labels[rows, None]
        tail, depths, at_ids, at_label = _tail_beside(tiles, rows, logits_R_V, known.ids, label_R_1)
        norm_R = torch.logaddexp2((at_ids * LN_2).logsumexp(1) / LN_2, tail.norm)
        logs_R_B = (torch.cat([at_ids, tail.norm[:, None]], 1) - norm_R[:, None]) * LN_2
        mass_R_B = logs_R_B.exp()
        value_R, slope_R_B = _slopes(logs_R_B.clamp(min=2 * FLOOR), known.buckets(logs_R_B.dtype), beta)
        tiles.per_token[rows] = value_R
        within_tail = torch.where(mass_R_B[:, -1] > 0, mass_R_B[:, -1] * tail.entropy(depths), 0.0)
        tiles.entropy[rows] = within_tail - torch.special.xlogy(mass_R_B, mass_R_B).sum(1)
        if at_label is not None:
            cross_entropy[rows] = (norm_R - at_label[:, 0]) * LN_2
        if tiles.wanted:
            # By a logit: the slope of its bucket less the bucket's mass times all slopes, shared in the tail by mass.
            by_logit_R_B = weights[0] * (slope_R_B - mass_R_B * slope_R_B.sum(1, keepdim=True)) + weights[1] * mass_R_B
            _pass_on(tiles, rows, logits_R_V, known.ids, by_logit_R_B, tail.scales, label_R_1, weights[1])


def _tail_beside(
    tiles: Tiles, rows: slice, logits_R_V: Tensor, ids_R_K: Tensor, label_R_1: Tensor | None
) -> tuple[Softmax, list[Tensor], Tensor, Tensor | None]:
    """The softmax of all entries but the teacher's; the logits (units of log 2) of these, and of the labels.

    The tile is left with the tail's exponentials, and 0 at the teacher's entries.
    """
    tail, depths = Softmax(), []
    at_ids = torch.zeros(ids_R_K.shape, **tiles.options)
    at_label = None if label_R_1 is None else torch.zeros(label_R_1.shape, **tiles.options)
    for columns in tiles.steps():
        logits = logits_R_V[:, columns]
        tiles.student.fill(logits, rows, columns, tiles.unit)
        if label_R_1 is not None and at_label is not None:
            here, places = _within(label_R_1, columns)
            at_label[here] = logits[places]
        here, places = _within(ids_R_K, columns)
        at_ids[here] = logits[places]
        logits[places] = MASKED
        spare = tail.step(logits, tiles.spare(0, logits))
        depths.append(torch.linalg.vecdot(spare, logits))
        logits.copy_(spare)
    tail.finish()
    return tail, depths, at_ids, at_label


def _pass_on(
    tiles: Tiles,
    rows: slice,
    tail_R_V: Tensor,
    ids_R_K: Tensor,
    by_logit_R_B: Tensor,
    scales_S_R: Tensor,
    label_R_1: Tensor | None,
    label_weight: float,
) -> None:
    """The slopes by single logits, put together step by step in the tile, and passed on."""
    for step, columns in enumerate(tiles.steps()):
        slope = tail_R_V[:, columns]
        slope.mul_((scales_S_R[step] * by_logit_R_B[:, -1])[:, None])
        here, places = _within(ids_R_K, columns)
        slope[places] = by_logit_R_B[:, :-1][here]
        if label_R_1 is not None and label_weight:
            slope[_within(label_R_1, columns)[1]] -= label_weight
        tiles.add_gradient(rows, columns, slope)


def _within(ids_R_K: Tensor, columns: slice) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Which of the ids lie within these columns, and the places there that they mean."""
    here = torch.logical_and(ids_R_K >= columns.start, ids_R_K < columns.stop).nonzero(as_tuple=True)
    return here, (here[0], ids_R_K[here] - columns.start)
