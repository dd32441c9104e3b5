"""The middleware in front of an application of any kind: what reaches it, and what becomes of its answers."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="the counters come with vLLM (make setup-vllm)")
pytest.importorskip("starlette", reason="vLLM's server is built on it (make setup-vllm)")

from posttrain.budget.request import BudgetRequest
from posttrain.budget.rule import BudgetRule
from posttrain.budget.server import app as server
from posttrain.budget.server.app import ThinkingBudget, observe_engine
from posttrain.budget.state import BudgetState

RULE = BudgetRule(open_ids=(1,), close_ids=(2,), stop_ids=(7, 8, 2, 9), eos_ids=frozenset({0}))
TOKENS = [1, 5, 5, 7, 8, 2, 9, 6, 0]
JSON = [(b"content-type", b"application/json"), (b"x-mine", b"1"), (b"content-length", b"999")]
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]


class Behind:
    """The application behind. It answers `parts`, after it has read the body (if `reads`) and generated TOKENS."""

    def __init__(self, *parts: bytes, headers: Any = JSON, status: int = 200, reads: bool = True) -> None:
        self.parts, self.headers, self.status, self.reads = parts, headers, status, reads
        self.body: bytes | None = None
        self.client = SimpleNamespace(generate=self._generate, vllm_config=None)
        self.state = SimpleNamespace(engine_client=self.client)

    async def _generate(self, prompt: Any, sampling_params: Any, request_id: str) -> Any:
        for at, token in enumerate(TOKENS):
            end = "stop" if at == len(TOKENS) - 1 else None
            output = SimpleNamespace(index=0, token_ids=[token], finish_reason=end)
            yield SimpleNamespace(prompt_token_ids=[4], outputs=[output])
            await asyncio.sleep(0)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.reads:
            try:
                self.body = (await receive())["body"]
            except Exception as error:  # a framework turns what is raised here into an answer of its own
                await self._answer(send, 400, [str(error).encode()])
                return
            params = SimpleNamespace(n=1, output_kind=SimpleNamespace(name="DELTA"))
            async for _ in self.client.generate("hi", params, "id"):
                pass
        await self._answer(send, self.status, list(self.parts))

    async def _answer(self, send: Any, status: int, parts: list[bytes]) -> None:
        await send({"type": "http.response.start", "status": status, "headers": self.headers})
        for part in parts[:-1]:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": parts[-1] if parts else b""})


@pytest.fixture(autouse=True)
def opener(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of a completion without a vLLM that would have a tokenizer."""

    def open_state(params: Any, prompt_ids: Any) -> Any:
        return BudgetState(RULE, 2), BudgetRequest(2)

    monkeypatch.setattr(server, "_opener", lambda config: open_state)


def exchange(
    behind: Behind, body: Any, path: str = "/v1/chat/completions", *, cut: int = 10**9, root: str = ""
) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body of what comes out. The request's body arrives in pieces of `cut` bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    pieces = [data[at : at + cut] for at in range(0, len(data), cut)] or [b""]
    sent: list[Any] = []

    async def receive() -> Any:
        if not pieces:
            return {"type": "http.disconnect"}
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": root + path, "root_path": root, "app": behind}
    asyncio.run(ThinkingBudget(behind)(scope, receive, send))
    start, *rest = sent
    assert start["type"] == "http.response.start"
    assert [message.get("more_body", False) for message in rest] == [True] * (len(rest) - 1) + [False]
    return start["status"], dict(start["headers"]), b"".join(message["body"] for message in rest)


ANSWER = b'{"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"completion_tokens":9}}'


@pytest.mark.parametrize("cut", [1, 7, 10**9])
@pytest.mark.parametrize("root", ["", "/behind/a/proxy"])
def test_a_request_is_translated_and_its_answer_gets_the_figures(cut: int, root: str) -> None:
    behind = Behind(ANSWER[:20], ANSWER[20:])
    status, headers, body = exchange(behind, {"thinking_budget": 2}, cut=cut, root=root)
    assert json.loads(behind.body or b"") == {"vllm_xargs": {"thinking_budget": 2}}
    assert status == 200
    assert json.loads(body)["choices"][0]["thinking"] == {"tokens": 2, "closed_by": "budget", "forced_tokens": 4}
    assert headers[b"content-length"] == str(len(body)).encode()
    assert headers[b"x-mine"] == b"1"


def test_a_refusal_takes_the_place_of_whatever_the_route_answers() -> None:
    behind = Behind(ANSWER)
    status, headers, body = exchange(behind, {"thinking_buget": 2})
    assert (status, behind.body) == (400, None)
    assert "did you mean thinking_budget" in json.loads(body)["error"]["message"]
    assert headers[b"content-length"] == str(len(body)).encode()
    assert headers[b"x-mine"] == b"1"  # what was put there on the way, for other origins say, stays


def test_who_is_turned_away_before_is_not_looked_at() -> None:
    behind = Behind(b"no", status=401, reads=False, headers=[(b"content-type", b"text/plain")])
    assert exchange(behind, {"thinking_buget": 2})[::2] == (401, b"no")


def test_streams_are_completed_wherever_they_are_cut() -> None:
    events = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\ndata: ' + ANSWER + b"\n\ndata: [DONE]\n\n"
    whole = exchange(Behind(events, headers=EVENTS), {"thinking_budget": 2})[2]
    assert whole.count(b'"closed_by":"budget"') == 1
    assert whole.endswith(b"data: [DONE]\n\n")
    for cut in (1, 5, 64):
        parts = [events[at : at + cut] for at in range(0, len(events), cut)]
        assert exchange(Behind(*parts, b"", headers=EVENTS), {"thinking_budget": 2})[2] == whole


def test_other_routes_and_bodies_pass_as_they_are() -> None:
    for path, body in (("/v1/embeddings", b'{"thinking_buget": 1}'), ("/v1/chat/completions", b"[1, 2]")):
        behind = Behind(b"{}")
        assert exchange(behind, body, path)[::2] == (200, b"{}")
        assert behind.body == body


def test_beams_are_left_out_of_the_figures() -> None:
    assert exchange(Behind(ANSWER), {"use_beam_search": True})[2] == ANSWER


def test_requests_at_the_same_time_see_their_own_tokens_only() -> None:
    behind = Behind(ANSWER)
    middleware = ThinkingBudget(behind)

    async def one(ask: dict[str, Any]) -> Any:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": json.dumps(ask).encode(), "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await middleware(
            {"type": "http", "method": "POST", "path": "/v1/chat/completions", "app": behind}, receive, send
        )
        return json.loads(sent[-1]["body"])

    async def many() -> list[Any]:
        return await asyncio.gather(*(one({"thinking_budget": 2}) for _ in range(20)))

    for answer in asyncio.run(many()):
        assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2


def test_the_engine_is_wrapped_once() -> None:
    behind = Behind(ANSWER)
    assert not observe_engine(SimpleNamespace())
    assert observe_engine(behind.state)
    first = behind.client.generate
    assert observe_engine(behind.state)
    assert behind.client.generate is first
