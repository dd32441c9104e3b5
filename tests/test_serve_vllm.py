"""A real vLLM behind `posttrain serve`: budgets, figures, refusals and counters on every API."""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib.util
import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import browser, find_browser
from tests.served import ANSWER, MODEL, PATHS, THOUGHT, Server, serving
from tests.test_playground import lanes, press, until

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (make setup-vllm)"),
]


def serving_with_store(patch: pytest.MonkeyPatch, *arguments: Any) -> contextlib.AbstractContextManager[Server]:
    """A server that keeps the answers of /v1/responses."""
    patch.setenv("VLLM_ENABLE_RESPONSES_API_STORE", "1")
    return serving(*arguments)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("served")
    options = ["--thinking-ceiling", "60", "--thinking-efforts", "none=0,low=6,high=30"]
    options += ["--thinking-stop-text", "\n</think>\n\n", "--api-key", "sesame"]
    with pytest.MonkeyPatch.context() as patch, serving_with_store(patch, directory, *options) as running:
        running.headers = {"authorization": "Bearer sesame"}
        yield running


def asked(api: str, **fields: Any) -> dict[str, Any]:
    """A request that is answered greedily, unless `fields` say otherwise."""
    body: dict[str, Any] = {"model": MODEL, "temperature": 0.0, **fields}
    if api == "responses":
        return {"max_output_tokens": 200, "input": "hi", **body}
    if api == "completions":
        return {"max_tokens": 200, "prompt": "hi\n", **body}
    return {"max_tokens": 200, "messages": [{"role": "user", "content": "hi <think>"}], **body}


def thinking_of(api: str, answer: dict[str, Any]) -> tuple[int, str | None]:
    usage = answer["usage"]
    details = usage["completion_tokens_details" if api in ("chat", "completions") else "output_tokens_details"]
    return details["thinking_tokens" if api == "messages" else "reasoning_tokens"], details["thinking_closed_by"]


def text_of(api: str, answer: dict[str, Any]) -> tuple[str, str]:
    """The reasoning and the answer."""
    if api == "completions":
        before, _, after = answer["choices"][0]["text"].partition("</think>")
        return (before, after) if after else ("", before)
    if api == "chat":
        message = answer["choices"][0]["message"]
        return message["reasoning"] or "", message["content"] or ""
    if api == "messages":
        parts = {part["type"]: part for part in answer["content"]}
        return parts.get("thinking", {}).get("thinking", ""), parts.get("text", {}).get("text", "")
    items = {item["type"]: item["content"][0]["text"] for item in answer["output"]}
    return items.get("reasoning", ""), items.get("message", "")


@pytest.mark.parametrize("api", PATHS)
@pytest.mark.parametrize(
    ("fields", "tokens", "closed_by"),
    [
        ({"thinking_budget": 20}, 20, "budget"),
        ({"thinking_token_budget": 20}, 20, "budget"),
        ({"thinking": {"type": "enabled", "budget_tokens": 7}}, 7, "budget"),
        ({"reasoning_effort": "low"}, 6, "budget"),
        ({"reasoning": {"effort": "high"}}, 30, "budget"),
        ({"thinking_budget": 20, "thinking_grace": 6}, 18, "grace"),
        ({"thinking_budget": 0}, 0, "budget"),
        ({}, 60, "budget"),
        ({"thinking_budget": -1}, 60, "budget"),
    ],
)
def test_every_api_keeps_the_budget(
    server: Server, api: str, fields: dict[str, Any], tokens: int, closed_by: str
) -> None:
    status, answer = server.post(PATHS[api], asked(api, **fields))
    assert status == 200, answer
    assert thinking_of(api, answer) == (tokens, closed_by)
    reasoning, content = text_of(api, answer)
    assert ("".join(THOUGHT) * 10).startswith(reasoning.removeprefix("<think>").rstrip("\n"))
    assert content.strip() == "".join(ANSWER)


@pytest.mark.parametrize("api", PATHS)
@pytest.mark.parametrize("fields", [{"enable_thinking": False}, {"thinking": {"type": "disabled"}}])
def test_every_api_can_be_told_not_to_think(server: Server, api: str, fields: dict[str, Any]) -> None:
    status, answer = server.post(PATHS[api], asked(api, **fields))
    assert status == 200, answer
    assert thinking_of(api, answer) == (0, "budget" if api == "completions" else None)
    assert text_of(api, answer)[1].strip() == "".join(ANSWER)


