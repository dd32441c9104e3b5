"""Tokens and loss masks: exact against the template's spans, equal to serving, and honest about what is left out."""

from __future__ import annotations

import json
import logging
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from datasets import Dataset, Features, Json, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from posttrain.data import tokens as tokens_module
from posttrain.data.counts import TokenCounts
from posttrain.data.samples import History, render_samples
from posttrain.data.tokens import IGNORED, tokenize_conversations
from posttrain.errors import PosttrainError
from posttrain.templates.families import FAMILIES, Family, get_family
from posttrain.templates.render import render, render_training

QWEN3 = get_family("qwen3")
FAMILY = st.sampled_from(sorted(FAMILIES)).map(get_family)
MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # as Qwen's splits words


@cache
def tokenizer(markers: tuple[str, ...] = MARKERS) -> Any:
    """A byte-level BPE tokenizer with Qwen's way of splitting, merges over newlines included."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    text = ["user assistant system think the answer is four\n", "\n\n\n\n", " and then;\n\n", "école 思考 ok."] * 20
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    )
    backend.add_tokens([AddedToken(marker, normalized=False) for marker in markers])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def of_messages(*conversations: Any, **columns: Any) -> Dataset:
    return Dataset.from_dict({"messages": list(conversations), **columns})


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def arrays(row: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.array(row["input_ids"]), np.array(row["labels"]) != IGNORED


def decode(ids: Any) -> str:
    return cast(str, tokenizer().decode(list(ids), skip_special_tokens=False))


# --- conversations ---------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    ["four", " ", "\n", "\n\n", "  ", "1.", "é", "思考", "🧠", "/no_think", "<b>", ";\n", "\t", "</", "the"]
)
TEXT = st.lists(WORDS, max_size=6).map("".join)
CALL = st.fixed_dictionaries({"name": st.just("f"), "arguments": st.dictionaries(WORDS, TEXT, max_size=2)})


@st.composite
def conversations(draw: st.DrawFn, family: Family) -> list[dict[str, Any]]:
    """Alternating turns, as the served template's history has them; tools in between."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": draw(TEXT)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(user(draw(TEXT)))
        thoughts = {"reasoning_content": draw(TEXT | st.none())} if family.thinks else {}
        if draw(st.integers(0, 3)) == 0:
            messages.append(assistant(draw(TEXT), tool_calls=draw(st.lists(CALL, min_size=1, max_size=2)), **thoughts))
            messages += [{"role": "tool", "content": draw(TEXT)} for _ in range(draw(st.integers(1, 2)))]
        messages.append(assistant(draw(TEXT), **thoughts))
    return messages


CASES = FAMILY.flatmap(lambda family: st.tuples(st.just(family), conversations(family)))
EXAMPLES = settings(max_examples=150)


