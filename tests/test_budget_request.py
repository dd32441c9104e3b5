"""What a request may ask of its thinking budget, what a server makes of it, and what both are refused for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.budget.request import (
    EFFORTS,
    LOOP_GUARD_LEAST,
    STOP_TEXT_LONGEST,
    BudgetRequest,
    BudgetRequestError,
    BudgetServer,
    parse_request,
)

PLAIN = BudgetServer()
KEYS = (
    "thinking_budget",
    "thinking_grace",
    "thinking_answer_reserve",
    "thinking_minimum",
    "thinking_loop_guard",
    "thinking_stop_text",
)


def problems(args: dict[str, Any], server: BudgetServer = PLAIN, **more: Any) -> str:
    with pytest.raises(BudgetRequestError) as caught:
        parse_request(args, server=server, **more)
    return "\n".join(caught.value.problems)


def test_every_key_reaches_its_field() -> None:
    asked = parse_request(dict(zip(KEYS, (900, 50, 300, 100, 200, "Enough."), strict=True)), server=PLAIN)
    assert asked == BudgetRequest(900, 50, 300, 100, 200, "Enough.")
    assert asked.limited


def test_nothing_asked_is_nothing_limited() -> None:
    assert parse_request({}, server=PLAIN) == BudgetRequest() == BudgetRequest(-1, loop_guard=0)
    assert not BudgetRequest(grace=5, stop_text="").limited
    assert parse_request(dict.fromkeys(KEYS), server=PLAIN) == BudgetRequest()  # null is absent
    assert parse_request({"temperature": 3, "think": "x"}, server=PLAIN) == BudgetRequest()  # others' keys


@pytest.mark.parametrize("value", [True, "12", 12.0, [12], {}])
@pytest.mark.parametrize("key", KEYS[:5])
def test_numbers_are_whole_numbers(key: str, value: Any) -> None:
    assert problems({key: value}).startswith(f"{key} is a whole number of tokens, not {json.dumps(value)}")


@pytest.mark.parametrize("key", KEYS[:5])
def test_numbers_have_a_least(key: str) -> None:
    assert f"{key} is at least" in problems({key: -2})


@pytest.mark.parametrize("key", KEYS[:5])
def test_numbers_have_a_largest(key: str) -> None:
    """The engine takes no larger ones, and would name a field that nobody sent."""
    assert f"{key} is at most {2**63 - 1}, not {2**63}" in problems({key: 2**63})
    if key != "thinking_answer_reserve":
        parse_request({key: 2**63 - 1}, server=PLAIN)


def test_a_loop_guard_is_no_count_of_repetitions() -> None:
    assert problems({"thinking_loop_guard": 3}) == "thinking_loop_guard is at least 16 (0 is off), not 3"
    assert parse_request({"thinking_loop_guard": LOOP_GUARD_LEAST}, server=PLAIN).loop_guard == LOOP_GUARD_LEAST
    assert parse_request({"thinking_loop_guard": 0}, server=BudgetServer(loop_guard=99)).loop_guard is None


def test_stop_texts_are_texts_of_some_length() -> None:
    assert "is a text, not 3" in problems({"thinking_stop_text": 3})
    assert "2001 characters" in problems({"thinking_stop_text": "x" * (STOP_TEXT_LONGEST + 1)})
    assert parse_request({"thinking_stop_text": ""}, server=BudgetServer(stop_text="x")).stop_text == ""


def test_every_problem_is_told_at_once() -> None:
    told = problems({"thinking_budget": True, "thinking_grace": -1, "thinking_budgets": 3, "reasoning_effort": "max"})
    assert len(told.splitlines()) == 4
    assert "thinking_budgets is unknown (did you mean thinking_budget?)" in told
    assert 'reasoning_effort is one of none, minimal, low, medium, high, not "max"' in told


def test_contradictions_are_refused() -> None:
    assert "lies above the thinking_budget of 5" in problems({"thinking_budget": 5, "thinking_minimum": 6})
    assert "contradicts reasoning_effort" in problems({"thinking_budget": 5, "reasoning_effort": "low"})
    low = EFFORTS["low"]
    assert parse_request({"thinking_budget": low, "reasoning_effort": "low"}, server=PLAIN).thinking_budget == low
    assert "thinking_minimum" in problems({"thinking_minimum": low + 1, "reasoning_effort": "low"})
    assert "leaves no token" in problems({"thinking_answer_reserve": 100}, max_tokens=100)
    assert parse_request({"thinking_answer_reserve": 99}, server=PLAIN, max_tokens=100).answer_reserve == 99


@pytest.mark.parametrize("effort", EFFORTS)
def test_efforts_are_budgets(effort: str) -> None:
    assert parse_request({"reasoning_effort": effort}, server=PLAIN).thinking_budget == EFFORTS[effort]


def test_a_server_has_efforts_of_its_own() -> None:
    server = BudgetServer(efforts={"low": 7, "high": -1})
    assert parse_request({"reasoning_effort": "low"}, server=server).thinking_budget == 7
    assert parse_request({"reasoning_effort": "high"}, server=server).thinking_budget is None
    assert "one of low, high" in problems({"reasoning_effort": "none"}, server)


def test_the_servers_defaults_hold_where_a_request_says_nothing() -> None:
    server = BudgetServer(
        default=100, grace=10, answer_reserve=20, minimum=30, loop_guard=90, stop_text="", ceiling=200
    )
    assert parse_request({}, server=server) == BudgetRequest(100, 10, 20, 30, 90, "")
    assert parse_request({"thinking_budget": 150, "thinking_grace": 0}, server=server) == BudgetRequest(
        150, 0, 20, 30, 90, ""
    )
    brief = parse_request({"thinking_budget": 0}, server=server)
    assert (brief.thinking_budget, brief.minimum, brief.notes) == (0, 0, ())  # the server's minimum gives way


def test_what_lies_above_the_ceiling_is_lowered_and_said() -> None:
    server = BudgetServer(ceiling=1000)
    assert parse_request({}, server=server) == BudgetRequest(1000)
    assert parse_request({}, server=server).notes == ()  # nobody asked for more
    for asked, words in ((5000, "5000 tokens"), (-1, "no limit")):
        lowered = parse_request({"thinking_budget": asked}, server=server)
        assert lowered.thinking_budget == 1000
        assert lowered.notes == (f"thinking_budget was lowered from {words} to 1000 tokens, the server's ceiling",)
    both = parse_request({"thinking_budget": 5000, "thinking_minimum": 3000}, server=server)
    assert (both.thinking_budget, both.minimum, len(both.notes)) == (1000, 1000, 2)
    effort = parse_request({"reasoning_effort": "high"}, server=server)
    assert (effort.thinking_budget, len(effort.notes)) == (1000, 1)


def test_a_servers_settings_are_read_and_checked() -> None:
    text = '{"default": 512, "ceiling": 4096, "efforts": {"low": 256}, "grace": 32}'
    server = BudgetServer.read(text)
    assert server == BudgetServer.read(json.loads(text)) == BudgetServer(512, 4096, {"low": 256}, 32)
    assert BudgetServer.read(None) == PLAIN
    assert hash(server) == hash(BudgetServer.read(text))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("[1]", "are a JSON object, not [1]"),
        ("{", "are not JSON"),
        ({"defalt": 1}, "have no 'defalt' (did you mean default?)"),
        ({"default": "5"}, 'default is a whole number of tokens, not "5"'),
        ({"grace": None}, "grace is a whole number of tokens, not null"),
        ({"efforts": {"low": None}}, "the effort 'low' is a whole number of tokens, not null"),
        ({"efforts": 3}, "efforts maps words to tokens"),
        ({"default": 5, "ceiling": 4}, "the default of 5 tokens lies above the ceiling of 4"),
        ({"stop_text": 4}, "thinking_stop_text is a text"),
    ],
)
def test_a_servers_faults_are_told(source: Any, words: str) -> None:
    with pytest.raises(BudgetRequestError) as caught:
        BudgetServer.read(source)
    assert words in str(caught.value)


def test_a_request_made_in_python_is_checked_too() -> None:
    with pytest.raises(ValueError, match="whole number"):
        BudgetRequest(True)
    with pytest.raises(ValueError, match="thinking_grace is a whole number of tokens, not null"):
        BudgetRequest(3, grace=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lies above"):
        BudgetRequest(3, minimum=4)


VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 40), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=2)
)


@settings(max_examples=150)
@given(
    args=st.dictionaries(st.sampled_from([*KEYS, "reasoning_effort", "thinking", "thinking_x"]), VALUES),
    default=st.none() | st.integers(0, 20),
    ceiling=st.none() | st.integers(20, 30),
    max_tokens=st.none() | st.integers(1, 40),
)
def test_whatever_is_asked_is_kept_or_refused_in_words(
    args: dict[str, Any], default: int | None, ceiling: int | None, max_tokens: int | None
) -> None:
    server = BudgetServer(default, ceiling, grace=2, minimum=5)
    try:
        asked = parse_request(args, server=server, max_tokens=max_tokens)
    except BudgetRequestError as error:
        assert error.problems
        assert all(problem and "\n" not in problem for problem in error.problems)
        return
    given_budget = args.get("thinking_budget")
    if ceiling is not None:
        assert asked.thinking_budget is not None
        assert asked.thinking_budget <= ceiling
    if given_budget is not None and (ceiling is None or 0 <= given_budget <= ceiling):
        assert asked.thinking_budget == (None if given_budget == -1 else given_budget)
    assert asked.minimum <= (asked.minimum if asked.thinking_budget is None else asked.thinking_budget)