@pytest.mark.parametrize("api", PATHS)
def test_streams_end_with_the_figures(server: Server, api: str) -> None:
    fields: dict[str, Any] = {"thinking_budget": 9}
    if api in ("chat", "completions"):
        fields["stream_options"] = {"include_usage": True}
    events = server.stream(PATHS[api], asked(api, **fields))
    if api == "responses":
        last = next(event["response"] for event in events if event["type"] == "response.completed")
    else:
        last = [event for event in events if event.get("usage")][-1]
    assert thinking_of(api, last) == (9, "budget")
    if api in ("chat", "completions"):
        ends = [each for event in events for each in event["choices"] if each.get("finish_reason")]
        assert [end["thinking"]["closed_by"] for end in ends] == ["budget"]


def test_a_natural_end_is_told_from_the_budget(server: Server) -> None:
    _, answer = server.post(PATHS["chat"], asked("chat", temperature=1.0, n=24, thinking_budget=20))
    ends = [each["thinking"] for each in answer["choices"]]
    assert {end["closed_by"] for end in ends} == {"natural", "budget"}
    assert all(end["tokens"] == 20 for end in ends if end["closed_by"] == "budget")
    assert all(end["tokens"] % len(THOUGHT) == 0 for end in ends if end["closed_by"] == "natural")
    assert thinking_of("chat", answer) == (sum(end["tokens"] for end in ends), "mixed")


@pytest.mark.parametrize("background", [False, True])
def test_an_answer_that_is_fetched_later_has_the_figures(server: Server, background: bool) -> None:
    body = asked("responses", thinking_budget=7, background=background, store=True)
    status, answer = server.post(PATHS["responses"], body)
    assert status == 200, answer
    until_ended = time.monotonic() + 60
    fetched: dict[str, Any] = {}
    while fetched.get("status") != "completed" and time.monotonic() < until_ended:
        fetched = json.loads(server.get(f"{PATHS['responses']}/{answer['id']}"))
    assert thinking_of("responses", fetched) == (7, "budget")
    assert background or fetched["usage"] == answer["usage"]


def test_the_events_of_an_answer_in_the_background_end_with_the_figures_again(server: Server) -> None:
    events = server.stream(PATHS["responses"], asked("responses", thinking_budget=7, background=True, store=True))
    name = events[0]["response"]["id"]
    again = server.get(f"{PATHS['responses']}/{name}?stream=true")
    last = [json.loads(line.removeprefix("data: ")) for line in again.splitlines() if line.startswith("data: {")][-1]
    for each in (events[-1], last):
        assert thinking_of("responses", each["response"]) == (7, "budget")


def test_several_prompts_and_choices(server: Server) -> None:
    body = asked("completions", prompt=["hi\n", "yo\n", "x\n\n"], thinking_budget=8, temperature=1.0, n=2)
    _, answer = server.post(PATHS["completions"], body)
    assert [each["index"] for each in answer["choices"]] == list(range(6))
    for each in answer["choices"]:
        assert ("<think>" in each["text"]) == (each["thinking"]["closed_by"] is not None)
        assert each["thinking"]["tokens"] <= 8


def test_the_ceiling_is_told(server: Server) -> None:
    _, answer = server.post(PATHS["chat"], asked("chat", thinking_budget=1000))
    details = answer["usage"]["completion_tokens_details"]
    assert details["thinking_budget"] == details["reasoning_tokens"] == 60
    assert "lowered" in details["thinking_notes"][0]


def test_thinking_that_never_ended_is_told(server: Server) -> None:
    _, answer = server.post(PATHS["chat"], asked("chat", max_tokens=12))
    assert answer["choices"][0]["thinking"] == {"tokens": 11, "closed_by": "unclosed", "forced_tokens": 0}


@pytest.mark.parametrize("api", PATHS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"thinking_buget": 3}, "did you mean thinking_budget"),
        ({"enable_thinking": False, "thinking_budget": 3}, "switched off"),
        ({"thinking_budget": "3"}, "whole number"),
        ({"reasoning_effort": "hgih"}, "one of none, low, high"),
    ],
)
def test_refusals_have_the_shape_of_the_api(
    server: Server, api: str, stream: bool, fields: dict[str, Any], words: str
) -> None:
    status, answer = server.post(PATHS[api], asked(api, stream=stream, **fields))
    assert status == 400
    assert words in answer["error"]["message"]
    if api == "messages":
        assert (answer["type"], answer["error"]["type"]) == ("error", "invalid_request_error")
    else:
        assert answer["error"]["code"] == 400
        assert answer["error"]["param"] in fields