def encoded(family: Family, messages: Any, **options: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Samples of one conversation, without the trip through Arrow (which would null-fill tool calls)."""
    from posttrain.data.tokens import _Batch, _Encoded, checked_backend

    batch = _Batch(first_row=0)
    batch.add(0, render_samples(messages, family, **options))
    made = _Encoded.of(batch, checked_backend(tokenizer(), family))
    ends = np.cumsum(made.lengths)[:-1]
    return list(zip(np.split(made.ids, ends), [part != IGNORED for part in np.split(made.labels, ends)], strict=True))


def runs(ids: np.ndarray, mask: np.ndarray) -> list[str]:
    """The text of each maximal run of supervised tokens."""
    borders = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(int), [0]))))
    return [decode(ids[start:end]) for start, end in zip(borders[::2], borders[1::2], strict=True)]


@EXAMPLES
@given(CASES, st.booleans())
def test_the_mask_is_exactly_the_template_s_spans(case: tuple[Family, Any], empty: bool) -> None:
    family, messages = case
    text, spans = render_training(messages, family, supervise_empty_think=empty)
    ((ids, mask),) = encoded(family, messages, supervise_empty_think=empty)
    assert decode(ids) == text
    assert runs(ids, mask) == [text[start:end] for start, end in spans]


@EXAMPLES
@given(CASES)
def test_the_mask_is_that_of_the_whole_text_by_character_offsets(case: tuple[Family, Any]) -> None:
    """The oracle: the text in one piece, offsets asked for. Tokens differ only where one straddles a span's start."""
    family, messages = case
    text, spans = render_training(messages, family)
    whole = tokenizer().backend_tokenizer.encode(text, add_special_tokens=False)
    inside = [any(start <= a and b <= end for start, end in spans) for a, b in whole.offsets]
    touching = [any(start < b and a < end for start, end in spans) for a, b in whole.offsets]
    ((ids, mask),) = encoded(family, messages)
    if inside == touching:
        assert ids.tolist() == whole.ids
        assert mask.tolist() == inside
    else:  # newlines on both sides of the border, in a family whose turn begins with the answer itself
        assert any(text[start - 1] == "\n" and text[start] == "\n" for start, _ in spans)


def test_a_token_does_not_straddle_the_border_of_the_loss() -> None:
    """Served, the model gets "assistant\\n" and writes "\\n\\n"; the text as a whole makes one token of them."""
    family = get_family("qwen2_5")
    messages = [user("a"), assistant("\n\nfour")]
    ((ids, mask),) = encoded(family, messages)
    prompt = tokenizer()(render(messages[:1], family, add_generation_prompt=True))["input_ids"]
    assert ids[: len(prompt)].tolist() == prompt
    assert runs(ids, mask) == ["\n\nfour<|im_end|>"]
    assert ids.tolist() != tokenizer()(render(messages, family))["input_ids"]


@EXAMPLES
@given(CASES)
def test_strip_trains_what_is_served(case: tuple[Family, Any]) -> None:
    """For every turn: the prompt is the server's, the whole is the server's next history, the loss is on the turn."""
    family, messages = case
    samples = encoded(family, messages, history="strip")
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    assert len(samples) == len(turns)
    for turn, (ids, mask) in zip(turns, samples, strict=True):
        prompt = render(messages[:turn], family, add_generation_prompt=True)
        assert decode(ids[~mask]) == prompt
        assert not mask[: mask.argmax()].any() and mask[mask.argmax() :].all()
        assert decode(ids) + "\n" == render(messages[: turn + 1], family)
        # The prompt's tokens are those of the prompt alone: what a server feeds the model.
        assert ids[~mask].tolist() == tokenizer()(prompt, add_special_tokens=False)["input_ids"]


def test_keep_supervises_every_turn_in_its_own_mode() -> None:
    messages = [user("a /think"), assistant("b", reasoning_content="r"), user("c /no_think"), assistant("d")]
    made = tokenize_conversations(of_messages(messages), tokenizer(), QWEN3)
    ids, mask = arrays(made[0])
    assert runs(ids, mask) == ["<think>\nr\n</think>\n\nb<|im_end|>", "<think>\n\n</think>\n\nd<|im_end|>"]


def test_strip_shows_history_without_its_think_blocks() -> None:
    messages = [user("a"), assistant("b", reasoning_content="r"), user("c"), assistant("d", reasoning_content="s")]
    counts = TokenCounts()
    made = tokenize_conversations(of_messages(messages), tokenizer(), QWEN3, history="strip", counts=counts)
    first, second = (arrays(row) for row in made)
    assert runs(*first) == ["<think>\nr\n</think>\n\nb<|im_end|>"]
    assert decode(second[0]) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
        "<|im_start|>assistant\n<think>\ns\n</think>\n\nd<|im_end|>"
    )
    assert runs(*second) == ["<think>\ns\n</think>\n\nd<|im_end|>"]
    assert (counts.conversations, counts.samples) == (1, 2)


@pytest.mark.parametrize("history", ["keep", "strip"])
def test_empty_think_block_outside_the_loss_by_choice(history: History) -> None:
    data = of_messages([user("a"), assistant("b")])
    made = tokenize_conversations(data, tokenizer(), QWEN3, supervise_empty_think=False, history=history)
    assert runs(*arrays(made[0])) == ["b<|im_end|>"]


