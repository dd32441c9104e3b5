"""The ids of a budget: stop texts as requests give them, continuations, and where sentences end."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from posttrain.budget.request import BudgetRequest
from posttrain.budget.tokens import boundaries, budget_rule, budget_rules
from posttrain.errors import PosttrainError
from posttrain.templates.families import get_family

QWEN3 = get_family("qwen3")
MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
TEXT = [
    "So 3.14 is 5! Wait. Wait. Is it?\n\n",
    "好。好。再见！再见！\n",
    'He said "yes." Then... (done.)\n\n',
    "été 7.\n",
] * 30


@cache
def tokenizer() -> Any:
    """Byte-level BPE, with merges across and inside of characters."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    )
    backend.add_tokens([AddedToken(marker, normalized=False) for marker in MARKERS])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def said(stop_text: str | None) -> str:
    return str(tokenizer().decode(list(budget_rule(tokenizer(), QWEN3, stop_text=stop_text).stop_ids)))


def test_a_requests_stop_text_gets_what_it_lacks() -> None:
    assert said(None) == QWEN3.stop_thinking
    assert said("") == "</think>"
    assert said("Enough.") == "Enough.\n</think>\n\n"
    assert said("Enough.\n") == "Enough.\n</think>\n\n"
    assert said("Enough.</think>So") == "Enough.</think>So"


@pytest.mark.parametrize("marker", ["<think>", "<|im_end|>", "<|im_start|>", "<tool_call>", "</tool_call>"])
def test_a_stop_text_says_no_other_marker(marker: str) -> None:
    with pytest.raises(PosttrainError, match="contains"):
        budget_rule(tokenizer(), QWEN3, stop_text=f"Enough.{marker}")


def test_a_stop_text_closes_once() -> None:
    with pytest.raises(PosttrainError, match="closes thinking twice"):
        budget_rule(tokenizer(), QWEN3, stop_text="</think></think>")


def test_every_request_has_its_rule() -> None:
    rules = budget_rules(tokenizer(), QWEN3, [BudgetRequest(3), BudgetRequest(stop_text=""), BudgetRequest()])
    assert rules[0] is rules[2]
    assert rules[1].stop_ids == rules[1].close_ids


def test_continuation_and_tool_calls_are_in_the_rule() -> None:
    rule = budget_rule(tokenizer(), QWEN3)
    assert tokenizer().decode(list(rule.continue_ids)) == "Wait"
    assert [tokenizer().decode(list(ids)) for ids in (rule.tool_open_ids, rule.tool_close_ids)] == [
        QWEN3.tool_call_open,
        QWEN3.tool_call_close,
    ]
    dumb = Tokenizer(models.BPE(vocab={"?": 0}, merges=[], unk_token="?"))
    dumb.add_tokens([AddedToken(marker, normalized=False) for marker in ("<|im_end|>", "<think>", "</think>")])
    poor = budget_rule(PreTrainedTokenizerFast(tokenizer_object=dumb, unk_token="?"), QWEN3, stop_text="")
    assert (poor.continue_ids, poor.tool_open_ids) == ((), ())  # it cannot write them
    assert poor.eos_ids == {dumb.token_to_id("<|im_end|>")}


def test_boundaries_end_sentences_or_lines_and_never_a_part_of_a_character() -> None:
    found = boundaries(tokenizer())
    texts = {token_id: tokenizer().decode([token_id]) for token_id in tokenizer().get_vocab().values()}
    for token_id, text in texts.items():
        bare = text.rstrip(" \t")
        ends = bare.endswith("\n") or bare.rstrip("\"'”)*").endswith((".", "!", "?", "。", "！"))
        ends &= not re.search(r"[^a-z0-9][a-z]\.$", bare)
        assert (token_id in found.boundary_ids) == ends, text
        assert token_id not in found.boundary_ids or not text.endswith("\ufffd")
        assert (token_id in found.period_ids) == (text.strip(" \t") in (".", "!"))
    assert any(text.endswith("\ufffd") for text in texts.values())
    assert {texts[token_id] for token_id in found.unfinished_ids} >= set("0123456789")


@pytest.mark.parametrize(
    ("pieces", "ends"),
    [
        ((" pi", "."), True), ((" e", ".g", "."), False), ((" vs", "."), False), (("3", "."), False),
        ((" it", "!"), True),
        ((" n", "!"), False), (("p", "i", "."), True), ((" Fig", "."), False), ((" No", "."), True),
    ],
)  # fmt: skip
def test_an_abbreviation_ends_no_sentence(pieces: tuple[str, ...], ends: bool) -> None:
    backend = Tokenizer(models.WordLevel({piece: at for at, piece in enumerate(pieces)}, unk_token=pieces[0]))
    found = boundaries(PreTrainedTokenizerFast(tokenizer_object=backend))
    before, last = len(pieces) - 2, len(pieces) - 1
    unfinished = last in found.period_ids and before in found.unfinished_ids
    assert (last in found.boundary_ids and not unfinished) == ends


def test_an_abbreviation_that_is_one_token_ends_no_sentence() -> None:
    texts = (" e.g.", " vs.", ".e.", " Dr.", " it.", " there.", ").")
    backend = Tokenizer(models.WordLevel({text: at for at, text in enumerate(texts)}, unk_token=" it."))
    found = boundaries(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert found.boundary_ids == {4, 5, 6}


def test_a_character_split_over_ids_ends_a_sentence_at_none_of_its_parts() -> None:
    backend = Tokenizer(models.BPE(vocab={symbol: at for at, symbol in enumerate("ãĢĤa")}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    split = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert split.decode(split.encode("。")) == "。"
    assert boundaries(split).boundary_ids == frozenset()


def test_tokens_added_later_are_seen() -> None:
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer().backend_tokenizer.to_str()))
    before = boundaries(other)
    assert boundaries(other) is before
    other.add_tokens(["<end>."])
    assert boundaries(other).boundary_ids == before.boundary_ids | {other.convert_tokens_to_ids("<end>.")}


def test_a_family_that_does_not_think_is_told() -> None:
    with pytest.raises(PosttrainError, match="does not think"):
        budget_rule(tokenizer(), replace(QWEN3, stop_thinking="", kind="instruct"))


def test_a_large_vocabulary_is_read_in_half_a_second() -> None:
    """As many ids as Qwen3's tokenizer has, and as many among them that end a sentence or line."""
    size, share = 151_669, 58
    vocabulary = {f"w{number}{'x.' if number % share == 0 else 'x'}": number for number in range(size)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.decoder = decoders.ByteLevel()
    large = PreTrainedTokenizerFast(tokenizer_object=backend)
    began = time.process_time()
    found = boundaries(large)
    assert time.process_time() - began < 0.5
    assert found.boundary_ids == frozenset(range(0, size, share))
    began = time.process_time()
    assert boundaries(large) is found
    assert time.process_time() - began < 0.01
