"""Decontamination: every method finds what it should, and the fast search misses nothing."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.decontamination import MIN_LCS, MIN_SHARE, Match, SimilarityIndex, decontaminate, tokens_of
from posttrain.errors import PosttrainError
from posttrain.tasks.arithmetic import Arithmetic
from posttrain.tasks.task import make_query, text_key

WORDS = [
    *("a", "farmer", "has", "three", "red", "barns", "and", "in", "each", "of"),
    *("them", "stand", "seven", "old", "horses", "that", "eat", "hay", "all", "day"),
]


def query(text: str, key: str = "") -> dict[str, Any]:
    return make_query(id=text[:8], prompt=text, answer="1", task="number", domain="d", key=key or text_key(text))


def data(*texts: str) -> Dataset:
    return Dataset.from_list([query(text) for text in texts])


def lcs_by_table(left: list[str], right: list[str]) -> int:
    """The textbook's table, to hold the bit-parallel one to."""
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_equal_keys_are_dropped_by_every_method() -> None:
    train = Dataset.from_list([query("one", "k1"), query("two", "k2")])
    for method in ("key", "text", "lcs"):
        kept, report = decontaminate(train, [query("something else", "k2")], method=method)
        assert kept["key"][:] == ["k1"] and report.dropped == {"key": 1} and report.kept == 1
    kept, report = decontaminate(train, [query("other", "k2")], method="off")
    assert len(kept) == 2 and report.dropped.total() == 0


def test_the_same_text_is_dropped_whatever_its_case_and_spacing() -> None:
    reserved = [query("What is  two plus two?", "r")]
    train = Dataset.from_list([query("what is TWO plus two? ", "t"), query("What is two plus three?", "u")])
    kept, report = decontaminate(train, reserved, method="text")
    assert kept["key"][:] == ["u"] and report.dropped == {"text": 1}
    assert len(decontaminate(train, reserved, method="key")[0]) == 2


def test_qwen2_5_s_rule_at_its_edges() -> None:
    """A text of 20 words. 13 in common are 0.65 of it: dropped. 12 are too few, though 0.6."""
    reserved = [query(" ".join(WORDS[:20]))]
    own = [f"own{i}" for i in range(20)]
    for common, dropped in ((13, True), (12, False)):
        text = " ".join([*WORDS[:common], *own[: 20 - common]])
        kept, report = decontaminate(data(text), reserved)
        assert (len(kept) == 0) is dropped
        if dropped:
            example = report.examples[0]
            assert (example.method, example.lcs, example.share) == ("lcs", 13, 0.65)
            assert example.reserved_text == reserved[0]["prompt"][0]["content"] and example.text == text


def test_the_share_is_of_the_shorter_text() -> None:
    """13 common tokens are 0.59 of the shorter of 22 and 40 tokens, and 0.62 of 21."""
    base = [f"w{i}" for i in range(13)]
    long = " ".join([*base, *(f"l{i}" for i in range(27))])
    for length, dropped in ((22, False), (21, True)):
        short = " ".join([*base, *(f"s{i}" for i in range(length - 13))])
        for train, reserved in ((short, long), (long, short)):
            assert (len(decontaminate(data(train), [query(reserved)])[0]) == 0) is dropped


def test_a_subsequence_need_not_be_contiguous_but_must_be_in_order() -> None:
    reserved = [query(" ".join(WORDS))]
    scattered = " ".join(word for pair in zip(WORDS, "x" * 20, strict=True) for word in pair)
    assert len(decontaminate(data(scattered), reserved)[0]) == 0
    assert len(decontaminate(data(" ".join(reversed(WORDS))), reserved)[0]) == 1


def test_tokens_are_words_and_single_characters_where_no_spaces_are() -> None:
    assert tokens_of("It's 3.5 \uff21\uff22 caf\u00e9_x") == ["it", "s", "3", "5", "ab", "caf\u00e9_x"]
    assert tokens_of("\u5c0f\u660e\u67093\u4e2a") == ["\u5c0f", "\u660e", "\u6709", "3", "\u4e2a"]
    assert tokens_of("\u3072\u3089 \uc548\ub155 \u041f\u0440\u0438\u0432\u0435\u0442") == [
        "\u3072",
        "\u3089",
        "\uc548\ub155",
        "\u043f\u0440\u0438\u0432\u0435\u0442",
    ]


