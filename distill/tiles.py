"""Tiles of logits: a few tokens by the whole vocabulary, projected and compared a few thousand columns at a time.

Logits are kept in units of log 2, because the exponential to base 2 is the cheap one; figures leave in nats.

Names of tensors end in their shape: R the tokens of a tile, C the columns of a step, S the steps over the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

COLUMNS = 4096
"""Entries worked on at once: they stay in a processor's cache between one operation and the next."""
TILE_BYTES = {"cpu": 128 << 20}
TILE_BYTES_ELSEWHERE = 1 << 30
"""Memory of the logits that stand at once, by type of device."""
LN_2 = math.log(2)
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Head:
    """An output layer: `weight` (V, H), `bias` (V) or None, and what the logits are multiplied by."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Projection:
    """Logits that do not stand yet: hidden states (N, H), and the head that makes logits of them."""

    hidden: Tensor
    head: Head
    dtype: torch.dtype = field(init=False)
    """What products are computed in: the hidden states' type, or that of the autocast around."""

    def __post_init__(self) -> None:
        kind = self.hidden.device.type
        chosen = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.hidden.dtype
        object.__setattr__(self, "dtype", chosen)

    @property
    def precision(self) -> torch.dtype:
        """What logits are compared in."""
        return torch.float64 if self.hidden.dtype == torch.float64 else torch.float32

    def fill(self, out: Tensor, rows: slice, columns: slice, unit: float) -> None:
        """Write the logits times `unit` of some tokens and entries into `out`."""
        factor = self.head.scale * unit
        hidden, weight = self.hidden[rows].detach().to(self.dtype), self.head.weight[columns].detach().to(self.dtype)
        if self.dtype == out.dtype:
            torch.mm(hidden * factor, weight.t(), out=out)
        elif out.is_cuda:  # half precision in, single precision out
            torch.mm(hidden, weight.t(), out_dtype=out.dtype, out=out)
            out.mul_(factor)
        else:
            torch.mm(hidden.to(out.dtype) * factor, weight.to(out.dtype).t(), out=out)
        if self.head.bias is not None:
            out.add_(self.head.bias[columns].detach().to(out.dtype), alpha=factor)


@dataclass(frozen=True)
class Logits:
    """Logits (N, V) that stand already."""

    values: Tensor

    def fill(self, out: Tensor, rows: slice, columns: slice, unit: float) -> None:
        torch.mul(self.values[rows, columns].detach(), unit, out=out)