def test_the_clients_of_both_makers_understand(server: Server) -> None:
    openai, anthropic = pytest.importorskip("openai"), pytest.importorskip("anthropic")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="sesame", max_retries=0)
    ask = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
    found = client.chat.completions.create(**ask, extra_body={"thinking_budget": 12})
    assert found.usage.completion_tokens_details.reasoning_tokens == 12
    assert found.usage.completion_tokens_details.thinking_closed_by == "budget"
    with pytest.raises(openai.BadRequestError, match="did you mean thinking_budget"):
        client.chat.completions.create(**ask, extra_body={"thinking_bugdet": 12})
    other = anthropic.Anthropic(base_url=server.url, auth_token="sesame", api_key=None, max_retries=0)
    thinking = {"type": "enabled", "budget_tokens": 12}
    message = other.messages.create(
        model=MODEL, max_tokens=100, messages=ask["messages"], thinking=thinking, extra_body={"temperature": 0}
    )
    assert message.usage.output_tokens_details.thinking_tokens == 12
    with pytest.raises(anthropic.BadRequestError, match="less than max_tokens"):
        other.messages.create(model=MODEL, max_tokens=12, messages=ask["messages"], thinking=thinking)


def test_the_examples_of_the_documentation_run(server: Server) -> None:
    pytest.importorskip("openai"), pytest.importorskip("anthropic")
    page = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
    asked = re.findall(r"^curl -s localhost:8000(\S+).*?-d '(.*?)'$", page, re.MULTILINE | re.DOTALL)
    answers = [server.post(path, body.encode()) for path, body in asked]
    assert [status for status, _ in answers] == [200, 400]
    shown = [json.loads(block) for block in re.findall(r"^```json\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)]
    assert answers[1][1] == shown[1]
    assert answers[0][1]["choices"][0]["thinking"].keys() == shown[0]["choices"][0]["thinking"].keys()
    assert (
        answers[0][1]["usage"]["completion_tokens_details"].keys()
        == shown[0]["usage"]["completion_tokens_details"].keys()
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
            exec(block.replace("http://localhost:8000", server.url).replace('"none"', '"sesame"'), {})
    first, second, third = printed.getvalue().splitlines()
    assert re.fullmatch(r"20 budget|\d+ natural", first)
    assert second == "6"  # what `low` means to this server, and the first sentence ends no sooner
    assert re.fullmatch(r"\d+ end_turn", third)


def test_without_the_key_nothing_is_read(server: Server) -> None:
    before = server.get("/metrics")
    status, answer = server.post(PATHS["chat"], asked("chat", thinking_buget=3), authorization="Bearer wrong")
    assert (status, answer) == (401, {"error": "Unauthorized"})
    refused = "posttrain:thinking_requests_refused_total"
    assert lines(server.get("/metrics"), refused) == lines(before, refused)


def test_what_is_not_json_is_vllms_to_refuse(server: Server) -> None:
    for body in (b"{", b"[]", b'"x"', b""):
        status, answer = server.post(PATHS["chat"], body)
        assert status in (400, 422), answer


def test_the_playground_compares_on_this_server(server: Server, tmp_path: Path) -> None:
    binary = find_browser()
    if binary is None:
        pytest.skip("no Chromium here (POSTTRAIN_BROWSER names one)")
    with browser(binary, tmp_path) as page:
        page.call("Page.navigate", url=f"{server.url}/playground")
        until(page, "document.querySelector('.settings')?.open === true")  # a key is needed, and asked for
        page.evaluate("document.querySelector('#temperature').value = 0; document.querySelector('#key').focus()")
        page.call("Input.insertText", text="sesame")
        press(page, "Tab")
        until(page, f"document.querySelector('#model').value === '{MODEL}'")
        page.evaluate("document.querySelectorAll('.budget')[1].value = 7; document.querySelector('#question').focus()")
        page.call("Input.insertText", text="hi")
        press(page, "Enter", ctrl=True)
        until(page, "document.querySelector('#said').textContent.startsWith('Done.')", seconds=120)
        found = lanes(page)
    assert [(lane["thinking"], lane["reply"]) for lane in found] == [
        (tokens, "".join(ANSWER)) for tokens in ("0", "7", "60", "60")
    ]
    assert "lowered from 256" in found[2]["state"]
    assert found[1]["thoughts"].startswith("".join(THOUGHT).lstrip())


def test_counting_tokens_takes_the_same_fields(server: Server) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    counts = [
        server.post("/v1/messages/count_tokens", {**body, **fields})[1]["input_tokens"]
        for fields in ({}, {"thinking": {"type": "disabled"}}, {"enable_thinking": False})
    ]
    assert counts[0] + 4 == counts[1] == counts[2]  # <think>, two gaps, </think>


def test_a_route_that_cannot_carry_a_budget_refuses_it(server: Server) -> None:
    body = {"model": MODEL, "messages": [[{"role": "user", "content": "hi"}]], "thinking_budget": 3}
    status, answer = server.post("/v1/chat/completions/batch", body)
    assert status == 400, answer
    assert "passes no thinking budget on" in answer["error"]["message"]


def test_counters_stand_beside_vllms(server: Server) -> None:
    before = server.get("/metrics")
    server.post(PATHS["chat"], asked("chat", thinking_budget=10))
    server.post(PATHS["chat"], asked("chat", thinking_buget=10))
    after = server.get("/metrics")
    assert "vllm:generation_tokens_total" in after

    def grown(name: str) -> float:
        return sum(lines(after, name).values()) - sum(lines(before, name).values())

    assert grown("posttrain:thinking_budget_completions_total") == 1
    assert grown("posttrain:thinking_tokens_total") == 10
    assert grown('posttrain:thinking_closed_total{reason="budget"}') == 1
    assert grown('posttrain:thinking_requests_refused_total{reason="unknown"}') == 1
    assert lines(after, "posttrain:thinking_budget_unenforced_total") == {
        "posttrain:thinking_budget_unenforced_total": 0.0
    }


def test_many_at_once_do_not_mix(server: Server) -> None:
    budgets = [1 + 7 * at % 50 for at in range(60)]

    def ask(budget: int) -> tuple[int, str | None]:
        return thinking_of("chat", server.post(PATHS["chat"], asked("chat", thinking_budget=budget))[1])

    with concurrent.futures.ThreadPoolExecutor(30) as pool:
        assert list(pool.map(ask, budgets)) == [(budget, "budget") for budget in budgets]


def test_a_client_that_hangs_up_harms_nobody(server: Server) -> None:
    import http.client

    host = server.url.removeprefix("http://")
    for _ in range(5):
        line = http.client.HTTPConnection(host, timeout=30)
        body = json.dumps(asked("chat", stream=True, max_tokens=3000, vllm_xargs={"thinking_budget": 50}))
        line.request("POST", PATHS["chat"], body, {"content-type": "application/json", **server.headers})
        line.getresponse().read(10)
        line.close()
    status, answer = server.post(PATHS["chat"], asked("chat", thinking_budget=5))
    assert (status, thinking_of("chat", answer)) == (200, (5, "budget"))


def test_two_api_servers_count_together(tmp_path: Path) -> None:
    """Each is a process of its own, and vLLM hands connections to either."""
    budgets = list(range(1, 25))
    with serving(tmp_path, "--api-server-count", "2", "--thinking-ceiling", "20") as running:

        def ask(budget: int) -> tuple[int, str | None]:
            return thinking_of("chat", running.post(PATHS["chat"], asked("chat", thinking_budget=budget))[1])

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert list(pool.map(ask, budgets)) == [(min(budget, 20), "budget") for budget in budgets]
        status, answer = running.post(PATHS["chat"], asked("chat", thinking_buget=10))
        assert (status, answer["error"]["param"]) == (400, "thinking_buget")
        metrics = running.get("/metrics")
    for name, expected in (
        ("posttrain:thinking_budget_completions_total", 24),
        ("posttrain:thinking_tokens_total", sum(range(1, 21)) + 4 * 20),
        ("posttrain:thinking_requests_refused_total", 1), ("posttrain:thinking_budget_unenforced_total", 0),
    ):  # fmt: skip
        assert sum(lines(metrics, name).values()) == expected, name


def lines(metrics: str, start: str) -> dict[str, float]:
    found = (line.rpartition(" ") for line in metrics.splitlines() if line.startswith(start))
    return {name: float(value) for name, _, value in found}
