"""Thinking-mode fusion: the last flag wins at every turn, shares hold, and no non-thinking turn thinks."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from posttrain.sft.fusion import Flags, Fusion, MultiTurn, Planner, assemble, describe, fuse, turn_modes
from posttrain.sft.samples import Sample, assistant_turn, is_joinable, read_sample
from posttrain.tasks.task import make_query
from posttrain.templates.families import Mode, get_family
from posttrain.templates.render import last_flag, render_training

QWEN3 = get_family("qwen3")
QUERY = make_query(id="q", prompt="q", answer="", task="", domain="", key="q")


def single(place: int, mode: Mode, text: str = "") -> Sample:
    messages = [
        {"role": "user", "content": text or f"question {place}"},
        assistant_turn(f"answer {place}", f"thoughts on {place}", mode),
    ]
    return Sample("data", mode, messages, None, QUERY)


def whole(place: int, modes: tuple[Mode, ...], system: str | None) -> Sample:
    """A conversation with turns of its own: it is never joined with others."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system is not None else []
    for number, mode in enumerate(modes):
        messages += [
            {"role": "user", "content": f"question {place}.{number}"},
            assistant_turn(f"answer {place}.{number}", "thoughts", mode),
        ]
    return Sample("data", modes[-1], messages, None, QUERY)


MODE: st.SearchStrategy[Mode] = st.sampled_from(["thinking", "non_thinking"])
USER_TEXT = st.sampled_from(["", "", "Why? /think", "no /no_think here", "path/think.md", "/no_think /think"])
SPEC = st.builds(
    lambda unflagged, in_system, share, lo, more: Fusion(
        flags=Flags(unflagged=unflagged, in_system=in_system),
        multi_turn=MultiTurn(share=share, turns=(lo, lo + more)),
    ),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(2, 4),
    st.integers(0, 3),
)
SAMPLES = st.lists(
    st.one_of(
        st.tuples(MODE, USER_TEXT).map(lambda given: single(0, *given)),
        st.tuples(
            st.lists(MODE, min_size=1, max_size=3).map(tuple), st.sampled_from([None, "", "Be kind.", "Obey. /think"])
        ).map(lambda given: whole(0, *given)),
    ),
    min_size=1,
    max_size=40,
)


def half(thinking: int, rest: int | None = None) -> list[Mode]:
    modes: list[Mode] = ["thinking"] * thinking
    return modes + ["non_thinking"] * (thinking if rest is None else rest)


def fused(samples: list[Sample], spec: Fusion, seed: int = 0) -> list[tuple[list[dict[str, Any]], list[Sample]]]:
    modes = [sample.mode for sample in samples]
    joinable = [is_joinable(sample) for sample in samples]
    return list(fuse(modes, joinable, samples.__getitem__, spec, QWEN3, seed))


# --- the contract ----------------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(samples=SAMPLES, spec=SPEC, seed=st.integers(0, 99))
def test_the_last_flag_wins_at_every_turn(samples: list[Sample], spec: Fusion, seed: int) -> None:
    for messages, _ in fused(samples, spec, seed):
        for place, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            # templates.render.last_flag is the contract that evaluation reads; nothing of fusion's own is used here.
            in_force = last_flag(messages[:place], QWEN3) or "thinking"
            assert (in_force == "thinking") == bool(message.get("reasoning_content"))
        assert all(mode == in_force for mode, in_force in turn_modes(messages, QWEN3))


@settings(max_examples=100)
@given(samples=SAMPLES, spec=SPEC, seed=st.integers(0, 99))
def test_every_sample_is_used_once_with_its_own_answer(samples: list[Sample], spec: Fusion, seed: int) -> None:
    used = []
    for messages, parts in fused(samples, spec, seed):
        used += [id(part) for part in parts]
        answers = [message for message in messages if message["role"] == "assistant"]
        assert answers == [message for part in parts for message in part.messages if message["role"] == "assistant"]
    assert Counter(used) == Counter(id(sample) for sample in samples)


@settings(max_examples=60)
@given(samples=SAMPLES, spec=SPEC, seed=st.integers(0, 99))
def test_it_follows_from_the_seed_and_leaves_the_samples_alone(samples: list[Sample], spec: Fusion, seed: int) -> None:
    before = [str(sample) for sample in samples]
    first = [messages for messages, _ in fused(samples, spec, seed)]
    assert first == [messages for messages, _ in fused(samples, spec, seed)]
    assert before == [str(sample) for sample in samples]


@settings(max_examples=60)
@given(samples=SAMPLES, spec=SPEC, seed=st.integers(0, 9))
def test_every_turn_is_supervised_in_its_own_mode(samples: list[Sample], spec: Fusion, seed: int) -> None:
    for messages, _ in fused(samples, spec, seed):
        text, spans = render_training(messages, QWEN3)
        turns = [message for message in messages if message["role"] == "assistant"]
        assert len(spans) == len(turns)
        for turn, (start, end) in zip(turns, spans, strict=True):
            empty = text[start:end].startswith("<think>\n\n</think>\n\n")
            assert empty is (not turn.get("reasoning_content"))
            assert text[start:end].startswith("<think>") and text[start:end].endswith("<|im_end|>")


