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

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch

FORCED = 1e30  # far above any score, far below float32's end: the division by a temperature of 1e-5 still fits
GREEDY = 2.0**-20  # stands for temperature 0; a power of two, so that scaling by it is exact


Redirect = tuple[Collection[int], int]  # ids that must not come, and the id that their probability belongs to
Forced = tuple[Any, Any]  # lists or arrays: rows, and the id of each
_Kind = tuple[tuple[frozenset[int], int], float]  # a redirection, and the temperature of the request


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
        self._layout: tuple[int, bytes] | None = None  # of the following
        self._rows: tuple[torch.Tensor, ...] | None = None  # made when they are needed
        self._masks: tuple[torch.Tensor, ...] | None = None
        self._all = False  # rows are redirected
        self._seen_through = False  # they are views that follow every change

    def redirect(self, slot: int, redirect: Redirect | None, temperature: float = 1.0) -> None:
        """From now on, ends of `slot` become another id; with None, they are ends."""
        if self._slots.put(slot, redirect, temperature) and not self._seen_through:
            self._layout = None

    def apply(
        self,
        scores: torch.Tensor,
        forced: Forced | None = None,
        slots: tuple[torch.Tensor, np.ndarray] | None = None,
        redirects: Sequence[tuple[Redirect | None, float]] | None = None,
    ) -> None:
        """Write into `scores` in place.

        Args:
            scores: (rows, vocabulary), float32, before temperature.
            forced: what has to come next, in some rows.
            slots: (rows,) the slot of each row, on the device and on the host; default: row i is slot i.
            redirects: of each row, with its temperature, where rows of a slot differ; default: as its slot.
        """
        if redirects is not None:
            rows = _Redirects(len(redirects), self._slots.ids.shape[1])
            for row, (redirect, temperature) in enumerate(redirects):
                rows.put(row, redirect, temperature)
            if rows.count:
                _redirect(scores, rows.of(slice(None), self._device))
        elif self._slots.count:
            self._redirect(scores, slots)
        if forced is None or not len(forced[0]):
            return
        if self._device.type == "cpu":
            scores.numpy()[forced] = FORCED  # cheaper than index_put_ for a few rows
        else:
            at = (torch.from_numpy(np.asarray(each, dtype=np.int64)) for each in forced)
            scores.index_put_(tuple(each.to(self._device, non_blocking=True) for each in at), self._forced)

    def _redirect(self, scores: torch.Tensor, slots: tuple[torch.Tensor, np.ndarray] | None) -> None:
        count = scores.shape[0]  # len() of a tensor costs more
        layout = count, slots[1].tobytes() if slots else b""
        if self._layout != layout:
            self._layout = layout
            self._seen_through = slots is None and self._device.type == "cpu"
            self._rows = self._masks = None
            self._all = slots is not None and self._slots.all_of(slots[1])
        rows = slots[0] if slots else slice(count)
        kind = self._slots.only
        if kind is not None and (self._slots.count == count if slots is None else self._all):
            _redirect_alike(scores, kind, None)
        elif kind is not None and kind[1] == 1.0:
            if self._masks is None:
                self._masks = self._slots.masks_of(rows, self._device)
            _redirect_alike(scores, kind, self._masks)
        else:
            if self._rows is None:
                self._rows = self._slots.of(rows, self._device)
            _redirect(scores, self._rows)