def test_conversations_are_compared_by_all_their_user_turns() -> None:
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": " ".join(WORDS)},
        {"role": "user", "content": "bye"},
    ]
    train = Dataset.from_list([{"id": "c", "key": "k", "messages": messages}])
    assert len(decontaminate(train, [query(" ".join(WORDS))])[0]) == 1  # the assistant's text does not count
    messages[2]["content"] = " ".join(WORDS)
    train = Dataset.from_list([{"id": "c", "key": "k", "messages": messages}])
    assert len(decontaminate(train, [query(" ".join(WORDS))])[0]) == 0


def test_the_demo_goes_by_key_and_lcs_would_warn(caplog: pytest.LogCaptureFixture) -> None:
    made = Dataset.from_list(list(Arithmetic().queries(300, 0, steps=[8, 8])))
    reserved = list(Arithmetic().queries(20, 1, steps=[8, 8]))
    kept, _ = decontaminate(made, reserved, method="key")
    assert len(kept) == 300
    template = "{} apples lie in a big round basket and somebody takes {} of them away so how many apples are left now"
    train = data(*(template.format(i, i + 1) for i in range(10)))
    kept, report = decontaminate(train, [query(template.format(99, 98))])
    assert len(kept) == 0 and report.dropped == {"lcs": 10} and "`decontaminate: key`" in caplog.text


def test_the_report_is_json_and_its_examples_are_few() -> None:
    _, report = decontaminate(data(*["same words here"] * 50), [query("same words here")], method="text")
    written = json.loads(json.dumps(report.to_dict()))
    assert written["dropped"] == {"key": 50} and written["kept"] == 0 and len(written["examples"]) == 20
    assert written["checked"] == 50 and written["examples"][0]["reserved_text"] == "same words here"


def test_an_unknown_method_and_unfit_data_are_refused() -> None:
    with pytest.raises(PosttrainError, match="there are off, key, text, lcs"):
        decontaminate(data("a"), [query("b")], method="bm25")  # type: ignore[arg-type]
    with pytest.raises(PosttrainError, match="neither 'prompt' nor 'messages'"):
        decontaminate(Dataset.from_dict({"x": [1]}), [query("b")])


def test_an_index_can_be_asked_for_any_text() -> None:
    index = SimilarityIndex([" ".join(WORDS), "short"])
    assert index.find(" ".join(WORDS[1:])) == Match(0, "lcs", 19, 1.0)
    assert index.find("SHORT") == Match(1, "text") and index.find("nothing alike") is None
    assert SimilarityIndex([]).find("x") is None and SimilarityIndex([""]).find("") is None


words = st.lists(st.sampled_from([f"w{i}" for i in range(8)]), max_size=40)


@settings(max_examples=150)
@given(st.lists(words, min_size=1, max_size=4), words)
def test_the_search_finds_exactly_what_the_rule_says(reserved: list[list[str]], tokens: list[str]) -> None:
    index = SimilarityIndex([" ".join(text) for text in reserved], method="lcs")
    found = index._find_subsequence(tokens)
    matching = {}
    for i, other in enumerate(reserved):
        length, shorter = lcs_by_table(tokens, other), min(len(tokens), len(other))
        if length >= MIN_LCS and length >= math.ceil(MIN_SHARE * shorter - 1e-9):
            matching[i] = length
    assert (found is None) == (not matching)
    if found:
        assert matching[found.reserved] == found.lcs


@settings(max_examples=40)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=30), st.lists(st.integers(0, 12), max_size=8))
def test_nothing_reserved_is_left_and_nothing_else_goes(train: list[int], reserved: list[int]) -> None:
    made = data(*(f"number {n}" for n in train))
    kept, report = decontaminate(made, [query(f"number {n}") for n in reserved], method="lcs")
    assert kept["id"][:] == [f"number {n}"[:8] for n in train if n not in reserved]
    assert len(kept) == report.kept and report.checked == len(train)


def test_many_rows_against_400_take_seconds() -> None:
    """10,000 rows here; a hundred thousand take ten times as long."""
    import random

    rng = random.Random(0)
    vocabulary = [f"w{int(rng.paretovariate(0.7))}" for _ in range(20_000)]  # a few words are very frequent
    texts = [" ".join(rng.choice(vocabulary) for _ in range(rng.randint(20, 80))) for _ in range(10_400)]
    index = SimilarityIndex(texts[:400])
    start = time.process_time()
    found = sum(index.find(text) is not None for text in texts[400:])
    assert time.process_time() - start < 15, found