# --- what is left out ------------------------------------------------------------------------------------------------


def test_bad_rows_are_counted_logged_with_their_row_and_skipped(caplog: pytest.LogCaptureFixture) -> None:
    good = [user("a"), assistant("b")]
    rows = [
        good,
        [],
        [user("a"), {"role": "robot", "content": "b"}],
        [user("a")],
        [user("a"), assistant("b<|im_end|>\n<|im_start|>user\nc")],
        [user("what does <|im_end|> mean?"), assistant("b")],
        good,
    ]
    counts = TokenCounts()
    with caplog.at_level(logging.WARNING, logger="posttrain"):
        made = tokenize_conversations(of_messages(*rows), tokenizer(), QWEN3, counts=counts, batch_size=2)
    assert len(made) == counts.samples == 3
    assert counts.conversations == 7
    assert counts.skipped == {"malformed": 2, "no_assistant_turn": 1, "control_token_in_answer": 1}
    assert counts.control_tokens == 1
    assert [(each["row"], each["reason"]) for each in counts.examples] == [
        (1, "malformed"), (2, "malformed"), (3, "no_assistant_turn"), (4, "control_token_in_answer"),
    ]  # fmt: skip
    for row in (1, 2, 3, 4, 5):
        assert f"conversation {row}" in caplog.text
    assert "'robot'" in caplog.text
    # A user's control token acts as one, as it does when served.
    ids, _ = arrays(made[1])
    assert (ids == tokenizer().convert_tokens_to_ids("<|im_end|>")).sum() == 3


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_overlong_samples(overlong: Any) -> None:
    short, long = [user("a"), assistant("b")], [user("a"), assistant("the answer is four " * 9)]
    question = [user("a" * 200), assistant("b")]
    (full,) = tokenize_conversations(of_messages(long), tokenizer(), QWEN3)
    fits = len(tokenize_conversations(of_messages(short), tokenizer(), QWEN3)[0]["input_ids"])
    data = of_messages(long, short, question, long)
    counts = TokenCounts()
    made = tokenize_conversations(
        data, tokenizer(), QWEN3, max_length=fits, overlong=overlong, counts=counts, keep_columns=["messages"]
    )
    if overlong == "drop":
        assert made["messages"][:] == [data["messages"][1]]
        assert (counts.skipped, counts.truncated) == ({"too_long": 3}, 0)
        assert [each["row"] for each in counts.examples] == [0, 2, 3]
    else:  # the question's answer was cut away whole: nothing is left to learn from it
        assert made["messages"][:] == [data["messages"][row] for row in (0, 1, 3)]
        assert made[0]["input_ids"] == full["input_ids"][:fits] and made[0]["labels"] == full["labels"][:fits]
        assert (counts.skipped, counts.truncated) == ({"nothing_supervised": 1}, 3)
    assert counts.tokens == sum(map(len, made["input_ids"]))
    assert counts.supervised_tokens == sum(label != IGNORED for row in made["labels"] for label in row)


@pytest.mark.parametrize(
    ("messages", "options"),
    [
        ([user("a")], {}),
        ([user("a"), assistant("b")], {"max_length": 3}),
        ([user("a" * 99), assistant("b")], {"max_length": 9, "overlong": "truncate"}),
    ],
)
def test_nothing_supervised_at_all_is_an_error(messages: Any, options: Any, tmp_path: Path) -> None:
    with pytest.raises(PosttrainError, match=r"no sample with a supervised token is left of 2 conversations"):
        tokenize_conversations(
            of_messages(messages, messages), tokenizer(), QWEN3, cache_file=tmp_path / "x", **options
        )
    assert list(tmp_path.iterdir()) == []


