"""Mixing by weight, and reserving a validation set."""

from __future__ import annotations

import logging
import random
from collections import Counter
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.mixing import mix
from posttrain.data.reserve import reserve
from posttrain.errors import PosttrainError
from posttrain.tasks.arithmetic import Arithmetic

logging.getLogger("posttrain").setLevel(logging.INFO)


def rows(name: str, count: int) -> Dataset:
    return Dataset.from_dict({"name": [name] * count, "n": list(range(count))})


def keyed(keys: list[str], levels: list[int] | None = None) -> Dataset:
    columns: dict[str, list[Any]] = {"key": keys, "row": list(range(len(keys)))}
    return Dataset.from_dict(columns | ({"difficulty": levels} if levels else {}))


# --- mix


def test_weights_give_exact_shares() -> None:
    mixed, shares = mix({"a": rows("a", 300), "b": rows("b", 300)}, {"a": 3, "b": 1}, 100, 0)
    assert Counter(mixed["name"]) == {"a": 75, "b": 25}
    assert [(share.name, share.taken, share.exhausted) for share in shares] == [("a", 75, False), ("b", 25, False)]
    assert len({(row["name"], row["n"]) for row in mixed}) == 100  # no row twice


def test_sources_are_shuffled_into_each_other() -> None:
    mixed, _ = mix({"a": rows("a", 500), "b": rows("b", 500)}, None, None, 0)
    firsts = Counter(mixed["name"][:200])
    assert len(mixed) == 1000 and 60 < firsts["a"] < 140


def test_an_exhausted_source_repeats_every_row_as_often_as_the_others(caplog: pytest.LogCaptureFixture) -> None:
    mixed, shares = mix({"a": rows("a", 10), "b": rows("b", 100)}, {"a": 1, "b": 1}, 70, 0)
    times = Counter(row["n"] for row in mixed if row["name"] == "a")
    assert sum(times.values()) == 35 and set(times.values()) == {3, 4} and len(times) == 10
    assert shares[0].exhausted and shares[0].passes == 3.5 and not shares[1].exhausted
    assert "data a: 10 rows for 35 places: they repeat" in caplog.text


def test_or_the_mixture_stops_there_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    mixed, shares = mix({"a": rows("a", 10), "b": rows("b", 100)}, {"a": 1, "b": 3}, 70, 0, when_exhausted="stop")
    assert Counter(mixed["name"]) == {"a": 10, "b": 30} and shares[0].exhausted
    assert "only 10 rows: the mixture stops at 40 of 70" in caplog.text


def test_without_a_size_nothing_repeats() -> None:
    mixed, shares = mix({"a": rows("a", 10), "b": rows("b", 100)}, {"b": 2}, None, 0)  # a weighs 1
    assert Counter(mixed["name"]) == {"a": 10, "b": 20} and all(share.passes <= 1 for share in shares)


def test_a_source_gives_the_same_rows_whatever_it_is_mixed_with() -> None:
    alone = [row["n"] for row in mix({"a": rows("a", 50)}, None, 20, 7)[0]]
    together = mix({"a": rows("a", 50), "b": rows("b", 50)}, {"a": 1, "b": 1}, 40, 7)[0]
    assert [row["n"] for row in together if row["name"] == "a"] == alone


@pytest.mark.parametrize(
    ("datasets", "weights", "size", "said"),
    [
        ({}, None, 5, "nothing to mix"),
        ({"a": rows("a", 3)}, {"a": 0}, 5, "nothing to mix"),
        ({"a": rows("a", 3)}, {"a": -1}, 5, "from 0 up, not -1"),
        ({"a": rows("a", 3)}, {"b": 1}, 5, "no data set is called 'b'"),
        ({"a": rows("a", 3)}, None, 0, "at least one row"),
        ({"a": rows("a", 3), "b": keyed(["x"])}, None, 5, "their columns differ"),
        ({"a": rows("a", 3), "b": rows("b", 0)}, None, 5, "data 'b' has no row"),
    ],
)
def test_what_cannot_be_mixed(datasets: dict[str, Dataset], weights: dict[str, float], size: int, said: str) -> None:
    with pytest.raises(PosttrainError, match=said):
        mix(datasets, weights, size, 0)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.floats(0.01, 10)), min_size=1, max_size=4),
    st.integers(1, 80),
    st.integers(0, 5),
)
def test_mixtures_are_exact_fair_and_reproducible(sources: list[tuple[int, float]], size: int, seed: int) -> None:
    datasets = {f"s{i}": rows(f"s{i}", count) for i, (count, _) in enumerate(sources)}
    weights = {f"s{i}": weight for i, (_, weight) in enumerate(sources)}
    mixed, shares = mix(datasets, weights, size, seed)
    assert len(mixed) == size == sum(share.taken for share in shares)
    for share in shares:
        assert abs(share.taken - size * weights[share.name] / sum(weights.values())) < 1
        times = Counter(row["n"] for row in mixed if row["name"] == share.name)
        every = [times[n] for n in range(share.rows)]
        assert max(every) - min(every) <= 1
    again, _ = mix(datasets, weights, size, seed)
    assert again["n"][:] == mixed["n"][:] and again["name"][:] == mixed["name"][:]
    stopped, shares = mix(datasets, weights, size, seed, when_exhausted="stop")
    assert len(stopped) <= size and all(share.taken <= share.rows for share in shares)


