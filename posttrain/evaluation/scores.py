"""Figures with their counts and 95 % confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

Z = 1.959964  # two-sided 95 %


class Score(TypedDict):
    """A proportion or a mean in [0, 1], its 95 % interval, and how many observations it rests on."""

    value: float
    low: float
    high: float
    n: int


def wilson(value: float, n: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927): honest at 0, at 1 and at small n."""
    if n <= 0:
        return 0.0, 1.0
    centre = (value + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(value * (1 - value) / n + Z * Z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def score(groups: Sequence[Sequence[float]]) -> Score:
    """The mean over groups of observations in [0, 1], as the samples of one query.

    Samples of one query resemble each other, so the interval rests on the effective number of observations: n over the
    design effect, which lies between the number of groups and the number of observations (Kish 1965).
    """
    means = [sum(group) / len(group) for group in groups if group]
    n = sum(len(group) for group in groups)
    if not means:
        return Score(value=0.0, low=0.0, high=1.0, n=0)
    value = sum(means) / len(means)
    spread = sum((mean - value) ** 2 for mean in means) / max(1, len(means) - 1) / len(means)
    effective = value * (1 - value) / spread if spread > 0 else float(len(means))
    low, high = wilson(value, min(float(n), max(float(len(means)), effective)))
    return Score(value=value, low=low, high=high, n=n)


def flat_score(values: Sequence[float]) -> Score:
    """The mean of independent observations in [0, 1]."""
    return score([[value] for value in values])


def pooled_score(groups: Sequence[Sequence[float]]) -> Score:
    """The mean of all observations in [0, 1], each counting alike however large its group, as the turns of a dialogue.

    The interval rests on the effective number of observations, as in `score`; the variance is that of a ratio of sums
    over groups (Cochran 1977, section 6.3).
    """
    groups = [group for group in groups if group]
    n, count = sum(map(len, groups)), len(groups)
    if not n:
        return Score(value=0.0, low=0.0, high=1.0, n=0)
    value = sum(map(sum, groups)) / n
    spread = sum((sum(group) - value * len(group)) ** 2 for group in groups) * count / max(1, count - 1) / n**2
    effective = value * (1 - value) / spread if spread > 0 else float(count)
    low, high = wilson(value, min(float(n), max(float(count), effective)))
    return Score(value=value, low=low, high=high, n=n)


class Length(TypedDict):
    """A mean in tokens, its 95 % interval, the median and the 95th percentile, and how many observations there are."""

    mean: float
    low: float
    high: float
    p50: float
    p95: float
    n: int


def length_score(groups: Sequence[Sequence[float]]) -> Length:
    """The mean of all observations, as lengths of the samples of each query.

    The interval is normal, by the variance of a ratio of sums over groups (Cochran 1977, section 6.3): samples of one
    query resemble each other. One group alone tells no variance: the interval is then all that was seen.
    """
    groups = [group for group in groups if group]
    values = [value for group in groups for value in group]
    n, count = len(values), len(groups)
    if not n:
        return Length(mean=0.0, low=0.0, high=0.0, p50=0.0, p95=0.0, n=0)
    mean = sum(values) / n
    low, high = min(values), max(values)
    if count > 1:
        spread = sum((sum(group) - mean * len(group)) ** 2 for group in groups) * count / (count - 1) / n**2
        low, high = max(0.0, mean - Z * math.sqrt(spread)), mean + Z * math.sqrt(spread)
    return Length(
        mean=mean, low=float(low), high=float(high), p50=percentile(values, 0.5), p95=percentile(values, 0.95), n=n
    )


def pass_at_k(right: int, n: int, k: int) -> float:
    """The chance that at least one of k samples is right, estimated without bias from n (Chen et al. 2021, eq. 1).

    Raises:
        ValueError: k is not in 1..n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} cannot be estimated from {n} samples")
    return 1.0 - math.prod((n - right - i) / (n - i) for i in range(k))


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; 0.0 of nothing."""
    ordered = sorted(values)
    return float(ordered[min(len(ordered) - 1, int(share * len(ordered)))]) if ordered else 0.0
