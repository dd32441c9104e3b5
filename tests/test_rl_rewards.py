"""Rewards: what they pay for, what tricks they see through, and what happens when one breaks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import PosttrainError
from posttrain.recipe.kinds import stage_class
from posttrain.rl.grpo import GrpoStage
from posttrain.rl.rewards import REWARDS, Rollout, Score, resolve_reward
from posttrain.rl.rewards.column import RewardColumn, RewardFault
from posttrain.rl.rewards.probes import MODELLED
from posttrain.templates.families import Mode, get_family
from posttrain.templates.parse import parse

QWEN3 = get_family("qwen3")
EMPTY = QWEN3.prefill["non_thinking"]
QUERY: dict[str, Any] = {
    "id": "q",
    "task": "arithmetic",
    "prompt": [{"role": "user", "content": "7 c+5 =?"}],
    "answer": "2",
    "entry": "",
}
GOLD = "\\boxed{2}"
THOUGHT = f"<think>\nc+5=2\n</think>\n\n{GOLD}<|im_end|>"


def grpo(options: dict[str, Any]) -> GrpoStage:
    stage = stage_class("grpo").model_validate(options)
    assert isinstance(stage, GrpoStage)
    return stage


def rollout(text: str, mode: Mode | None = "thinking", *, prefilled: str = "", **facts: Any) -> Rollout:
    return Rollout(message=parse(text, QWEN3, prefilled=prefilled), mode=mode, text=text, prefilled=prefilled, **facts)


def score(name: str, sample: Rollout) -> float | None:
    return resolve_reward(name)(QUERY, sample).value


def test_a_right_answer_in_the_mode_asked_for_earns_everything() -> None:
    thinking = rollout(THOUGHT)
    flagged = rollout(f"{EMPTY}{GOLD}<|im_end|>", "non_thinking")
    switched = rollout(f"{GOLD}<|im_end|>", "non_thinking", prefilled=EMPTY)
    for sample in (thinking, flagged, switched):
        for name in ("accuracy", "mode_following", "format", "answer_format"):
            assert score(name, sample) == 1.0, (name, sample)


TRICKS = {
    "empty": "",
    "end at once": "<|im_end|>",
    "rubbish": "zzz 8 \\ {",
    "empty think block": f"<think></think>{GOLD}<|im_end|>",
    "blank think block": f"<think>\n \n</think>\n\n{GOLD}<|im_end|>",
    "answer in the thinking only": f"<think>\n{GOLD}\n</think>\n\n<|im_end|>",
    "answer in an open think block": f"<think>\n{GOLD}<|im_end|>",
    "no thinking at all": f"{GOLD}<|im_end|>",
    "a constant": "<think>\nhm\n</think>\n\n\\boxed{0}<|im_end|>",
    "the prompt copied": "7 c+5 =?<|im_end|>",
    "all digits": "<think>\nhm\n</think>\n\n" + " ".join(f"\\boxed{{{d}}}" for d in range(10)) + "<|im_end|>",
}


@pytest.mark.parametrize("trick", TRICKS)
def test_no_trick_earns_accuracy_behind_its_gates(trick: str) -> None:
    stage = grpo({"queries": {"from": "x"}, "rewards": {"accuracy": 1.0, "mode_following": 0.0, "format": 0.0}})
    accuracy = stage.reward_columns()[0][0]
    assert accuracy(rollout=[rollout(TRICKS[trick])], **{k: [v] for k, v in QUERY.items()}) == [0.0]


@pytest.mark.parametrize("trick", ["empty think block", "blank think block", "no thinking at all"])
def test_markers_without_thinking_are_neither_thinking_nor_format(trick: str) -> None:
    sample = rollout(TRICKS[trick])
    assert score("mode_following", sample) == 0.0
    assert score("format", sample) == 0.0


def test_an_answer_in_the_thinking_does_not_count() -> None:
    assert score("accuracy", rollout(TRICKS["answer in the thinking only"])) == 0.0
    assert score("accuracy", rollout(TRICKS["answer in an open think block"])) == 0.0


def test_thinking_where_none_was_asked_for_is_seen_through_the_prefill() -> None:
    for text in (
        THOUGHT,
        f"c+5=2\n</think>\n\n{GOLD}<|im_end|>",  # goes on thinking behind the empty block
    ):
        sample = rollout(text, "non_thinking", prefilled=EMPTY)
        assert score("mode_following", sample) == 0.0, text
        assert score("format", sample) == 0.0, text


def test_a_plain_answer_obeys_the_non_thinking_mode_but_lacks_the_block() -> None:
    sample = rollout(f"{GOLD}<|im_end|>", "non_thinking")
    assert score("mode_following", sample) == 1.0
    assert score("format", sample) == 0.0


def test_a_prefilled_open_block_is_not_missed_in_the_completion() -> None:
    family = get_family("qwen3_thinking_2507")
    text = f"c+5=2\n</think>\n\n{GOLD}<|im_end|>"
    prefilled = family.prefill["thinking"]
    sample = Rollout(message=parse(text, family, prefilled=prefilled), mode="thinking", text=text, prefilled=prefilled)
    assert score("format", sample) == 1.0
    assert score("mode_following", sample) == 1.0


def test_a_truncated_answer_earns_nothing_though_it_is_right() -> None:
    sample = rollout(THOUGHT.removesuffix("<|im_end|>"), truncated=True)
    assert score("accuracy", sample) == 0.0
    assert score("answer_format", sample) == 0.0
    assert score("format", sample) == 0.0
    assert score("mode_following", sample) == 1.0  # it did think


def test_a_budget_of_nothing_is_not_held_against_the_mode() -> None:
    sample = rollout(f"{EMPTY}{GOLD}<|im_end|>", thinking_budget=0, closed_by="budget")
    assert score("mode_following", sample) is None
    assert score("format", sample) == 1.0


def test_where_no_mode_was_asked_mode_following_does_not_apply() -> None:
    assert score("mode_following", rollout(THOUGHT, None)) is None
    assert score("format", rollout(THOUGHT, None)) == 1.0


def test_the_answer_format_is_the_tasks_own() -> None:
    wrong_digit = rollout("<think>\nc+5=3\n</think>\n\n\\boxed{3}<|im_end|>")
    assert score("accuracy", wrong_digit) == 0.0
    assert score("answer_format", wrong_digit) == 1.0
    assert score("answer_format", rollout("<think>\nc\n</think>\n\n2<|im_end|>")) == 0.0
    assert resolve_reward("answer_format")({**QUERY, "task": "exact"}, wrong_digit).value is None
    assert resolve_reward("accuracy")({"id": "q"}, wrong_digit).value is None


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(0, 1.0), (80, 1.0), (85, 0.75), (90, 0.5), (95, 0.25), (100, 0.0)],
)
def test_soft_overlong_falls_in_a_line_over_the_last_fifth(tokens: int, expected: float) -> None:
    # DAPO, equation 13, with limit 100 and buffer 20: 0 up to 80, then (80 - tokens) / 20; ours is one higher.
    assert score("length", rollout(THOUGHT, tokens=tokens, max_tokens=100)) == pytest.approx(expected)


def test_soft_overlong_takes_its_buffer_as_an_option() -> None:
    reward = resolve_reward("length", {"buffer": 0.5})
    assert reward(QUERY, rollout(THOUGHT, tokens=75, max_tokens=100)).value == pytest.approx(0.5)
    assert reward(QUERY, rollout(THOUGHT, tokens=75)).value is None


@given(st.text(max_size=60), st.sampled_from(["thinking", "non_thinking", None]), st.sampled_from(["", EMPTY]))
def test_every_reward_gives_a_score_for_whatever_a_model_emits(text: str, mode: Mode | None, prefilled: str) -> None:
    sample = rollout(text, mode, prefilled=prefilled, tokens=len(text), max_tokens=60)
    for name in set(REWARDS) - MODELLED:
        Score.of(score(name, sample))


@given(st.lists(st.sampled_from(["<think>", "</think>", "\n", "c+5=2", GOLD, "\\boxed{3}", "<|im_end|>"]), max_size=8))
def test_accuracy_and_gates_are_earned_only_by_thinking_then_the_gold_answer(parts: list[str]) -> None:
    sample = rollout("".join(parts))
    if all(score(name, sample) == 1.0 for name in ("accuracy", "mode_following", "format")):
        head, _, answer = sample.text.partition("</think>")
        assert head.replace("<think>", "").strip()
        assert answer.partition("<|im_end|>")[0].strip() == GOLD


def test_names_are_resolved_and_faults_are_named() -> None:
    with pytest.raises(PosttrainError, match="did you mean 'accuracy'"):
        resolve_reward("acuracy")
    with pytest.raises(PosttrainError, match="no option 'bufer'"):
        resolve_reward("length", {"bufer": 0.1})
    with pytest.raises(PosttrainError, match="cannot be imported"):
        resolve_reward("nowhere.module:f")
    assert resolve_reward("posttrain.rl.rewards.outcome:accuracy")(QUERY, rollout(THOUGHT)).value == 1.0


def fragile(query: Mapping[str, Any], sample: Rollout) -> float | None:
    if "boom" in sample.text:
        raise ZeroDivisionError("boom")
    return 2.0 if "two" in sample.text else 1.0


def test_a_reward_that_raises_is_counted_and_skipped(caplog: pytest.LogCaptureFixture) -> None:
    column = RewardColumn("fragile", fragile)
    logged: dict[str, float] = {}
    samples = [rollout(text) for text in ("ok", "boom", "ok", "two", "ok")]
    with caplog.at_level(logging.WARNING, "posttrain"):
        scores = column(rollout=samples, id=list("abcde"), log_metric=logged.__setitem__)
    assert scores == [1.0, None, 1.0, None, 1.0]  # 2.0 is no score in [0, 1]
    assert (column.calls, column.failed) == (5, 2)
    assert logged["rewards/fragile/failed"] == pytest.approx(0.4)
    assert "query b" in caplog.text and "query d" in caplog.text


def test_a_batch_where_most_raise_stops_the_run() -> None:
    column = RewardColumn("fragile", fragile)
    with pytest.raises(PosttrainError, match=r"'fragile' raised on 2 of 3 rollouts \(ZeroDivisionError\)"):
        column(rollout=[rollout(text) for text in ("boom", "boom", "ok")])


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_what_is_no_score_is_refused(value: float) -> None:
    with pytest.raises(RewardFault):
        Score.of(value)


def test_a_sum_is_not_gated_and_a_product_logs_the_score_before_its_gates() -> None:
    options = {"queries": {"from": "x"}, "rewards": {"accuracy": 1.0, "format": {"weight": 0.5}}}
    columns, weights = grpo({**options, "combine": "sum"}).reward_columns()
    assert weights == [1.0, 0.5]
    unformatted = rollout(f"{GOLD}<|im_end|>")
    rows = {key: [value] for key, value in QUERY.items()}
    assert columns[0](rollout=[unformatted], **rows) == [1.0]
    columns, _ = grpo({**options, "combine": "product"}).reward_columns()
    logged: dict[str, float] = {}
    assert columns[0](rollout=[unformatted], log_metric=logged.__setitem__, **rows) == [0.0]
    assert logged["rewards/accuracy/ungated"] == 1.0
    assert logged["rewards/accuracy/thinking"] == 1.0
