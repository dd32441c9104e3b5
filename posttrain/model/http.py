"""One request to a server, tried once: what it answers, or why it does not and whether another try may help.

aiohttp, not httpx: the latter's pool looks at every connection for every request. With 128 in flight a client on it
takes milliseconds of a core an answer, this one 0.3 (`benchmarks/endpoint_client.py`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic_core import from_json

if TYPE_CHECKING:
    import aiohttp

    from posttrain.recipe.endpoint import EndpointSpec

AGAIN = (408, 409, 425, 429)  # and every 5xx: the same request may be answered later
REFUSED = (400, 413, 422)
BROKEN_OFF = ("abort", "error")  # ends of an answer that is none
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Reply:
    """What became of one request.

    Attributes:
        place: of the request among those asked.
        body: the answer's JSON object; {} where it was refused.
        refused: the server's reason for refusing this request, or "".
    """

    place: int
    body: dict[str, Any]
    refused: str = ""


class Fault(Exception):
    """One try that failed. `again`: another one may succeed, after `after` seconds if the server said so."""

    def __init__(self, what: str, remedy: str, *, again: bool, after: float = 0.0) -> None:
        super().__init__(what)
        self.what, self.remedy, self.again, self.after = what, remedy, again, after


def open_session(spec: EndpointSpec, timeout: float) -> aiohttp.ClientSession:
    """Connections to a server, kept alive from request to request. Called inside the event loop.

    Args:
        timeout: seconds that one request may take.
    """
    import aiohttp

    key = spec.key()
    return aiohttp.ClientSession(
        headers={"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})},
        timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=min(10.0, timeout)),
        connector=aiohttp.TCPConnector(
            limit=0,  # `concurrency` is kept by who sends
            keepalive_timeout=2.0,  # before servers close an idle connection: uvicorn after 5 s
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=urlsplit(spec.endpoint).hostname not in LOOPBACK,  # no proxy in front of this machine
    )


async def send(
    session: aiohttp.ClientSession, method: str, url: str, body: Any, *, spec: EndpointSpec, place: int = 0
) -> Reply:
    """One try.

    Args:
        body: JSON; None sends none.

    Raises:
        Fault: there is no answer, or none that is one.
    """
    import aiohttp

    data = None if body is None else json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    try:
        async with session.request(method, url, data=data, allow_redirects=False) as answer:
            content, status, headers = await answer.read(), answer.status, answer.headers
    except TimeoutError as error:
        what = f"did not answer within {session.timeout.total:g} s"
        remedy = "raise `timeout`, or ask for less: `concurrency`, `max_new_tokens`"
        raise Fault(what, remedy, again=True) from error
    except aiohttp.InvalidURL as error:
        raise Fault(f"has no usable address: {error}", "mend `endpoint`", again=False) from error
    except ValueError as error:  # of a header; what the key is stays unsaid
        raise Fault("cannot be asked: no request can be made", "mend the key or `endpoint`", again=False) from error
    except (aiohttp.ClientError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)  # the address is told beside it
        what = f"is not reachable: {str(why or error).strip() or type(error).__name__}"
        remedy = "start it, or mend `endpoint`; the same command then goes on, and what was answered is kept"
        raise Fault(what, remedy, again=True) from error
    if status != 200:
        refused = _by_status(status, headers, content, spec)
        if refused:
            return Reply(place, {}, refused)
    return Reply(place, _read(content, url))


def _by_status(status: int, headers: Mapping[str, str], content: bytes, spec: EndpointSpec) -> str:
    """The server's reason for refusing this one request; "" where it did not."""
    if status in REFUSED:
        return _reason(content)
    if status in AGAIN or status >= 500:
        after = headers.get("retry-after", "")
        what = f"answers HTTP {status}: {_reason(content)}"
        remedy = "look into its log; the same command goes on, and what was answered is kept"
        seconds = min(float(after), spec.patience) if after.isdigit() else 0.0
        raise Fault(what, remedy, again=True, after=seconds)
    if status in (401, 403):
        remedy = "name the environment variable with its key under `api_key_env`"
        raise Fault(f"refuses the key (HTTP {status})", remedy, again=False)
    if status >= 300:
        remedy = f"check `endpoint` and `model` (`{spec.model}`)"
        raise Fault(f"answers HTTP {status}: {_reason(content)}", remedy, again=False)
    return ""


def _read(content: bytes, url: str) -> dict[str, Any]:
    """The JSON object of an answer; of a completion's, one that has its choices whole."""
    try:
        body = _parsed(content)
    except ValueError as error:
        remedy = "check that `endpoint` is an OpenAI-compatible API"
        raise Fault("answers something that is no JSON", remedy, again=True) from error
    if not isinstance(body, dict):
        raise Fault("answers no JSON object", "check `endpoint`", again=False)
    if url.endswith("completions"):
        choices = body.get("choices")
        chat = url.endswith("chat/completions")
        if not isinstance(choices, list) or not choices or not all(_is_choice(one, chat) for one in choices):
            what = f"answers without a completion: {_reason(content)}"
            raise Fault(what, "check that `endpoint` is an OpenAI-compatible API", again=True)
        if chat and not all(_is_text(choice["message"]) for choice in choices):
            what = f"answers a message that is no text: {_reason(content)}"
            raise Fault(what, "check that `endpoint` is an OpenAI-compatible API", again=False)
        if any(choice.get("finish_reason") in BROKEN_OFF for choice in choices):
            raise Fault("broke an answer off", "look into its log", again=True)  # vLLM does when it is stopped
    return body


def _is_choice(one: Any, chat: bool) -> bool:
    return isinstance(one, dict) and (not chat or isinstance(one.get("message"), dict))


def _is_text(one: dict[str, Any]) -> bool:
    """Whether a message's words are text, and its calls a list of objects; each may be missing."""
    words = (one.get(key) for key in ("content", "reasoning", "reasoning_content"))
    calls = one.get("tool_calls") or []
    return all(isinstance(said, str | None) for said in words) and (
        isinstance(calls, list) and all(isinstance(call, dict) for call in calls)
    )


def _parsed(content: bytes) -> Any:
    """The JSON of an answer. Half a surrogate pair, which no file takes, becomes U+FFFD."""
    try:
        return from_json(content, cache_strings="keys")  # twice as fast as json on megabytes of log-probabilities
    except ValueError:
        text = json.dumps(json.loads(content), ensure_ascii=False)
        return json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def _reason(content: bytes) -> str:
    """What a server says of an error, in one line."""
    text = content.decode(errors="replace")
    with contextlib.suppress(ValueError, AttributeError):
        said = json.loads(text)
        inner = said.get("error", said)
        text = str(inner.get("message") or inner.get("detail") or text)
    line = " ".join(text.split())
    return (line if len(line) <= 300 else line[:297] + "...") or "no reason given"
