"""Figures with intervals, against numbers derived by hand or by enumeration."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.evaluation.scores import flat_score, length_score, pass_at_k, percentile, pooled_score, score, wilson


def test_wilson_at_the_edges() -> None:
    # With p = 0 the interval is [0, z^2 / (n + z^2)]: 3.8415 / 103.8415 for n = 100.
    low, high = wilson(0.0, 100)
    assert low == pytest.approx(0.0, abs=1e-12) and high == pytest.approx(3.841459 / 103.841459, rel=1e-4)
    low, high = wilson(1.0, 100)
    assert low == pytest.approx(1 - 3.841459 / 103.841459, rel=1e-4) and high == pytest.approx(1.0)
    assert wilson(0.3, 0) == (0.0, 1.0)


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(case: tuple[int, int, int]) -> None:
    n, right, k = case
    samples = [1] * right + [0] * (n - right)
    subsets = list(itertools.combinations(samples, k))
    assert pass_at_k(right, n, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_refuses_more_than_it_has() -> None:
    with pytest.raises(ValueError, match="pass@5"):
        pass_at_k(1, 4, 5)


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=3, max_size=3), min_size=1, max_size=40))
def test_score_lies_in_its_interval(groups: list[list[float]]) -> None:
    figure = score(groups)
    assert 0 <= figure["low"] <= figure["value"] + 1e-9 and figure["value"] <= figure["high"] + 1e-9 <= 1 + 2e-9
    assert figure["n"] == 3 * len(groups)


def test_samples_of_one_query_are_not_independent() -> None:
    alike = score([[1.0] * 10] * 5 + [[0.0] * 10] * 5)
    apart = flat_score([1.0, 0.0] * 50)
    assert alike["value"] == apart["value"] == 0.5
    # 100 observations each, but only 10 independent ones in the first.
    assert alike["high"] - alike["low"] > 2 * (apart["high"] - apart["low"])


def test_what_is_pooled_counts_alike_and_stays_dependent() -> None:
    """Ten dialogues of four turns, in each all right or all wrong: as certain as ten turns, not as forty."""
    whole = pooled_score([[1.0] * 4] * 5 + [[0.0] * 4] * 5)
    ten = flat_score([1.0, 0.0] * 5)
    assert whole["n"] == 40 and (whole["low"], whole["high"]) == pytest.approx((ten["low"], ten["high"]))
    # Groups of unequal size: the mean of all observations, not of the groups' means.
    assert pooled_score([[1.0], [0.0, 0.0, 0.0]])["value"] == 0.25
    # Single observations are those of `flat_score`.
    assert pooled_score([[1.0], [0.0], [1.0]]) == flat_score([1.0, 0.0, 1.0])
    assert pooled_score([[], []])["n"] == 0


def test_percentile_of_nothing() -> None:
    assert percentile([], 0.5) == 0.0
    assert percentile([3, 1, 2], 0.5) == 2.0


def test_a_mean_length_has_an_interval_over_queries() -> None:
    # Sums 4 and 12 about 2 * 4: (16 + 16) * 2 / 1 / 4^2 = 4, so the standard error is 2.
    length = length_score([[1, 3], [5, 7]])
    assert (length["mean"], length["n"], length["p50"], length["p95"]) == (4.0, 4, 5.0, 7.0)
    assert length["low"] == pytest.approx(4 - 1.959964 * 2) and length["high"] == pytest.approx(4 + 1.959964 * 2)
    assert length_score([[0, 0], [0, 6]])["low"] == 0.0  # no length is below nothing
    one, none = length_score([[2, 9]]), length_score([[]])
    assert (one["low"], one["high"]) == (2.0, 9.0) and none["n"] == 0
