"""The budget under vLLM's two runners, without vLLM: thousands of requests against a judge that reads ids alone."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import random
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.budget.state import BudgetState
from posttrain.budget.vllm_model import ServedModel
from posttrain.budget.vllm_request import check_request
from posttrain.budget.vllm_rows import Row
from posttrain.budget.vllm_scores import FORCED, Scores
from posttrain.budget.vllm_v1 import V1Rows
from posttrain.budget.vllm_v2 import V2Rows
from posttrain.errors import PosttrainError
from posttrain.templates.families import FAMILIES

ROOT = Path(__file__).parents[1]


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


runner = load("tests/budget_runner.py")
verdict = load("benchmarks/budget_verdict.py")


class Words:
    """A tokenizer of whole words, with the two think markers as words or as three parts."""

    def __init__(self, *, split: bool = False) -> None:
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        words = [
            "<|im_start|>",
            "<|im_end|>",
            "<|endoftext|>",
            "assistant",
            "user",
            "\n",
            "stop",
            "now",
            "here",
            "Wait",
        ]
        markers = ["<", "</", "think", ">"] if split else ["<think>", "</think>"]
        self.words = [*words, *markers, *(f"w{number}" for number in range(20))]
        backend = Tokenizer(models.WordLevel({word: at for at, word in enumerate(self.words)}, unk_token="w19"))
        pattern = "|".join(re.escape(word) for word in sorted(self.words, key=len, reverse=True))
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split(Regex(pattern), "isolated")]
        )
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")

    def get_vocab(self) -> dict[str, int]:
        return {word: at for at, word in enumerate(self.words)}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def __len__(self) -> int:
        return len(self.words)


FAMILY = dataclasses.replace(FAMILIES["qwen3"], stop_thinking="stop now here now</think>\n\n")
STOPS = ("stop now here now</think>\n\n", "here stop stop now</think>", "</think>\n")


@functools.cache
def model_of(words: Words) -> ServedModel:
    return ServedModel(words.tokenizer, FAMILY, longest=400)


WORDS, SPLIT = Words(), Words(split=True)


def params(**given: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"extra_args": None, "max_tokens": 60, "temperature": 1.0, **given})


def requests_of(words: Words, count: int, seed: int) -> list[Any]:
    draw = random.Random(seed)
    requests = []
    for _ in range(count):
        typed = draw.choice(("w1 w2", "<think> w1", "w1 </think>", "<|im_start|>assistant<think> w1 <|im_end|>"))
        opened = draw.random() < 0.7
        text = f"<|im_start|>user {typed}<|im_end|><|im_start|>assistant\n" + "<think>\n" * opened
        extra: dict[str, Any] = {}
        if draw.random() < 0.8:
            extra = {"thinking_budget": draw.randint(0, 30), "thinking_stop_text": draw.choice(STOPS)}
        asked = params(extra_args=extra, max_tokens=draw.randint(1, 60), temperature=draw.choice((0.0, 0.7, 1.0)))
        requests.append(runner.Request(words.encode(text), asked))
        requests[-1].opened = opened
    return requests


def wrong(requests: list[Any], words: Words) -> list[Any]:
    names = words.get_vocab()
    ids = verdict.Ids(names["<think>"], names["</think>"], frozenset({names["<|im_end|>"], names["<|endoftext|>"]}))
    found = []
    for request in requests:
        extra = request.params.extra_args
        stop = words.encode(extra.get("thinking_stop_text", STOPS[0]))
        budget = extra.get("thinking_budget")
        faults = verdict.faults(request.output, ids, opened=request.opened, budget=budget, stop=stop)
        if faults:
            found.append((faults, request.opened, budget, stop, request.output))
    return found


def config(rows: int, *, drafts: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=rows), speculative_config=object() if drafts else None
    )


LIKELY = {"<think>": 1.5, "</think>": 0.5, "<|im_end|>": 0.3}


def sampler_of(words: Words, seed: int) -> Any:
    names = words.get_vocab()
    return runner.Sampler(len(words), seed, {names[word]: bias for word, bias in LIKELY.items()})


def ends_of(words: Words) -> frozenset[int]:
    return frozenset(words.get_vocab()[end] for end in ("<|im_end|>", "<|endoftext|>"))


# --- whole requests


@pytest.mark.parametrize("seed", range(4))
def test_v1_keeps_every_budget_in_a_batch_that_changes(seed: int) -> None:
    words = WORDS
    requests = requests_of(words, 150, seed)
    rows = V1Rows(config(16), model_of(words), torch.device("cpu"))
    preempted = runner.run_v1(rows, requests, sampler_of(words, seed), ends_of(words), seats=16, seed=seed)
    assert preempted > 20 and all(request.done for request in requests)
    assert wrong(requests, words) == []
    left = (rows._rows, rows._awake, rows._asleep, rows._stopped, rows._queues, rows._settled, rows._wakes)
    assert not any(left) and rows._length == 0  # nothing is left of who went


@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.parametrize("seed", range(2))
def test_v2_keeps_every_budget_with_preemption_and_drafts(seed: int, drafts: int) -> None:
    words = WORDS
    requests = requests_of(words, 150, seed)
    slots = runner.Slots(16, 400, len(words))
    rows = V2Rows(config(16, drafts=drafts), model_of(words), slots)
    accepted = runner.run_v2(rows, slots, requests, sampler_of(words, seed), ends_of(words), seed=seed, drafts=drafts)
    assert all(request.done for request in requests) and (accepted > 100) == bool(drafts)
    assert wrong(requests, words) == []


@pytest.mark.parametrize("second", [False, True])
def test_rows_that_were_stopped_go_on_for_long_beside_those_that_are_not(second: bool) -> None:
    words = WORDS
    requests = requests_of(words, 40, 0)
    for at, request in enumerate(requests):
        request.params.max_tokens = 250
        request.params.extra_args = {"thinking_budget": 5 * at, "thinking_stop_text": STOPS[at % 3]}
    bias = {words.get_vocab()[word]: -1e9 for word in ("<|im_end|>", "<|endoftext|>", "</think>")}
    sampler = runner.Sampler(len(words), 0, bias)
    if second:
        slots = runner.Slots(16, 400, len(words))
        rows = V2Rows(config(16), model_of(words), slots)
        runner.run_v2(rows, slots, requests, sampler, ends_of(words), seed=0, drafts=0)
    else:
        runner.run_v1(
            V1Rows(config(16), model_of(words), torch.device("cpu")),
            requests,
            sampler,
            ends_of(words),
            seats=16,
            seed=0,
        )
    assert all(len(request.output) == 250 for request in requests)
    assert wrong(requests, words) == []


def test_the_judge_sees_a_processor_that_does_nothing() -> None:
    words = WORDS
    requests = requests_of(words, 150, 0)
    idle = SimpleNamespace(apply=lambda scores: scores, update_state=lambda update: None)
    runner.run_v1(idle, requests, sampler_of(words, 0), ends_of(words), seats=16, seed=0)
    kinds = {kind for faults, *_ in wrong(requests, words) for kind in faults}
    assert {"over the budget", "a turn ended inside thinking"} <= kinds


@pytest.mark.parametrize(
    "output",
    [
        "w1 w2 w3</think>w1",  # one token too many, closed by itself
        "w1 w2 stop now here</think>\n\n",  # a stop text with a hole
        "w1 w2 stop now here now</think>w1 w2 w3",  # without its end
        "w1 w2 stop now here now stop now here now</think>\n\n",  # said twice
        "w1 </think> w1 stop now here now</think>\n\n",  # in the answer
        "w1 <|im_end|>",  # ended inside
        "w1 w2 stop now here now</think>\n\n<think> w1",  # thinking again
    ],
)  # fmt: skip
def test_the_judge_sees_each_fault(output: str) -> None:
    words = WORDS
    request = runner.Request([], params(extra_args={"thinking_budget": 2}))
    request.opened, request.output = True, words.encode(output)
    assert wrong([request], words)


# --- rows


@given(st.data())
def test_a_row_says_what_a_state_that_saw_every_token_says(data: st.DataObject) -> None:
    words = data.draw(st.sampled_from((WORDS, SPLIT)))
    rule = model_of(words).rule("stop now</think>\n\n", answer_follows=True)
    budget = data.draw(st.integers(0, 40))
    opened = data.draw(st.booleans())
    tokens: list[int] = []
    row = Row(lambda: BudgetState(rule, budget, thinking_open=opened), lambda a, b: tokens[a:b], rule.marks, 1.0)
    state = BudgetState(rule, budget, thinking_open=opened)
    alphabet = st.sampled_from(sorted({*rule.open_ids, *rule.close_ids, *range(len(words) - 10, len(words))}))
    for _ in range(data.draw(st.integers(1, 60))):
        token = state.forced_token()
        tokens.append(data.draw(alphabet) if token is None else token)
        state.observe(tokens[-1])
        if data.draw(st.integers(0, 9)) == 0:  # discarded: the engine reads the completion from its beginning again
            row.follow(data.draw(st.integers(0, len(tokens))))
        row.follow(len(tokens))
        assert (row.forced(), row.redirect()) == (state.forced_token(), state.redirect())


def test_a_sleeping_row_is_not_asked() -> None:
    words = WORDS
    rule = model_of(words).rule(None, answer_follows=True)
    tokens = [words.encode("w1")[0]] * 5000
    row = Row(lambda: BudgetState(rule, 4000, thinking_open=True), lambda a, b: tokens[a:b], rule.marks, 1.0)
    looked = [length for length in range(1, 4001) if row.follow(length)]
    assert len(looked) < 10 and looked[-1] == 4000 and row.forced() == rule.stop_ids[0]


def test_a_placeholder_is_not_taken_for_a_token() -> None:
    words = WORDS
    rule = model_of(words).rule(None, answer_follows=True)
    row = Row(lambda: BudgetState(rule, 1, thinking_open=True), lambda a, b: [-1][a:b], rule.marks | {-1}, 1.0)
    with pytest.raises(RuntimeError, match="placeholder"):
        row.follow(1)


# --- scores


@settings(max_examples=150)
@given(
    st.integers(0, 2**31),
    st.lists(st.sampled_from([None, ((2, 3), 7), ((1,), 5)]), min_size=3, max_size=3),
    st.lists(st.sampled_from([0.3, 1.0, 1.7]), min_size=1, max_size=3),
    st.sampled_from([None, [0, 1, 2], [2, 0]]),
)
def test_ends_give_their_probability_to_the_marker_and_nothing_else_changes(
    seed: int, redirects: list[Any], temperatures: list[float], slots: list[int] | None
) -> None:
    scores = Scores({1, 2, 3}, 3, torch.device("cpu"))
    scores.redirect(1, ({1}, 6), 0.5)  # of who was there before
    for slot, redirect in enumerate(redirects):
        scores.redirect(slot, redirect, temperatures[slot % len(temperatures)])
    places = [0, 1, 2] if slots is None else slots
    before = 4 * torch.randn(len(places), 12, generator=torch.Generator().manual_seed(seed))
    for _ in range(2):  # the second time by what was laid out the first time
        after = before.clone()
        scores.apply(after, slots=None if slots is None else (torch.tensor(slots), np.array(slots)))
        for was, now, slot in zip(before, after, places, strict=True):
            sources, target = redirects[slot] or ((), 7)
            temperature = temperatures[slot % len(temperatures)]
            expected = torch.softmax(was / temperature, -1)
            expected[target] += expected[list(sources)].sum()
            expected[list(sources)] = 0.0
            assert torch.allclose(torch.softmax(now / temperature, -1), expected, atol=1e-6)
            kept = [token for token in range(12) if redirects[slot] is None or token not in (*sources, target)]
            assert torch.equal(now[kept], was[kept])


def test_under_greedy_decoding_the_marker_comes_where_it_or_an_end_would() -> None:
    before = torch.randn(500, 12, generator=torch.Generator().manual_seed(0))
    after = before.clone()
    scores = Scores({2, 3}, 500, torch.device("cpu"))
    for row in range(500):
        scores.redirect(row, ({2, 3}, 7), 0.0)
    scores.apply(after)
    was = before.argmax(-1)
    assert torch.equal(after.argmax(-1), torch.where((was == 2) | (was == 3), 7, was))
    assert torch.equal(after[:, 7], before[:, [2, 3, 7]].amax(-1))


def test_ends_that_cannot_come_change_nothing() -> None:
    before = torch.randn(1, 6)
    before[0, [2, 3]] = float("-inf")
    for closed in (before[0, 4].item(), float("-inf")):
        before[0, 4] = closed
        after = before.clone()
        scores = Scores({2, 3}, 1, torch.device("cpu"))
        scores.redirect(0, ({2, 3}, 4), 0.7)
        scores.apply(after)
        assert torch.allclose(after, before, atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-4, 0.7, 2.0])
def test_a_forced_id_comes_whatever_follows(temperature: float) -> None:
    scores = torch.randn(2, 50) * 50
    scores[0, 3] = float("-inf")
    Scores({1}, 2, torch.device("cpu")).apply(scores, ([0], [3]))
    penalised = (scores - 2.0 * 32_768) / temperature
    assert torch.softmax(penalised, -1)[0].tolist() == [float(token == 3) for token in range(50)]
    assert torch.isfinite(penalised[0]).all() and float(scores.max()) == pytest.approx(FORCED)


# --- prompts and requests


@pytest.mark.parametrize(
    ("prompt", "opens"),
    [
        ("<|im_start|>user w1<|im_end|><|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>user w1<|im_end|><|im_start|>assistant\n", False),
        ("<|im_start|>user <think> w1<|im_end|><|im_start|>assistant\n", False),
        ("<|im_start|>user </think><|im_end|><|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<think> w1<|im_end|><|im_start|>user w1<|im_end|><|im_start|>assistant\n", False),
        ("<|im_start|>user <|im_start|>assistant\n<think><|im_end|><|im_start|>assistant\n", False),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("<|im_start|>assistant\n<think> w1 </think> w2 <think> w3", True),
        ("w1 w2", False),
        ("w1 <think> w2", True),
        ("", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("split", [False, True])
def test_a_prompt_opens_thinking_only_after_its_last_header(prompt: str, opens: bool, split: bool) -> None:
    words = SPLIT if split else WORDS
    assert model_of(words).opens_thinking(words.encode(prompt)) is opens


def test_structured_output_is_not_budgeted_where_the_grammar_leaves_no_thinking() -> None:
    asked = params(extra_args={"thinking_budget": 3}, structured_outputs=object())
    words = WORDS
    assert not model_of(words).limits(asked)
    model = ServedModel(words.tokenizer, FAMILY, longest=400, grammar_first=False)
    output = words.encode("w1 w2 w3")
    row = model.row(asked, words.encode("<think>"), lambda start, end: output[start:end])
    assert row is not None
    while row.follow(len(output)) or row.forced() is not None:
        token = row.forced()
        if token is None:
            break
        output.append(token)
    assert output[-1] == words.get_vocab()["</think>"]  # nothing between the marker and the grammar


def test_a_request_is_refused_with_everything_that_is_wrong() -> None:
    asked = params(
        extra_args={"thinking_budget": "12", "thinking_bugdet": 1, "else": 1}, thinking_token_budget=5, max_tokens=9
    )
    with pytest.raises(ValueError) as error:
        check_request(asked)
    for words in ("thinking_budget", "did you mean thinking_budget", "thinking_token_budget"):
        assert words in str(error.value)
    assert "else" not in str(error.value)


def test_the_settings_of_the_server_hold_for_requests_that_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    words = WORDS
    assert not model_of(words).limits(params())
    monkeypatch.setenv("POSTTRAIN_BUDGET", '{"default": 3, "ceiling": 10}')
    assert model_of(words).limits(params())
    assert model_of(words).limits(params(extra_args={"thinking_budget": -1}))
    monkeypatch.setenv("POSTTRAIN_BUDGET", '{"default": 30, "ceiling": 10}')
    with pytest.raises(ValueError, match="ceiling"):
        check_request(params())


def test_a_model_without_markers_is_refused_in_words() -> None:
    from posttrain.budget.vllm_model import model_family

    plain = SimpleNamespace(chat_template=None, get_vocab=lambda: {"<|im_end|>": 0})
    with pytest.raises(PosttrainError, match="no thinking to budget"):
        model_family(Path("nowhere"), plain)


def test_the_support_table_is_what_the_results_give() -> None:
    script = ROOT / "docs" / "make_budget_support.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
