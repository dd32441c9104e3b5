"""The preview: what is supervised is what is shown as supervised, with colours and without."""

from __future__ import annotations

import io
import re
from functools import cache
from typing import Any

import pytest
from datasets import Dataset
from rich.console import Console
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from posttrain.data.packing import pack
from posttrain.data.preview import RUN_CHARACTERS, print_preview
from posttrain.data.statistics import token_statistics
from posttrain.data.tokens import tokenize_conversations
from posttrain.errors import PosttrainError
from posttrain.templates.families import get_family

QWEN3 = get_family("qwen3")


@cache
def tokenizer() -> Any:
    """One token a byte, and the markers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    markers = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
    backend.add_tokens([AddedToken(marker, normalized=False) for marker in markers])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def conversation(question: str, answer: str, reasoning: str | None = None) -> list[dict[str, Any]]:
    turn = {"role": "assistant", "content": answer, "reasoning_content": reasoning}
    return [{"role": "user", "content": question}, turn]


def tokenized(*conversations: list[dict[str, Any]]) -> Dataset:
    return tokenize_conversations(Dataset.from_dict({"messages": list(conversations)}), tokenizer(), QWEN3)


def printed(data: Dataset, *, colour: bool = False, **options: Any) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=colour, color_system="standard" if colour else None, width=40)
    print_preview(data, tokenizer(), QWEN3, console=console, **options)
    return out.getvalue()


TWO = (conversation("hi [bold]", "yes", "why?\n"), conversation("ho /no_think", "no"))


def test_without_colours_the_loss_stands_between_marks() -> None:
    shown = printed(tokenized(*TWO))
    assert (
        "<|im_start|>user\nhi [bold]<|im_end|>\n<|im_start|>assistant\n⟦<think>\nwhy?\n</think>\n\nyes<|im_end|>⟧\n"
        in shown
    )
    assert re.findall("⟦(.*?)⟧", shown.split("── row 1")[1], re.DOTALL) == ["<think>\n\n</think>\n\nno<|im_end|>"]
    assert "\x1b" not in shown


def test_with_colours_the_same_text_in_colour() -> None:
    shown = printed(tokenized(*TWO), colour=True)
    green = re.findall("\x1b\\[32m(.*?)\x1b\\[0m", shown, re.DOTALL)  # rich colours each line by itself
    assert green == ["green", "<think>", "why?", "</think>", "yes<|im_end|>", "<think>", "</think>", "no<|im_end|>"]
    assert "⟦" not in shown


def test_counts_by_hand() -> None:
    data = tokenized(*TWO, *[conversation("x" * 10, "y")] * 18)
    lengths = [len(ids) for ids in data["input_ids"]]
    # <|im_start|>user\n + question + <|im_end|>\n<|im_start|>assistant\n: 1+5+q+2+1+10; then the block, 1+1; "\n": 1.
    assert lengths[:3] == [19 + 9 + (3 + 4 + 3) + 3 + 2, 19 + 12 + 6 + 2 + 2, 19 + 10 + 6 + 1 + 2]
    found = token_statistics(data, tokenizer(), QWEN3)
    assert (found.samples, found.tokens, found.longest, found.p50, found.p95) == (20, sum(lengths), 43, 38, 41)
    assert found.supervised_tokens == (10 + 3 + 1) + (6 + 2 + 1) + 18 * (6 + 1 + 1)
    assert (found.turns, found.empty_think, found.fill) == (20, 19, None)
    step = {"source": "math", "in": 20, "kept": 12, "dropped": 8, "why": {"too_long": 7, "empty": 1}}
    steps = [{**step, "step": name} for name in ("a", "b", "c", "d", "e", "f", "g")]
    funnel = {"skipped": {"too_long": 2}, "steps": steps, "left_out": ["x", "y"], "rows": [{"row": 1}] * 52, "none": []}
    shown = printed(data, samples=3, funnel=funnel)
    assert "samples     20\n" in shown and "lengths     p50 38, p95 41, longest 43" in shown
    assert "supervised  167 (21.7%)" in shown and "turns       20 supervised, empty think blocks 19" in shown
    assert "skipped\n  too_long: 2\n" in shown and "\n  row 1\n  … 2 more" in shown
    for name in "abcdefg":  # every step, however many
        assert f"\n  math: {name}: 12 of 20 kept (too_long 7, empty 1)\n" in shown
    assert "\nleft_out: x, y\n" in shown and "none" not in shown
    assert re.findall(r"── row (\d+):", shown) == ["0", "10", "19"]


def test_an_empty_block_opened_by_the_prompt_is_counted_too() -> None:
    family = get_family("qwen3_thinking_2507")
    data = Dataset.from_dict({"messages": [conversation("a", "b", "")]})
    assert token_statistics(tokenize_conversations(data, tokenizer(), family), tokenizer(), family).empty_think == 1


def test_packed_samples_are_shown_and_counted_one_by_one() -> None:
    data = tokenized(*TWO, conversation("x", "y"))
    longest = max(map(len, data["input_ids"]))
    rows = pack(data, 2 * longest)
    found, plain = token_statistics(rows), token_statistics(data)
    assert (found.rows, found.samples, found.turns) == (2, 3, None)
    assert (found.tokens, found.supervised_tokens, found.p50, found.longest) == (
        plain.tokens, plain.supervised_tokens, plain.p50, longest,
    )  # fmt: skip
    shown = printed(rows, samples=5)
    assert "row 0, sample 1 of 2: 43 tokens, 14 supervised" in shown
    assert shown.count("⟦<think>") == 3
    assert f"filled {plain.tokens / 2 / max(map(len, rows['input_ids'])):.1%}" in shown


def test_an_all_masked_sample_is_an_error_packed_or_not() -> None:
    good = {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}
    masked = {"input_ids": [1, 2], "labels": [-100, -100]}
    with pytest.raises(PosttrainError, match="row 1: 2 of 3 samples have no supervised token"):
        printed(Dataset.from_list([good, masked, masked]))
    packed = {"input_ids": [1, 2, 3, 1, 2], "labels": [-100, 2, 3, -100, -100], "seq_lengths": [3, 2]}
    with pytest.raises(PosttrainError, match="row 0: 1 of 2 samples have no supervised token"):
        token_statistics(Dataset.from_list([packed]))
    with pytest.raises(PosttrainError, match="the data set is empty"):
        token_statistics(Dataset.from_list([good]).select([]))
    with pytest.raises(PosttrainError, match="no column 'labels'"):
        token_statistics(Dataset.from_dict({"input_ids": [[1]]}))


def test_nothing_in_a_sample_reaches_the_terminal_as_a_command() -> None:
    shown = printed(tokenized(conversation("a\x1b[2Jb\x07\r", "c\u202ed")))
    assert not set(shown) & set("\x1b\x07\r\u202e")
    assert "a␛[2Jb␇␍" in shown


def test_long_runs_lose_their_middle_not_their_ends() -> None:
    shown = printed(tokenized(conversation("a" + "q" * 5000 + "z", "y")))
    masked = shown.split("⟦")[1]
    assert "\na" in masked and "z<|im_end|>" in masked and "characters…]" in masked
    assert len(masked) < RUN_CHARACTERS + 300


def test_rows_without_tokens_are_rendered() -> None:
    """What a rollout starts from: the prompt as served, in the row's own mode; a flag in it switches by itself."""
    question = [{"role": "user", "content": "4+4?"}]
    prompt = "<|im_start|>user\n4+4?<|im_end|>\n<|im_start|>assistant\n"
    shown = printed(Dataset.from_dict({"prompt": [question], "mode": ["non_thinking"]}))
    assert f"{prompt}<think>\n\n</think>\n\n" in shown
    shown = printed(Dataset.from_dict({"prompt": [question], "mode": ["non_thinking"], "switch": ["flag"]}))
    assert prompt in shown and "<think>" not in shown
    assert "yes<|im_end|>" in printed(Dataset.from_dict({"messages": [TWO[0]]}))
    with pytest.raises(PosttrainError, match="nothing to show"):
        printed(Dataset.from_dict({"text": ["a"]}))
