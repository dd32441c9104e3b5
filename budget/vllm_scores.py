"""The budget's hand on the scores of a batch: forced ids, and ends of turn that have to close thinking first.

**Forced.** The forced id gets a score that no other can reach, whatever follows (penalties, temperature, top-k, top-p,
min-p): after the softmax its probability is exactly 1 in float32. That writes one number a row, not a row of the
vocabulary.

**Redirected.** A processor sees scores, not what is sampled. So the probability of ids that must not come (an end of
turn inside thinking) goes to the id that `BudgetState.redirect` names (the close marker): it comes exactly as often as
it or they would have come, and everything else as often as before. The scores s are divided by the temperature t later,
so that id's becomes t * log(sum exp(s/t)) over all of them, which is their maximum under greedy decoding.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch

FORCED = 1e30  # far above any score, far below float32's end: the division by a temperature of 1e-5 still fits
GREEDY = 2.0**-20  # stands for temperature 0; a power of two, so that scaling by it is exact


Redirect = tuple[Collection[int], int]  # ids that must not come, and the id that their probability belongs to


class Scores:
    """What is written into the scores (rows, vocabulary) of each step.

    Args:
        ends: the ids that a redirection can be from, over all requests.
        slots: how many requests there can be at once. What belongs to a request is kept under its slot.
        device: where the scores are.
    """

    def __init__(self, ends: Collection[int], slots: int, device: torch.device) -> None:
        self._device = device
        self._slots = _Redirects(slots, 1 + len(ends))
        self._on_device: tuple[torch.Tensor, ...] = ()
        self._rows: tuple[tuple[int, bytes], tuple[torch.Tensor, ...]] | None = None  # of the latest layout

    def redirect(self, slot: int, redirect: Redirect | None, temperature: float = 1.0) -> None:
        """From now on, ends of `slot` become another id; with None, they are ends."""
        if redirect is not None or self._slots.active[slot, 0]:
            self._slots.put(slot, redirect, temperature)
            self._on_device, self._rows = (), None

    def apply(
        self,
        scores: torch.Tensor,
        forced: Sequence[tuple[int, int]],
        slots: torch.Tensor | None = None,
        layout: bytes = b"",
        redirects: Sequence[tuple[Redirect | None, float]] | None = None,
    ) -> None:
        """Write into `scores` in place.

        Args:
            scores: (rows, vocabulary), float32, before temperature.
            forced: pairs of row and id.
            slots: (rows,) the slot of each row; default: row i is slot i.
            layout: the same to the host: as long as it stays, nothing is looked up again.
            redirects: of each row, with its temperature, where rows of a slot differ; default: as its slot.
        """
        if redirects is not None:
            rows = _Redirects(len(redirects), self._slots.ids.shape[1])
            for row, (redirect, temperature) in enumerate(redirects):
                rows.put(row, redirect, temperature)
            if rows.count:
                _redirect(scores, rows.to(self._device))
        elif self._slots.count:
            key = (len(scores), layout)
            if self._rows is None or self._rows[0] != key:
                self._on_device = self._on_device or self._slots.to(self._device)
                at = slice(len(scores)) if slots is None else slots
                self._rows = (key, tuple(values[at] for values in self._on_device))
            _redirect(scores, self._rows[1])
        if forced:
            at_rows, ids = torch.tensor(list(zip(*forced, strict=True)), dtype=torch.int64).to(
                self._device, non_blocking=True
            )
            scores[at_rows, ids] = FORCED


class _Redirects:
    """Redirections of `size` rows as arrays. Column 0 is the id that receives, the others those it receives from; one
    that is not used repeats column 0."""

    def __init__(self, size: int, width: int) -> None:
        self.count = 0
        self.active = np.zeros((size, 1), dtype=np.bool_)
        self.ids = np.zeros((size, width), dtype=np.int64)
        self.from_ = np.full((size, width), -np.inf, dtype=np.float32)  # added before the sum: 0 takes part
        self.to_ = np.zeros((size, width), dtype=np.float32)  # added to the sum: -inf must not come
        self.temperature = np.ones((size, 1), dtype=np.float32)

    def put(self, row: int, redirect: Redirect | None, temperature: float) -> None:
        self.count += (redirect is not None) - int(self.active[row, 0])
        self.active[row] = redirect is not None
        if redirect is None:
            return
        sources, target = redirect
        used = 1 + len(sources)
        self.ids[row] = target
        self.ids[row, 1:used] = list(sources)
        self.from_[row] = -np.inf
        self.from_[row, :used] = 0.0
        self.to_[row] = 0.0
        self.to_[row, 1:used] = -np.inf
        self.temperature[row] = temperature if temperature >= 1e-5 else GREEDY

    def to(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        arrays = (self.active, self.ids, self.from_, self.to_, self.temperature, 1 / self.temperature)
        return tuple(torch.from_numpy(array.copy()).to(device) for array in arrays)


def _redirect(scores: torch.Tensor, rows: tuple[torch.Tensor, ...]) -> None:
    active, ids, from_, to_, temperature, inverse = rows
    before = scores.gather(1, ids)
    total = torch.logsumexp(torch.addcmul(from_, before, inverse), 1, keepdim=True)
    scores.scatter_(1, ids, torch.where(active, torch.addcmul(to_, total, temperature), before))
