"""The thinking fields of a request: what they become, which are refused, in which words."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.budget.request import EFFORTS, BudgetServer, parse_request
from posttrain.budget.server.fields import OURS, Api, RequestRefused, translate

APIS: tuple[Api, ...] = ("chat", "completions", "responses", "messages")
CHATS: tuple[Api, ...] = ("chat", "responses", "messages")
SERVER = BudgetServer()


def arguments(body: dict[str, Any], api: Api = "chat", server: BudgetServer = SERVER) -> dict[str, Any]:
    return translate(body, api, server).arguments


def refused(body: dict[str, Any], api: Api = "chat", server: BudgetServer = SERVER) -> RequestRefused:
    with pytest.raises(RequestRefused) as caught:
        translate(body, api, server)
    return caught.value


# --- what they become


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    "fields",
    [
        {"thinking_budget": 300},
        {"thinking_token_budget": 300},
        {"thinking": {"type": "enabled", "budget_tokens": 300}},
        {"chat_template_kwargs": {"thinking_budget": 300}},
        {"vllm_xargs": {"thinking_budget": 300}},
        {"thinking_budget": 300, "thinking_token_budget": 300, "enable_thinking": True},
        {"thinking_budget": 300, "thinking_token_budget": None, "enable_thinking": None, "thinking": None},
    ],
)
def test_a_budget_is_one_whatever_it_is_called(fields: dict[str, Any], api: Api) -> None:
    translated = translate({"model": "m", **fields}, api, SERVER)
    assert translated.arguments == translated.body["vllm_xargs"] == {"thinking_budget": 300}
    assert translated.body["model"] == "m"
    assert not set(OURS) & translated.body.keys()


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    "fields",
    [
        {"enable_thinking": False},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"thinking": {"type": "disabled"}},
        {"reasoning_effort": "none"},
        {"reasoning": {"effort": "none"}},
        {"enable_thinking": False, "thinking_budget": 0},
        {"enable_thinking": False, "thinking_budget": -1},
        {"enable_thinking": False, "reasoning_effort": "none", "thinking": {"type": "disabled"}},
    ],
)
def test_no_thinking_is_said_to_the_template_and_to_the_budget(fields: dict[str, Any], api: Api) -> None:
    translated = translate(fields, api, SERVER)
    assert translated.arguments == {"thinking_budget": 0}
    if api != "completions":
        assert translated.body["chat_template_kwargs"]["enable_thinking"] is False


@pytest.mark.parametrize("api", CHATS)
@pytest.mark.parametrize("kind", ["enabled", "adaptive"])
def test_thinking_switched_on_reaches_the_template_and_limits_nothing(api: Api, kind: str) -> None:
    fields: dict[str, Any] = {"thinking": {"type": kind}, "chat_template_kwargs": {"other": 1}}
    if api == "messages" and kind == "enabled":
        fields["thinking"]["budget_tokens"] = 9
    translated = translate(fields, api, SERVER)
    assert translated.body["chat_template_kwargs"] == {"other": 1, "enable_thinking": True}
    assert translated.arguments == ({"thinking_budget": 9} if "budget_tokens" in fields["thinking"] else {})


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("word", [word for word in EFFORTS if word != "none"])
def test_an_effort_is_the_servers_budget(word: str, api: Api) -> None:
    for fields in ({"reasoning_effort": word}, {"reasoning": {"effort": word}}, {"output_config": {"effort": word}}):
        found = arguments(fields, api)
        assert found == {"reasoning_effort": word}
        assert parse_request(found, server=SERVER).thinking_budget == EFFORTS[word]


def test_a_word_of_the_servers_own_is_an_effort_but_none_for_vllms_field() -> None:
    server = BudgetServer(efforts={"brief": 7, "low": 9})
    assert "reasoning_effort" not in translate({"reasoning_effort": "brief"}, "chat", server).body
    assert translate({"reasoning_effort": "low"}, "chat", server).body["reasoning_effort"] == "low"


def test_further_keys_pass_at_the_top_level_and_in_vllm_xargs() -> None:
    fields = {"thinking_grace": 16, "thinking_stop_text": "", "vllm_xargs": {"thinking_answer_reserve": 5, "other": 2}}
    translated = translate(fields, "chat", SERVER)
    assert translated.arguments == {"thinking_grace": 16, "thinking_stop_text": "", "thinking_answer_reserve": 5}
    assert translated.body["vllm_xargs"] == {**translated.arguments, "other": 2}


@pytest.mark.parametrize("api", APIS)
def test_a_request_without_such_fields_is_left_alone(api: Api) -> None:
    body = {
        "model": "m", "messages": [], "max_tokens": 9, "reasoning": {"summary": "auto"}, "include_reasoning": False,
        "chat_template_kwargs": {"clear_thinking": True, "preserve_thinking": False}, "vllm_xargs": {"mine": 1},
        "repetition_penalty": 1.1, "seed": 1, "tool_choice": "auto", "stop_token_ids": [1], "user": "u",
    }  # fmt: skip
    translated = translate(body, api, SERVER)
    assert translated.body == body
    assert translated.arguments == {}


def test_the_body_given_is_not_changed() -> None:
    body = {"thinking_budget": 3, "enable_thinking": True, "chat_template_kwargs": {"a": 1}, "vllm_xargs": {"b": 2}}
    before = json.dumps(body)
    translate(body, "chat", SERVER)
    assert json.dumps(body) == before


# --- what is refused


@pytest.mark.parametrize(
    ("field", "meant"),
    [
        ("thinking_buget", "thinking_budget"),
        ("thinkingBudget", "thinking_budget"),
        ("thinking-budget", "thinking_budget"),
        ("thinkin_budget", "thinking_budget"),
        ("enable_thinkng", "enable_thinking"),
        ("enableThinking", "enable_thinking"),
        ("enable_think", "enable_thinking"),
        ("resoning_effort", "reasoning_effort"),
        ("reasoning_efort", "reasoning_effort"),
        ("thinking_token_buget", "thinking_token_budget"),
        ("thinking_answer_reserv", "thinking_answer_reserve"),
        ("max_thinking_tokens", "thinking_budget"),
        ("reasoning_budget", "thinking_budget"),
        ("thoughts_thinking", "thinking_budget"),
    ],
)
@pytest.mark.parametrize("api", APIS)
def test_near_misses_are_refused_with_what_was_meant(field: str, meant: str, api: Api) -> None:
    error = refused({field: 12}, api)
    assert field in str(error)
    assert "did you mean" in str(error)
    assert meant in str(error)
    assert [fault.reason for fault in error.faults] == ["unknown"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"chat_template_kwargs": {"enable_thinkin": False}}, "did you mean enable_thinking"),
        ({"chat_template_kwargs": {"thinking_buget": 3}}, "did you mean thinking_budget"),
        ({"thinking": {"type": "enabled", "budget": 3}}, "thinking.budget is unknown"),
        ({"thinking": {"type": "enabled", "budget_token": 3}}, "did you mean budget_tokens"),
        ({"reasoning": {"efort": "low"}}, "did you mean effort"),
        ({"reasoning": {"max_tokens": 100}}, "reasoning.max_tokens is unknown"),
        ({"extra_body": {"thinking_budget": 3}}, "at the top level"),
        ({"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}, "at the top level"),
        ({"extra_body": {"vllm_xargs": {"thinking_budget": 3}}}, "at the top level"),
        ({"extra_args": {"thinking_budget": 3}}, "at the top level"),
        ({"vllm_xargs": {"thinking_buget": 3}}, "did you mean thinking_budget"),
        ({"vllm_xargs": {"thinkingBudget": 3}}, "vllm_xargs.thinkingBudget is unknown"),
        ({"vllm_xargs": {"enable_thinking": False}}, "did you mean enable_thinking at the top level"),
        ({"vllm_xargs": {"thinking": "disabled"}}, "did you mean thinking at the top level"),
        ({"budget_tokens": 3}, "did you mean thinking.budget_tokens"),
        ({"effort": "low"}, "did you mean reasoning_effort"),
    ],
)
def test_near_misses_inside_are_refused(fields: dict[str, Any], words: str) -> None:
    assert words in str(refused(fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"enable_thinking": False, "thinking_budget": 5},
        {"chat_template_kwargs": {"enable_thinking": False}, "thinking_budget": 5},
        {"thinking": {"type": "disabled"}, "thinking_budget": 5},
        {"thinking": {"type": "disabled", "budget_tokens": 5}},
        {"thinking": {"type": "adaptive", "budget_tokens": 5}},
        {"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}},
        {"enable_thinking": False, "thinking": {"type": "enabled", "budget_tokens": 5}},
        {"enable_thinking": True, "reasoning_effort": "none"},
        {"enable_thinking": False, "reasoning_effort": "low"},
        {"enable_thinking": False, "thinking_minimum": 5},
        {"thinking_budget": 5, "thinking_token_budget": 6},
        {"thinking_budget": 5, "thinking": {"type": "enabled", "budget_tokens": 6}},
        {"thinking_budget": 5, "vllm_xargs": {"thinking_budget": 6}},
        {"reasoning_effort": "low", "reasoning": {"effort": "high"}},
        {"thinking_grace": 1, "vllm_xargs": {"thinking_grace": 2}},
    ],
)
@pytest.mark.parametrize("api", APIS)
def test_contradictions_are_refused(fields: dict[str, Any], api: Api) -> None:
    error = refused(fields, api)
    assert "contradiction" in {fault.reason for fault in error.faults}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"thinking_budget": "12"}, "thinking_budget is a whole number"),
        ({"thinking_budget": 1.5}, "thinking_budget is a whole number"),
        ({"thinking_budget": True}, "thinking_budget is a whole number"),
        ({"thinking_budget": [3]}, "thinking_budget is a whole number"),
        ({"thinking_budget": -2}, "thinking_budget is at least -1"),
        ({"enable_thinking": "false"}, "enable_thinking is true or false"),
        ({"enable_thinking": 0}, "enable_thinking is true or false"),
        ({"chat_template_kwargs": {"enable_thinking": "no"}}, "enable_thinking is true or false"),
        ({"enable_thinking": False, "thinking_budget": "x"}, "thinking_budget is a whole number"),
        ({"reasoning_effort": "hgih"}, "reasoning_effort is one of"),
        ({"reasoning_effort": 3}, "reasoning_effort is one of"),
        ({"enable_thinking": False, "reasoning_effort": {}}, "reasoning_effort {} asks for it"),
        ({"enable_thinking": False, "reasoning_effort": ["low"]}, "reasoning_effort ['low'] asks for it"),
        ({"thinking": True}, "thinking is an object"),
        ({"thinking": {"type": "on"}}, "thinking.type is enabled, disabled or adaptive"),
        ({"thinking": {"budget_tokens": 4}}, "thinking.type is enabled"),
        ({"thinking": {"type": "enabled", "budget_tokens": "4"}}, "thinking.budget_tokens is a number"),
        ({"thinking": {"type": "enabled", "budget_tokens": -1}}, "thinking.budget_tokens is a number"),
        ({"chat_template_kwargs": 3}, "chat_template_kwargs is an object"),
        ({"vllm_xargs": [1]}, "vllm_xargs is an object"),
        ({"reasoning": "low"}, "reasoning is an object"),
        ({"output_config": "low"}, "output_config is an object"),
        ({"output_config": []}, "output_config is an object"),
        ({"thinking_budget": 10**30}, "thinking_budget is at most"),
        ({"thinking_minimum": 9, "thinking_budget": 4}, "thinking_minimum 9 lies above"),
        ({"thinking_budget": 9, "reasoning_effort": "low"}, "contradicts reasoning_effort"),
        ({"use_beam_search": True, "thinking_budget": 4}, "use_beam_search"),
    ],
)
@pytest.mark.parametrize("api", APIS)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], words: str, api: Api) -> None:
    assert words in str(refused(fields, api))


def test_everything_wrong_is_told_at_once() -> None:
    error = refused({"thinking_buget": 1, "enable_thinkng": True, "thinking": {"type": "on"}, "vllm_xargs": 3})
    assert len(error.faults) == 4
    assert {fault.field for fault in error.faults} == {
        "thinking_buget",
        "enable_thinkng",
        "thinking.type",
        "vllm_xargs",
    }


def test_anthropics_own_rules_hold_on_its_api_only() -> None:
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 50}, "max_tokens": 50}
    assert "less than max_tokens" in str(refused(thinking, "messages"))
    assert arguments({**thinking, "max_tokens": 51}, "messages") == {"thinking_budget": 50}
    assert arguments(thinking, "chat") == {"thinking_budget": 50}
    assert "budget_tokens is missing" in str(refused({"thinking": {"type": "enabled"}}, "messages"))
    assert arguments({"thinking": {"type": "enabled"}}, "chat") == {}


def test_a_reserve_is_held_against_what_the_api_calls_the_most_tokens() -> None:
    most: dict[Api, str] = {"chat": "max_completion_tokens", "responses": "max_output_tokens", "messages": "max_tokens"}
    for api, name in most.items():
        assert "leaves no token" in str(refused({"thinking_answer_reserve": 9, name: 9}, api))
        assert arguments({"thinking_answer_reserve": 9, name: 10}, api)


def test_beams_are_refused_where_the_server_limits_every_request() -> None:
    assert arguments({"use_beam_search": True}) == {}
    assert "use_beam_search" in str(refused({"use_beam_search": True}, server=BudgetServer(ceiling=9)))


# --- properties

VALUES = st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.text(max_size=4) | st.just("low")
OBJECTS = st.dictionaries(
    st.sampled_from(["type", "budget_tokens", "effort", "enable_thinking", "thinking_budget", "a"]), VALUES, max_size=3
)
BODIES = st.dictionaries(
    st.sampled_from([*OURS, "reasoning", "output_config", "chat_template_kwargs", "vllm_xargs", "max_tokens"])
    | st.text(max_size=12),
    VALUES | OBJECTS | st.lists(VALUES, max_size=2) | st.sampled_from([{"type": "enabled"}, {"type": "disabled"}]),
    max_size=6,
)


@settings(max_examples=500)
@given(body=BODIES, api=st.sampled_from(APIS))
def test_whatever_comes_is_refused_in_words_or_is_a_request_the_budget_takes(body: dict[str, Any], api: Api) -> None:
    try:
        translated = translate(body, api, SERVER)
    except RequestRefused as error:
        assert error.faults
        assert all(fault.what and fault.field for fault in error.faults)
        return
    parse_request(translated.arguments, server=SERVER)
    assert not (set(OURS) - {"reasoning_effort"}) & translated.body.keys()
    assert translate(translated.body, api, SERVER).arguments == translated.arguments  # nothing is lost or said twice


def test_equal_words_in_every_pair_of_places_agree_and_different_ones_never_do() -> None:
    places: list[Any] = [
        lambda n: {"thinking_budget": n},
        lambda n: {"thinking_token_budget": n},
        lambda n: {"thinking": {"type": "enabled", "budget_tokens": n}},
        lambda n: {"chat_template_kwargs": {"thinking_budget": n}},
        lambda n: {"vllm_xargs": {"thinking_budget": n}},
    ]
    for first, second in itertools.permutations(places, 2):
        assert arguments({**first(5), **second(5)}) == {"thinking_budget": 5}
        assert "contradicts" in str(refused({**first(5), **second(6)}))


def test_a_request_costs_less_than_a_millisecond() -> None:
    body = {
        "model": "m", "messages": [{"role": "user", "content": "x" * 4000}], "max_tokens": 100, "temperature": 1.0,
        "top_p": 1.0, "stream": True, "thinking_budget": 100, "thinking_grace": 8, "stream_options": {}, "seed": 1,
        "stop": ["a"], "tools": [], "tool_choice": "auto", "presence_penalty": 0.1, "user": "someone",
    }  # fmt: skip
    text = json.dumps(body)

    def once() -> float:
        began = time.process_time()
        for _ in range(100):
            json.dumps(translate(json.loads(text), "chat", SERVER).body)
        return (time.process_time() - began) / 100

    assert min(once() for _ in range(5)) < 1e-3


def test_a_body_of_many_strange_keys_is_no_burden() -> None:
    body = {f"thing_budget_{at:05}": at for at in range(5000)}
    began = time.process_time()
    translate(body, "chat", SERVER)
    assert time.process_time() - began < 0.2


def test_a_contradiction_is_told_in_the_words_that_were_sent() -> None:
    error = refused({"enable_thinking": True, "reasoning_effort": "none"})
    assert "enable_thinking (True) contradicts reasoning_effort ('none')" in str(error)
    error = refused({"enable_thinking": True, "thinking": {"type": "disabled"}})
    assert "enable_thinking (True) contradicts thinking.type ('disabled')" in str(error)
