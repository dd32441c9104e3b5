"""The thinking budget in front of vLLM's server: `vllm serve --middleware posttrain.budget.server.app.ThinkingBudget`.

A request's body is translated when the route behind asks for it, so after vLLM has checked the API key. Its answer gets
the figures of `posttrain.budget.server.usage`. They come from the tokens that the engine delivers: the engine client's
`generate`, which every API calls, is wrapped once, and tells the request in whose context it is called.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from posttrain.budget.request import BudgetServer
from posttrain.budget.server.fields import Api, Fault, RequestRefused, translate
from posttrain.budget.server.metrics import metrics
from posttrain.budget.server.usage import Ledger, Open, Opened

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

ROUTES: dict[str, Api] = {
    "/v1/chat/completions": "chat",
    "/v1/chat/completions/batch": "chat",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
    "/v1/messages/count_tokens": "messages",
    "/invocations": "chat",
}
REQUESTS: dict[str, str] = {  # vLLM's own request of each route, asked whether it takes vllm_xargs
    "/v1/chat/completions": "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest",
    "/v1/chat/completions/batch": "vllm.entrypoints.openai.chat_completion.protocol:BatchChatCompletionRequest",
    "/v1/completions": "vllm.entrypoints.openai.completion.protocol:CompletionRequest",
    "/v1/responses": "vllm.entrypoints.openai.responses.protocol:ResponsesRequest",
    "/v1/messages": "vllm.entrypoints.anthropic.protocol:AnthropicMessagesRequest",
}
FETCHED = "/v1/responses/"  # and an id: an answer, or its events, once more
KEPT = 4096  # answers whose figures are remembered for that; vLLM itself forgets none
PLAYGROUND = "/playground"
# One page with all in it: it may ask this server, and nobody else.
PAGE_POLICY = (
    b"default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_ledger: ContextVar[Ledger | None] = ContextVar("posttrain_ledger", default=None)
_kept: OrderedDict[str, Ledger] = OrderedDict()  # by the id of the answer


class ThinkingBudget:
    """An ASGI middleware. Requests that ask for nothing, and routes of others, pass as they are."""

    def __init__(self, app: Application) -> None:
        self._app = app
        self._server = _settings()
        self._installed = False

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if not self._installed:
            self._installed = observe_engine(getattr(scope.get("app"), "state", None))
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] == "http" and scope["method"] == "POST" and path in ROUTES:
            await Exchange(path, self._server).run(self._app, scope, receive, send)
        elif scope["type"] == "http" and scope["method"] == "GET" and (ledger := _kept.get(_fetched(path))):
            await Exchange(path, self._server, ledger).run(self._app, scope, receive, send)
        elif scope["type"] == "http" and scope["method"] == "GET" and path == PLAYGROUND:
            await _send_page(send, _playground())
        else:
            await self._app(scope, receive, send)


class Exchange:
    """One request and its answer.

    Args:
        ledger: where the answer is fetched that another request asked for: what came of that one.
    """

    def __init__(self, path: str, server: BudgetServer, ledger: Ledger | None = None) -> None:
        self._path = path
        self._server = server
        self._ledger = ledger or Ledger(metrics().completion)
        self._body_came = ledger is not None  # then there is nothing to translate
        self._refusal: bytes | None = None
        self._start: Message | None = None  # of the answer, held back until its length is known
        self._streams = False
        self._rest = b""

    async def run(self, app: Application, scope: Message, receive: Receive, send: Send) -> None:
        token = _ledger.set(self._ledger)
        try:
            await app(scope, functools.partial(self._receive, receive), functools.partial(self._send, send))
        finally:
            _ledger.reset(token)

    # --- the request

    async def _receive(self, receive: Receive) -> Message:
        if self._body_came:
            return await receive()
        parts, more = [], True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return message
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        self._body_came = True
        return {"type": "http.request", "body": self._translated(b"".join(parts)), "more_body": False}

    def _translated(self, body: bytes) -> bytes:
        """The body as vLLM is to read it. What is no JSON object is vLLM's to refuse."""
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError):
            return body
        if not isinstance(fields, dict):
            return body
        api = ROUTES[self._path]
        if self._path == "/invocations" and "messages" not in fields:
            api = "completions"
        try:
            translated = translate(fields, api, self._server)
            if translated.arguments and self._path in _deaf():
                what = f"{self._path} of this vLLM passes no thinking budget on to the engine: use another route"
                raise RequestRefused([Fault("thinking_budget", what, "unsupported")])
        except RequestRefused as refused:
            raise self._refuse(refused, api) from None
        self._ledger.idle = bool(fields.get("use_beam_search"))
        if self._path == "/v1/messages/count_tokens":
            translated.body.pop("vllm_xargs", None)
        return body if translated.body == fields else json.dumps(translated.body).encode()

    def _refuse(self, refused: RequestRefused, api: Api) -> Exception:
        """What ends the route behind; the answer it then gives is replaced by the one prepared here."""
        from starlette.exceptions import HTTPException

        metrics().refusal(fault.reason for fault in refused.faults)
        error: dict[str, Any] = {"message": str(refused)}
        if api == "messages":
            answer = {"type": "error", "error": {"type": "invalid_request_error", **error}}
        else:
            answer = {"error": {**error, "type": "BadRequestError", "param": refused.faults[0].field, "code": 400}}
        self._refusal = json.dumps(answer).encode()
        return HTTPException(400, str(refused))

    # --- the answer

    async def _send(self, send: Send, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = {name.lower(): value for name, value in message["headers"]}
            kind = headers.get(b"content-type", b"")
            self._streams = kind.startswith(b"text/event-stream")
            held = self._refusal is not None or (message["status"] == 200 and kind.startswith(b"application/json"))
            if held:
                self._start = message
            else:
                await send(message)
        elif message["type"] != "http.response.body":
            await send(message)
        elif self._start is not None:
            self._rest += message.get("body", b"")
            if not message.get("more_body", False):
                await self._send_whole(send, self._start)
        elif self._streams:
            await send({**message, "body": self._complete_events(message)})
        else:
            await send(message)

    async def _send_whole(self, send: Send, start: Message) -> None:
        status, body = start["status"], self._rest
        if self._refusal is not None:
            status, body = 400, self._refusal
        else:
            body = self._ledger.complete(body)
            self._keep()
        ours = {b"content-type": b"application/json", b"content-length": str(len(body)).encode()}
        kept = [(name, value) for name, value in start["headers"] if name.lower() not in ours]
        await send({**start, "status": status, "headers": [*kept, *ours.items()]})
        await send({"type": "http.response.body", "body": body})

    def _complete_events(self, message: Message) -> bytes:
        *events, self._rest = (self._rest + message.get("body", b"")).split(b"\n\n")
        if not message.get("more_body", False):
            events, self._rest = ([*events, self._rest], b"") if self._rest else (events, b"")
        completed = b"".join(self._ledger.complete_event(event) + b"\n\n" for event in events)
        self._keep()
        return completed

    def _keep(self) -> None:
        """Remember what comes of an answer that can be fetched later."""
        name = self._ledger.answer_id
        if name is not None and name not in _kept and _stores():
            _kept[name] = self._ledger
            if len(_kept) > KEPT:
                _kept.popitem(last=False)


def observe_engine(state: Any) -> bool:
    """Let every request see the tokens that are generated for it. False while there is no engine client yet."""
    client = getattr(state, "engine_client", None)
    if client is None:
        return False
    if not hasattr(client.generate, "observed"):
        client.generate = _observed(client.generate, _opener(client.vllm_config))
    return True


def _observed(generate: Callable[..., Any], open_state: Open) -> Callable[..., Any]:
    @functools.wraps(generate)
    def observed(prompt: Any, sampling_params: Any, *rest: Any, **options: Any) -> Any:
        outputs = generate(prompt, sampling_params, *rest, **options)
        ledger = _ledger.get()
        return outputs if ledger is None else ledger.watch(outputs, sampling_params, open_state)

    observed.observed = True  # type: ignore[attr-defined]
    return observed


def _opener(vllm_config: Any) -> Open:
    """How a completion's state begins: as in the processor, from the same model and the same arguments."""
    from posttrain.budget.vllm_model import served_model

    model = served_model(vllm_config)

    def open_state(params: Any, prompt_ids: Sequence[int]) -> Opened:
        state, request = model.fresh(params, prompt_ids)
        return state(), request

    return open_state


def _settings() -> BudgetServer:
    from posttrain.budget.vllm_request import server_settings

    return server_settings()


def _stores() -> bool:
    """Whether this vLLM keeps the answers of /v1/responses."""
    return os.environ.get("VLLM_ENABLE_RESPONSES_API_STORE", "0") not in ("", "0")


def _fetched(path: str) -> str:
    """The id of the answer that a path fetches, or ""."""
    return path.removeprefix(FETCHED) if path.startswith(FETCHED) else ""


@functools.cache
def _deaf() -> frozenset[str]:
    """The routes whose requests have no `vllm_xargs` in the vLLM that is installed."""
    found = []
    for path, name in REQUESTS.items():
        module, _, request = name.partition(":")
        fields = getattr(getattr(sys.modules.get(module), request, None), "model_fields", None)
        if fields is not None and "vllm_xargs" not in fields:  # None: the route is not there, or is an older vLLM's
            found.append(path)
    return frozenset(found)


@functools.cache
def _playground() -> bytes:
    return (Path(__file__).parents[1] / "playground.html").read_bytes()


async def _send_page(send: Send, page: bytes) -> None:
    headers = [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-length", str(len(page)).encode()),
        (b"content-security-policy", PAGE_POLICY),
        (b"cache-control", b"no-cache"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": page})