# --- reserve


def test_equal_keys_stay_on_one_side_and_a_problem_is_reserved_once() -> None:
    train, reserved = reserve(keyed(["a", "b", "a", "c", "c", "d"]), 2, 0)
    assert len(reserved) == len(set(reserved["key"])) == 2
    assert not set(train["key"]) & set(reserved["key"])
    kept = Counter(train["key"])
    assert all(
        kept[key] == count for key, count in {"a": 2, "b": 1, "c": 2, "d": 1}.items() if key not in reserved["key"]
    )


def test_difficulties_have_equal_shares_as_far_as_they_go() -> None:
    levels = [1] * 100 + [2] * 10 + [3] * 3
    _, reserved = reserve(keyed([f"k{i}" for i in range(113)], levels), 31, 0)
    counts = Counter(reserved["difficulty"])
    assert counts[3] == 3 and counts[2] == 10 and counts[1] == 18


def test_the_demo_s_problems_are_disjoint_even_with_one_step() -> None:
    made = list(Arithmetic().queries(3000, 0, steps=[1, 3]))
    train, reserved = reserve(Dataset.from_list(made), 300, 0)
    assert Counter(reserved["difficulty"]) == {1: 100, 2: 100, 3: 100}
    stripped = [
        {"".join(word[-2:] for word in row["prompt"][0]["content"].split()[:-1]) for row in side}
        for side in (train, reserved)
    ]
    assert not stripped[0] & stripped[1]  # by operations and operands, read from the prompts themselves


def test_too_many_are_refused() -> None:
    with pytest.raises(PosttrainError, match="cannot reserve 3 problems: there are 2 different ones in 4 rows"):
        reserve(keyed(["a", "a", "b", "b"]), 3, 0)
    with pytest.raises(PosttrainError, match="without a column 'key'"):
        reserve(rows("a", 3), 1, 0)


def test_nothing_reserved_leaves_all() -> None:
    train, reserved = reserve(keyed(["a", "b"]), 0, 0)
    assert len(train) == 2 and len(reserved) == 0


def test_another_seed_reserves_others() -> None:
    data = keyed([f"k{i}" for i in range(200)])
    chosen = [set(reserve(data, 20, seed)[1]["key"]) for seed in (0, 1)]
    assert len(chosen[0] & chosen[1]) < 10


keys = st.lists(st.tuples(st.integers(0, 25), st.integers(0, 3)), min_size=1, max_size=50)


@settings(max_examples=80)
@given(keys, keys, st.integers(1, 12), st.integers(0, 3), st.randoms(use_true_random=False))
def test_appended_rows_never_move_a_problem_out_of_training(
    old: list[tuple[int, int]], new: list[tuple[int, int]], n: int, seed: int, rng: random.Random
) -> None:
    """A problem's level is fixed by its number here, as it is by its text in real data."""

    def data(pairs: list[tuple[int, int]]) -> Dataset:
        return keyed([f"k{number}" for number, _ in pairs], [number % 4 for number, _ in pairs])

    if n > len({number for number, _ in old}):
        with pytest.raises(PosttrainError):
            reserve(data(old), n, seed)
        return
    train, reserved = reserve(data(old), n, seed)
    assert len(reserved) == n and not set(train["key"]) & set(reserved["key"])
    assert set(train["key"]) | set(reserved["key"]) == {f"k{number}" for number, _ in old}
    shuffled = list(old)
    rng.shuffle(shuffled)
    assert set(reserve(data(shuffled), n, seed)[1]["key"]) == set(reserved["key"])
    _, later = reserve(data(old + new), n, seed)
    assert not set(later["key"]) & set(train["key"])
    if {number for number, _ in new} <= {number for number, _ in old}:
        assert set(later["key"]) == set(reserved["key"])