# --- shares ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(unflagged=st.floats(0, 1), in_system=st.floats(0, 1), thinking=st.integers(20, 400), seed=st.integers(0, 99))
def test_shares_of_flags_hold_to_one(unflagged: float, in_system: float, thinking: int, seed: int) -> None:
    samples = [single(n, "thinking" if n < thinking else "non_thinking") for n in range(thinking + 50)]
    spec = Fusion(flags=Flags(unflagged=unflagged, in_system=in_system), multi_turn=None)
    counts: dict[str, Any] = {}
    for messages, (sample,) in fused(samples, spec, seed):
        describe(counts, messages, QWEN3)
        if sample.mode == "non_thinking":
            assert last_flag(messages, QWEN3) == "non_thinking"
    assert abs(counts["unflagged_conversations"] - unflagged * thinking) <= 1
    flagged = len(samples) - counts["unflagged_conversations"]
    assert abs(counts["flags_in_system"] - in_system * flagged) <= 1
    assert counts["flags_in_system"] + counts["flagged_turns"] == flagged
    assert counts["thinking_turns"] == thinking and counts["non_thinking_turns"] == 50


@settings(max_examples=25)
@given(share=st.floats(0, 1), lo=st.integers(2, 4), more=st.integers(0, 2), seed=st.integers(0, 99))
def test_share_and_length_of_dialogues_hold(share: float, lo: int, more: int, seed: int) -> None:
    modes = half(400)
    spec = Fusion(multi_turn=MultiTurn(share=share, turns=(lo, lo + more)))
    dialogues = list(Planner(modes, [True] * 800, spec, "thinking", seed))
    lengths = [len(dialogue.turns) for dialogue in dialogues]
    multi = [length for length in lengths if length > 1]
    # To within one, but for the end: the last dialogue may be short of samples and so stay single.
    assert abs(len(multi) - share * len(lengths)) <= 2
    assert all(lo <= length <= lo + more for length in multi[:-1])
    assert sum(lengths) == 800


def test_dialogues_have_flags_at_random_turns_and_switch_both_ways() -> None:
    modes = half(600)
    spec = Fusion(multi_turn=MultiTurn(share=1.0, turns=(3, 3)))
    dialogues = [d for d in Planner(modes, [True] * 1200, spec, "thinking", 5) if len(d.turns) == 3]
    patterns = Counter(tuple(turn.flag is not None for turn in dialogue.turns) for dialogue in dialogues)
    # One or two of three turns are flagged, each of the six ways about as often: 400 dialogues, 67 each on average.
    usual = {pattern: count for pattern, count in patterns.items() if 1 <= sum(pattern) <= 2}
    assert len(usual) == 6 and min(usual.values()) > 35
    assert sum(usual.values()) >= 0.95 * len(dialogues)  # more only when one mode has run out
    # Turns before the first flag think, so flags ask for thinking 0.29 of the time for it to be half of all turns:
    # about 0.5 x 0.29 x 0.45 of the 800 transitions lead back to thinking.
    switches: Counter[tuple[str, str]] = Counter(
        (a.mode, b.mode) for d in dialogues for a, b in zip(d.turns, d.turns[1:], strict=False)
    )
    assert min(switches[pair] for pair in [("thinking", "non_thinking"), ("non_thinking", "thinking")]) > 25
    restated = sum(b.flag == a.mode for d in dialogues for a, b in zip(d.turns, d.turns[1:], strict=False))
    assert restated > 50  # a flag may repeat the mode in force


def test_modes_run_out_together() -> None:
    modes = half(900, 100)
    places = [t.place for d in Planner(modes, [True] * 1000, Fusion(), "thinking", 3) for t in d.turns]
    halves = [sum(place >= 900 for place in half) for half in (places[:500], places[500:])]
    assert min(halves) > 30  # of 100 non-thinking samples
    spec = Fusion(multi_turn=MultiTurn(share=1.0, turns=(3, 3)))
    even = half(600)
    places = [t.place for d in Planner(even, [True] * 1200, spec, "thinking", 3) for t in d.turns]
    parts = [sum(place >= 600 for place in places[n : n + 200]) for n in range(0, 1200, 200)]
    assert min(parts) > 70 and max(parts) < 130  # 100 of every 200


# --- words on the page -----------------------------------------------------------------------------------------------


