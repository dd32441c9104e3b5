"""How much of each source goes into the mix."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence


def amounts(available: Sequence[int], weights: Sequence[float | None], size: int | None) -> list[int]:
    """Samples taken of each source.

    Without weights every source counts by its own size. Without `size`: all of them once; with weights, the largest mix
    in those shares that repeats nothing. With `size`: that many in all, a source repeated where it is too small.
    """
    if size is None and all(weight is None for weight in weights):
        return list(available)
    given = [weight for weight in weights if weight is not None]
    # A source without a weight counts as the mean of those that have one; where none has, by its size.
    typical = sum(given) / len(given) if given else None
    filled = [weight or typical or float(n) for weight, n in zip(weights, available, strict=True)]
    shares = [weight / sum(filled) for weight in filled]
    if size is None:
        size = int(min(n / share for n, share in zip(available, shares, strict=True)) + 1e-9)
    # Largest remainders: the parts add up to the whole.
    exact = [share * size for share in shares]
    taken = [int(part) for part in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (taken[i] - exact[i], i))
    for i in by_remainder[: size - sum(taken)]:
        taken[i] += 1
    return taken


def draw(available: int, wanted: int, seed: int) -> array[int]:
    """Places of `wanted` samples of a source: each once before any twice, the rest drawn from the seed; in order."""
    rounds, rest = divmod(wanted, available)
    places = array("q", list(range(available)) * rounds)
    places.extend(random.Random(seed).sample(range(available), rest))
    return array("q", sorted(places))
