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
from typing import Any

import numpy as np
import torch

FORCED = 1e30  # far above any score, far below float32's end: the division by a temperature of 1e-5 still fits
GREEDY = 2.0**-20  # stands for temperature 0; a power of two, so that scaling by it is exact


Redirect = tuple[Collection[int], int]  # ids that must not come, and the id that their probability belongs to
Forced = tuple[Any, Any]  # lists or arrays: rows, and the id of each


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
        self._forced = torch.tensor(FORCED, device=device)
        self._layout: tuple[int, bytes] | None = None  # of `_rows`
        self._rows: tuple[torch.Tensor, ...] = ()
        self._seen_through = False  # `_rows` are views that follow every change

    def redirect(self, slot: int, redirect: Redirect | None, temperature: float = 1.0) -> None:
        """From now on, ends of `slot` become another id; with None, they are ends."""
        if self._slots.put(slot, redirect, temperature) and not self._seen_through:
            self._layout = None

    def apply(
        self,
        scores: torch.Tensor,
        forced: Forced | None = None,
        slots: torch.Tensor | None = None,
        layout: bytes = b"",
        redirects: Sequence[tuple[Redirect | None, float]] | None = None,
    ) -> None:
        """Write into `scores` in place.

        Args:
            scores: (rows, vocabulary), float32, before temperature.
            forced: what has to come next, in some rows.
            slots: (rows,) the slot of each row; default: row i is slot i.
            layout: the same to the host: as long as it stays, nothing is looked up again.
            redirects: of each row, with its temperature, where rows of a slot differ; default: as its slot.
        """
        if redirects is not None:
            rows = _Redirects(len(redirects), self._slots.ids.shape[1])
            for row, (redirect, temperature) in enumerate(redirects):
                rows.put(row, redirect, temperature)
            if rows.count:
                _redirect(scores, rows.of(slice(None), self._device))
        elif self._slots.count:
            if self._layout != (len(scores), layout):
                self._layout = len(scores), layout
                self._seen_through = slots is None and self._device.type == "cpu"
                self._rows = self._slots.of(slice(len(scores)) if slots is None else slots, self._device)
            _redirect(scores, self._rows)
        if forced is None or not len(forced[0]):
            return
        if self._device.type == "cpu":
            scores.numpy()[forced] = FORCED  # cheaper than index_put_ for a few rows
        else:
            at = (torch.from_numpy(np.asarray(each, dtype=np.int64)) for each in forced)
            scores.index_put_(tuple(each.to(self._device, non_blocking=True) for each in at), self._forced)


class _Redirects:
    """Redirections of `size` rows as arrays. The columns of a row are the ids it receives from, then the id that
    receives, repeated where there are fewer of the former."""

    def __init__(self, size: int, width: int) -> None:
        self.count = 0
        self.ids = np.zeros((size, width), dtype=np.int64)
        self._active = np.zeros((size, 1), dtype=np.bool_)
        # What is added before the sum (0 takes part, -inf does not) and to it (-inf: must not come); the temperature
        # and its inverse.
        self._numbers = np.zeros((size, 2 * width + 2), dtype=np.float32)
        self._now: list[tuple[Redirect | None, float]] = [(None, 1.0)] * size
        self._columns: dict[Redirect, tuple[np.ndarray, np.ndarray]] = {}

    def put(self, row: int, redirect: Redirect | None, temperature: float) -> bool:
        """Whether that changed anything."""
        before, now = self._now[row], (redirect, temperature)
        if before == now or (redirect is None and before[0] is None):
            return False
        self._now[row] = now
        self.count += (redirect is not None) - (before[0] is not None)
        self._active[row] = redirect is not None
        if redirect is not None:
            temperature = temperature if temperature >= 1e-5 else GREEDY
            ids, numbers = self._columns_of(redirect)
            self.ids[row] = ids
            self._numbers[row, :-2] = numbers
            self._numbers[row, -2] = temperature
            self._numbers[row, -1] = 1 / temperature
        return True

    def _columns_of(self, redirect: Redirect) -> tuple[np.ndarray, np.ndarray]:
        sources, target = frozenset(redirect[0]), redirect[1]
        if (sources, target) not in self._columns:
            size, width = len(sources), self.ids.shape[1]
            ids, numbers = np.full(width, target), np.zeros(2 * width, dtype=np.float32)
            ids[:size] = list(sources)
            numbers[size + 1 : width] = -np.inf
            numbers[width : width + size] = -np.inf
            self._columns[sources, target] = ids, numbers
        return self._columns[sources, target]

    def of(self, rows: slice | torch.Tensor, device: torch.device) -> tuple[torch.Tensor, ...]:
        """What `_redirect` needs for some of the rows."""
        arrays = (torch.from_numpy(array).to(device) for array in (self._active, self.ids, self._numbers))
        if isinstance(rows, slice):
            active, ids, numbers = (array[rows] for array in arrays)
        else:
            active, ids, numbers = (array.index_select(0, rows) for array in arrays)
        width = ids.shape[1]
        from_, to_, temperature, inverse = torch.split(numbers, [width, width, 1, 1], 1)
        return active, ids, from_, to_, temperature, inverse


def _redirect(scores: torch.Tensor, rows: tuple[torch.Tensor, ...]) -> None:
    active, ids, from_, to_, temperature, inverse = rows
    before = scores.gather(1, ids)
    # The sum over the columns so far: whole at the receiving id's, and one kernel where logsumexp takes several.
    total = torch.logcumsumexp(torch.addcmul(from_, before, inverse), 1)
    scores.scatter_(1, ids, torch.where(active, torch.addcmul(to_, total, temperature), before))