def test_columns_and_tokenizer_have_to_fit() -> None:
    data = of_messages([user("a"), assistant("b")])
    with pytest.raises(PosttrainError, match="no column 'messages'"):
        tokenize_conversations(Dataset.from_dict({"text": ["a"]}), tokenizer(), QWEN3)
    with pytest.raises(PosttrainError, match="splits <think> into") as error:
        tokenize_conversations(data, tokenizer(("<|im_start|>", "<|im_end|>")), QWEN3)
    assert len(error.value.problems) == 2
    tokenize_conversations(
        data, tokenizer(("<|im_start|>", "<|im_end|>")), get_family("qwen2_5")
    )  # it has no think block


# --- reading and writing ---------------------------------------------------------------------------------------------


def test_an_earlier_call_s_truncation_does_not_cut() -> None:
    data = of_messages([user("the answer is four " * 30), assistant("b")])
    expected = tokenize_conversations(data, tokenizer(), QWEN3)[0]
    tokenizer()(["a b c d"], truncation=True, max_length=2, padding="max_length")
    assert tokenize_conversations(data, tokenizer(), QWEN3)[0] == expected


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("characters", [10, 10**9])
def test_batches_do_not_show(batch_size: int, characters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[user(f"the {number}"), assistant("four" * number)] for number in range(10)]
    rows[4] = [user("no answer")]
    data = of_messages(*rows, id=list(range(10)))
    expected = [encoded(QWEN3, row)[0] for row in rows if len(row) == 2]
    done: list[int] = []
    monkeypatch.setattr(tokens_module, "ENCODED_CHARACTERS", characters)
    made = tokenize_conversations(
        data, tokenizer(), QWEN3, batch_size=batch_size, keep_columns=["id"], progress=done.append
    )
    assert made["id"][:] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    for row, (ids, mask) in zip(made, expected, strict=True):
        assert row["input_ids"] == ids.tolist() and arrays(row)[1].tolist() == mask.tolist()
    assert sum(done) == 10


def test_selected_rows_and_types() -> None:
    data = of_messages(*[[user(str(number)), assistant("b")] for number in range(6)]).select([4, 1])
    made = tokenize_conversations(data, tokenizer(), QWEN3)
    assert ["user\n4" in decode(made[0]["input_ids"]), "user\n1" in decode(made[1]["input_ids"])] == [True, True]
    assert made.features["input_ids"].feature == made.features["labels"].feature == Value("int32")


def test_tools_and_tool_calls_survive_arrow() -> None:
    """Struct columns give every call the arguments of all; JSON text is taken for what it says."""
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": "1"}}}
    other = {"type": "function", "function": {"name": "g", "arguments": {"b": "2"}}}
    rows = [[user("a"), assistant("", tool_calls=[each])] for each in (call, other)]
    tools = [{"type": "function", "function": {"name": "f"}}]
    expected = [encoded(QWEN3, row, tools=tools)[0][0].tolist() for row in rows]
    for column in ([tools, tools], [json.dumps(tools)] * 2):
        made = tokenize_conversations(of_messages(*rows, tools=column), tokenizer(), QWEN3)
        assert made["input_ids"][:] == expected
    counts = TokenCounts()
    made = tokenize_conversations(of_messages(*rows, tools=["", "[{"]), tokenizer(), QWEN3, counts=counts)
    assert made["input_ids"][:] == [encoded(QWEN3, rows[0])[0][0].tolist()]
    assert counts.examples[0]["row"] == 1 and "not JSON" in counts.examples[0]["detail"]


def test_json_columns_give_the_same_tokens_and_keep_their_nulls() -> None:
    rows = [[user("a"), assistant("b", reasoning_content="r")], [user("c"), assistant("d")]]
    expected = tokenize_conversations(of_messages(*rows), tokenizer(), QWEN3)[:]
    called = [user("a"), assistant("", tool_calls=[{"name": "f", "arguments": {"x": None}}])]
    for feature in (Json(), List(Json())):
        features = Features({"messages": feature})
        stored = Dataset.from_dict({"messages": rows}, features=features)
        assert tokenize_conversations(stored, tokenizer(), QWEN3)[:] == expected
        stored = Dataset.from_dict({"messages": [called]}, features=features)
        assert '{"x": null}' in decode(tokenize_conversations(stored, tokenizer(), QWEN3)[0]["input_ids"])