class _Redirects:
    """Redirections of `size` rows as arrays. The columns of a row are the ids it receives from, then the id that
    receives, repeated where there are fewer of the former. A row without a redirection receives from nowhere, and so
    keeps what it has."""

    def __init__(self, size: int, width: int) -> None:
        self.ids = np.zeros((size, width), dtype=np.int64)
        # What is added before the sum (0 takes part, -inf does not) and to it (-inf: must not come); the temperature
        # and its inverse. And by row, what is added where only those with a redirection take part, and where they lose.
        self._numbers = np.zeros((size, 2 * width + 2), dtype=np.float32)
        self._masks = np.zeros((size, 2), dtype=np.float32)
        self._now: list[_Kind | None] = [None] * size
        self._kinds: dict[_Kind, int] = {}  # how many rows of each
        self._columns: dict[tuple[frozenset[int], int], tuple[np.ndarray, np.ndarray]] = {}
        self.count = 0
        nobody = frozenset[int](), 0
        self._write(slice(None), nobody, 1.0)
        self._masks[:, 0] = -np.inf

    @property
    def only(self) -> _Kind | None:
        """What all redirections are; None where they differ, or where there are none."""
        return next(iter(self._kinds)) if len(self._kinds) == 1 else None

    def all_of(self, rows: np.ndarray) -> bool:
        """Whether all of some rows are redirected."""
        return bool((self._masks[rows, 1] != 0).all())

    def put(self, row: int, redirect: Redirect | None, temperature: float) -> bool:
        """Whether that changed anything."""
        before = self._now[row]
        if redirect is None:
            if before is None:
                return False
            now = None
        else:
            now = (frozenset(redirect[0]), redirect[1]), temperature if temperature >= 1e-5 else GREEDY
            if before == now:
                return False
        self._now[row] = now
        if before is not None:
            self._kinds[before] -= 1
            if not self._kinds[before]:
                del self._kinds[before]
        if now is not None:
            self._kinds[now] = self._kinds.get(now, 0) + 1
        self.count += (now is not None) - (before is not None)
        self._masks[row] = (-np.inf, 0.0) if now is None else (0.0, -np.inf)
        self._write(row, *(now or ((frozenset(), 0), 1.0)))
        return True

    def _write(self, row: int | slice, redirect: tuple[frozenset[int], int], temperature: float) -> None:
        self.ids[row], self._numbers[row, :-2] = self._columns_of(redirect)
        self._numbers[row, -2] = temperature
        self._numbers[row, -1] = 1 / temperature

    def _columns_of(self, redirect: tuple[frozenset[int], int]) -> tuple[np.ndarray, np.ndarray]:
        if redirect not in self._columns:
            sources, target = redirect
            size, width = len(sources), self.ids.shape[1]
            ids, numbers = np.full(width, target), np.zeros(2 * width, dtype=np.float32)
            ids[:size] = list(sources)
            numbers[size + 1 : width] = -np.inf
            numbers[width : width + size] = -np.inf
            self._columns[redirect] = ids, numbers
        return self._columns[redirect]

    def of(self, rows: slice | torch.Tensor, device: torch.device) -> tuple[torch.Tensor, ...]:
        """What `_redirect` needs for some of the rows."""
        ids, numbers = self._part((self.ids, self._numbers), rows, device)
        width = ids.shape[1]
        from_, to_, temperature, inverse = torch.split(numbers, [width, width, 1, 1], 1)
        return ids, from_, to_, temperature, inverse

    def masks_of(self, rows: slice | torch.Tensor, device: torch.device) -> tuple[torch.Tensor, ...]:
        """What `_redirect_alike` needs for some of the rows."""
        (masks,) = self._part((self._masks,), rows, device)
        return masks[:, 0], masks[:, 1]

    @staticmethod
    def _part(arrays: Sequence[np.ndarray], rows: slice | torch.Tensor, device: torch.device) -> Iterator[torch.Tensor]:
        for array in arrays:
            whole = torch.from_numpy(array).to(device)
            yield whole[rows] if isinstance(rows, slice) else whole.index_select(0, rows)


def _redirect(scores: torch.Tensor, rows: tuple[torch.Tensor, ...]) -> None:
    ids, from_, to_, temperature, inverse = rows
    # The sum over the columns so far: whole at the receiving id's, and one kernel where logsumexp takes several.
    total = torch.logcumsumexp(torch.addcmul(from_, scores.gather(1, ids), inverse), 1)
    scores.scatter_(1, ids, torch.addcmul(to_, total, temperature))


def _redirect_alike(scores: torch.Tensor, kind: _Kind, masks: tuple[torch.Tensor, ...] | None) -> None:
    """The same where all redirections are one, column by column: half the cost, above all where nothing of it is in the
    processor's caches. `masks`: of the rows that have it, at temperature 1; None: all have."""
    (sources, target), temperature = kind
    into = scores.select(1, target)
    if temperature != 1.0:
        into.mul_(1 / temperature)
    for source in sources:
        from_ = scores.select(1, source)
        part = from_ if masks is None else from_ + masks[0]
        torch.logaddexp(into, part if temperature == 1.0 else part * (1 / temperature), out=into)
        if masks is None:
            from_.fill_(-torch.inf)
        else:
            from_.add_(masks[1])
    if temperature != 1.0:
        into.mul_(temperature)