class Tiles:
    """The tiles of one comparison: the memory they take turns in, the figures and the gradients they add up to.

    Args:
        standing: how many tiles stand at once.
        wanted: whether the student's hidden states, weight and bias want a gradient.
    """

    def __init__(
        self, student: Projection, entries: int, temperature: float, standing: int, wanted: tuple[bool, bool, bool]
    ) -> None:
        hidden, head = student.hidden, student.head
        self.student, self.entries = student, entries
        self.unit = 1 / (LN_2 * temperature)
        self.slope = head.scale / temperature  # of a softened logit by hidden state times weight
        self.options: dict[str, Any] = {"dtype": student.precision, "device": hidden.device}
        tokens = len(hidden)
        self.per_token, self.entropy = torch.zeros(tokens, **self.options), torch.zeros(tokens, **self.options)
        self.grad_hidden = torch.zeros(hidden.shape, **self.options) if wanted[0] else None
        self.grad_weight = torch.zeros(head.weight.shape, **self.options) if wanted[1] else None
        self.grad_bias = torch.zeros(len(head.weight), **self.options) if wanted[2] else None
        limit = TILE_BYTES.get(hidden.device.type, TILE_BYTES_ELSEWHERE)
        fitting = limit // (entries * standing * self.per_token.element_size())
        self._rows = max(1, min(tokens, max(16, fitting // 16 * 16)))
        self._memory = [torch.empty(self._rows, entries, **self.options) for _ in range(standing)]
        self._spare = torch.empty(2, self._rows, min(COLUMNS, entries), **self.options)

    @property
    def wanted(self) -> bool:
        """Whether anything wants a gradient."""
        return not (self.grad_hidden is None and self.grad_weight is None and self.grad_bias is None)

    def __iter__(self) -> Iterator[tuple[slice, list[Tensor]]]:
        """Each tile: its tokens, and the memory (R, V) of those that stand."""
        for start in range(0, len(self.per_token), self._rows):
            rows = slice(start, min(start + self._rows, len(self.per_token)))
            yield rows, [memory[: rows.stop - start] for memory in self._memory]

    def steps(self) -> Iterator[slice]:
        """The columns of each step."""
        for start in range(0, self.entries, COLUMNS):
            yield slice(start, min(start + COLUMNS, self.entries))

    def spare(self, number: int, like_R_C: Tensor) -> Tensor:
        """Memory for one step, of that shape."""
        rows, columns = like_R_C.shape
        return self._spare[number, :rows, :columns]

    def add_gradient(self, rows: slice, columns: slice, slope_R_C: Tensor, scale_R: Tensor | None = None) -> None:
        """Pass on the divergence's slope by the softened logits, times `scale_R`, to what the logits come from."""
        factor = self.slope if scale_R is None else (scale_R * self.slope)[:, None]
        dtype = self.student.dtype if slope_R_C.is_cuda else slope_R_C.dtype
        slope = slope_R_C.to(dtype)
        if self.grad_hidden is not None:
            weight = self.student.head.weight[columns].detach().to(dtype)
            self.grad_hidden[rows] += torch.mm(slope, weight).to(slope_R_C.dtype) * factor
        if self.grad_weight is not None:
            hidden = (self.student.hidden[rows].detach().to(slope_R_C.dtype) * factor).to(dtype)
            if dtype == slope_R_C.dtype:
                self.grad_weight[columns].addmm_(slope.t(), hidden)
            else:
                self.grad_weight[columns] += torch.mm(slope.t(), hidden)
        if self.grad_bias is not None:
            self.grad_bias[columns] += (slope_R_C * factor).sum(0)


class Softmax:
    """A softmax made in steps: the maximum, the sum and further sums of each, and at last what they come to."""

    def __init__(self) -> None:
        self.tops: list[Tensor] = []
        self._sums: list[Tensor] = []

    def step(self, logits_R_C: Tensor, out_R_C: Tensor) -> Tensor:
        """Take in some columns: exp2(logits - their maximum) into `out`. `logits` is left less its maximum."""
        top = logits_R_C.amax(1).clamp_(min=-1e20)  # of columns that are all masked, too
        torch.exp2(logits_R_C.sub_(top[:, None]), out=out_R_C)
        self.tops.append(top)
        self._sums.append(out_R_C.sum(1))
        return out_R_C

    def finish(self) -> None:
        """All columns have been seen: `norm` (R) is the logarithm of the sum."""
        tops_S_R, sums_S_R = torch.stack(self.tops), torch.stack(self._sums)
        top_R = tops_S_R.amax(0)
        self.norm = top_R + torch.log2((sums_S_R * torch.exp2(tops_S_R - top_R)).sum(0))
        # Of each step's exponentials, to probabilities; of no columns' at all, anything finite.
        self.scales = torch.exp2(tops_S_R - self.norm.clamp(min=-1e20))
        self._mass = sums_S_R

    def mean(self, sums_R: list[Tensor]) -> Tensor:
        """The mean of a quantity, of which `sums_R` has each step's sum weighed by its exponentials."""
        return (torch.stack(sums_R) * self.scales).sum(0)

    def entropy(self, sums_R: list[Tensor]) -> Tensor:
        """In nats, from each step's sum of exponentials times logits less their maximum."""
        mean = self.mean(sums_R) + (torch.stack(self.tops) * self._mass * self.scales).sum(0)
        return (self.norm - mean) * LN_2


def compare_in_full(tiles: Tiles, teacher: Projection | Logits, beta: float) -> None:
    """The divergence on every entry."""
    compare = _reverse if beta == 1.0 else _forward if beta == 0.0 else _mixed
    for rows, (student_R_V, teacher_R_V) in tiles:
        compare(tiles, teacher, rows, student_R_V, teacher_R_V, beta)


def _filled(
    tiles: Tiles, teacher: Projection | Logits, rows: slice, s_R_V: Tensor, t_R_V: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    for columns in tiles.steps():
        s, t = s_R_V[:, columns], t_R_V[:, columns]
        tiles.student.fill(s, rows, columns, tiles.unit)
        teacher.fill(t, rows, columns, tiles.unit)
        yield s, t


def _reverse(tiles: Tiles, teacher: Any, rows: slice, s_R_V: Tensor, t_R_V: Tensor, beta: float) -> None:
    student_sums, teacher_sums = Softmax(), Softmax()
    gaps, depths = [], []
    for s, t in _filled(tiles, teacher, rows, s_R_V, t_R_V):
        spare, other = tiles.spare(0, s), tiles.spare(1, s)
        torch.sub(s, t, out=other)
        teacher_sums.step(t, spare)
        student_sums.step(s, spare)
        gaps.append(torch.linalg.vecdot(spare, other))
        depths.append(torch.linalg.vecdot(spare, s))
        s.copy_(spare)
        t.copy_(other)
    student_sums.finish()
    teacher_sums.finish()
    gap_R = student_sums.mean(gaps)
    tiles.per_token[rows] = (gap_R - student_sums.norm + teacher_sums.norm) * LN_2
    tiles.entropy[rows] = student_sums.entropy(depths)
    if tiles.wanted:
        for step, columns in enumerate(tiles.steps()):
            slope = t_R_V[:, columns].sub_(gap_R[:, None]).mul_(s_R_V[:, columns])
            tiles.add_gradient(rows, columns, slope, student_sums.scales[step] * LN_2)


def _forward(tiles: Tiles, teacher: Any, rows: slice, s_R_V: Tensor, t_R_V: Tensor, beta: float) -> None:
    student_sums, teacher_sums = Softmax(), Softmax()
    gaps, depths = [], []
    for s, t in _filled(tiles, teacher, rows, s_R_V, t_R_V):
        spare, other = tiles.spare(0, s), tiles.spare(1, s)
        torch.sub(t, s, out=other)
        teacher_sums.step(t, spare)
        gaps.append(torch.linalg.vecdot(spare, other))
        t.copy_(spare)
        student_sums.step(s, spare)
        depths.append(torch.linalg.vecdot(spare, s))
        s.copy_(spare)
    student_sums.finish()
    teacher_sums.finish()
    tiles.per_token[rows] = (teacher_sums.mean(gaps) - teacher_sums.norm + student_sums.norm) * LN_2
    tiles.entropy[rows] = student_sums.entropy(depths)
    if tiles.wanted:
        for step, columns in enumerate(tiles.steps()):
            slope = s_R_V[:, columns].mul_(student_sums.scales[step, :, None])
            slope.addcmul_(t_R_V[:, columns], teacher_sums.scales[step, :, None], value=-1)
            tiles.add_gradient(rows, columns, slope)


def _mixed(tiles: Tiles, teacher: Any, rows: slice, s_R_V: Tensor, t_R_V: Tensor, beta: float) -> None:
    norms = []
    for logits_R_V, source in ((s_R_V, tiles.student), (t_R_V, teacher)):
        sums = Softmax()
        for columns in tiles.steps():
            logits = logits_R_V[:, columns]
            source.fill(logits, rows, columns, tiles.unit)
            spare = tiles.spare(0, logits)
            sums.step(logits, spare)
            logits.add_(sums.tops[-1][:, None])
        sums.finish()
        norms.append(sums.norm[:, None])
    kl_student = torch.zeros(len(s_R_V), **tiles.options)
    kl_teacher, entropy = torch.zeros_like(kl_student), torch.zeros_like(kl_student)
    for columns in tiles.steps():
        s, t = s_R_V[:, columns].sub_(norms[0]), t_R_V[:, columns].sub_(norms[1])
        spare, other = tiles.spare(0, s), tiles.spare(1, s)
        torch.exp2(s, out=spare)
        torch.exp2(t, out=other)
        mixture = torch.lerp(spare, other, beta).clamp_(min=TINY).log2_()
        entropy -= torch.linalg.vecdot(spare, s)
        kl_teacher += torch.linalg.vecdot(other, t.sub_(mixture))
        torch.mul(s.sub_(mixture), spare, out=t)
        kl_student += t.sum(1)
        s.copy_(spare)
    tiles.per_token[rows] = (beta * kl_teacher + (1 - beta) * kl_student) * LN_2
    tiles.entropy[rows] = entropy * LN_2
    if tiles.wanted:
        for columns in tiles.steps():
            slope = t_R_V[:, columns].addcmul_(s_R_V[:, columns], kl_student[:, None], value=-1)
            tiles.add_gradient(rows, columns, slope.mul_((1 - beta) * LN_2))