def test_where_a_flag_stands() -> None:
    samples = [single(1, "non_thinking")]
    ((in_turn, _),) = fused(samples, Fusion(flags=Flags(in_system=0.0), multi_turn=None))
    assert in_turn[0] == {"role": "user", "content": "question 1 /no_think"}
    ((in_system, _),) = fused(samples, Fusion(flags=Flags(in_system=1.0), multi_turn=None))
    assert in_system[:2] == [{"role": "system", "content": "/no_think"}, {"role": "user", "content": "question 1"}]
    own = [whole(1, ("non_thinking", "thinking"), "Be kind.")]
    ((kept, _),) = fused(own, Fusion(flags=Flags(unflagged=0.0, in_system=0.0), multi_turn=None))
    assert [message["content"] for message in kept if message["role"] != "assistant"] == [
        "Be kind.",
        "question 1.0 /no_think",
        "question 1.1 /think",
    ]


def test_tool_turns_share_the_mode_of_their_question() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "What is the weather?"},
        {"role": "assistant", "content": "", "reasoning_content": "I must look.", "tool_calls": []},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
        {"role": "user", "content": "Thanks"},
        {"role": "assistant", "content": "Welcome"},
    ]
    sample = Sample("data", "non_thinking", messages, None, QUERY)
    ((out, _),) = fused([sample], Fusion(flags=Flags(in_system=0.0), multi_turn=None))
    assert turn_modes(out, QWEN3) == [("thinking", "thinking"), ("non_thinking", "non_thinking")]
    assert [m["content"] for m in out if m["role"] == "user"] == ["What is the weather?", "Thanks /no_think"]


def test_turns_are_two_or_more() -> None:
    for turns in ((1, 3), (3, 2)):
        with pytest.raises(ValidationError, match="fewest and the most"):
            MultiTurn(turns=turns)


# --- rows become samples ---------------------------------------------------------------------------------------------


def solved(**more: Any) -> dict[str, Any]:
    given = {"id": "q", "prompt": "2+2?", "answer": "4", "task": "number", "domain": "", "key": "k", "response": "4"}
    return make_query(**given | more)


@pytest.mark.parametrize(
    ("row", "mode", "expected"),
    [
        (solved(reasoning="two and two"), None, "thinking"),
        (solved(reasoning="two and two"), "thinking", "thinking"),
        (solved(reasoning="two and two"), "non_thinking", "non_thinking"),
        (solved(), None, "non_thinking"),
        (solved(), "thinking", "no_reasoning"),
        (solved(response=""), None, "no_solution"),
        ({"messages": [{"role": "user", "content": "hi"}]}, None, "no_assistant_turn"),
    ],
)
def test_a_row_is_read_in_the_mode_asked_for(row: dict[str, Any], mode: Mode | None, expected: str) -> None:
    sample = read_sample(row, 0, "data", mode, QWEN3)
    if not isinstance(sample, Sample):
        assert sample.rule == expected
        return
    assert sample.mode == expected
    assert [bool(turn.get("reasoning_content")) for turn in sample.messages if turn["role"] == "assistant"] == [
        expected == "thinking"
    ]


def test_a_family_refuses_the_mode_it_does_not_have() -> None:
    for name, row, rule in (
        ("qwen2_5", solved(reasoning="thoughts"), "reasoning_has_no_place"),
        ("qwen3_thinking_2507", solved(), "no_reasoning"),
    ):
        drop = read_sample(row, 0, "data", None, get_family(name))
        assert not isinstance(drop, Sample) and drop.rule == rule


def test_inline_think_blocks_are_taken_apart() -> None:
    row = {
        "messages": [
            {"role": "user", "content": "2+2?", "tool_calls": None},
            {"role": "assistant", "content": "<think>\ntwo and two\n</think>\n\n4"},
        ]
    }
    sample = read_sample(row, 3, "data", None, QWEN3)
    assert isinstance(sample, Sample) and sample.mode == "thinking"
    assert sample.messages[0] == {"role": "user", "content": "2+2?"}
    assert sample.messages[1] == {"role": "assistant", "content": "4", "reasoning_content": "two and two"}
    assert sample.query["prompt"] == [{"role": "user", "content": "2+2?"}] and sample.query["id"] == "data-3"
    plain = read_sample(row, 3, "data", "non_thinking", QWEN3)
    assert isinstance(plain, Sample) and plain.messages[1] == {"role": "assistant", "content": "4"}


def test_assemble_is_what_the_plan_says() -> None:
    samples = [single(n, "thinking" if n % 2 else "non_thinking") for n in range(200)]
    plan = Planner([s.mode for s in samples], [True] * 200, Fusion(), "thinking", 1)
    for dialogue in plan:
        messages = assemble(dialogue, [samples[turn.place] for turn in dialogue.turns], QWEN3)
        assert [mode for mode, _ in turn_modes(messages, QWEN3)] == [turn.mode for turn in dialogue.turns]
        flags = [last_flag([message], QWEN3) for message in messages if message["role"] == "user"]
        expected = [turn.flag for turn in dialogue.turns]
        if dialogue.in_system:
            assert last_flag(messages[:1], QWEN3) == expected[0] and messages[0]["role"] == "system"
            expected[0] = None
        assert flags == expected
