"""A client of OpenAI-compatible servers: many requests in flight, tried again where that helps.

Whoever asks a served model goes through `Endpoint`: a teacher's answers and log-probabilities, a judge, an evaluation.
It is called like any function; the event loop is its own. What a server does wrong becomes one line with a remedy.

| what happens | what is done |
|---|---|
| refused or broken connection, half an answer, HTTP 408, 409, 425, 429, 5xx | tried again for `patience` seconds, ever later |
| no answer within `timeout` seconds | tried again if `patience` is not spent, which counts from the first failure |
| HTTP 400, 413, 422 | the server's reason is handed back: this one request is refused, others may be right |
| HTTP 401, 403, 404 and others | an error at once |

When one request fails for good no further one is sent; those in flight are waited for and handed out before the error.
"""  # noqa: E501  a table

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from posttrain.errors import PosttrainError, Problem

if TYPE_CHECKING:
    import httpx

    from posttrain.recipe.endpoint import EndpointSpec

log = logging.getLogger("posttrain")

AGAIN = (408, 409, 425, 429)  # and every 5xx: the same request may be answered later
REFUSED = (400, 413, 422)
BROKEN_OFF = ("abort", "error")  # ends of an answer that is none
LONGEST_WAIT = 15.0  # seconds between two tries
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


class _Fault(Exception):
    """One try that failed. `again`: another one may succeed, after `after` seconds if the server said so."""

    def __init__(self, what: str, remedy: str, *, again: bool, after: float = 0.0) -> None:
        super().__init__(what)
        self.what, self.remedy, self.again, self.after = what, remedy, again, after


class Endpoint:
    """One model of one server.

    Args:
        spec: where it is and how it is asked.
        who: what messages call it, as "the teacher".
    """

    def __init__(self, spec: EndpointSpec, *, who: str = "the server") -> None:
        self.spec, self.who = spec, who
        self._told = 0.0  # when a wait was last spoken of

    @property
    def root(self) -> str:
        """The server's address without the API's version: vLLM's /tokenize and /health lie there."""
        return self.spec.endpoint.removesuffix("/v1")

    def check(self) -> None:
        """See that the server is up, takes the key, and has the model. One try: a server that is not there is told now.

        Raises:
            PosttrainError: it is not, does not, or has not.
        """
        names = self.names()
        if self.spec.model not in names:
            raise PosttrainError(
                Problem(
                    f"{self._named} has no model `{self.spec.model}`",
                    remedy=f"write one that it has: {', '.join(f'`{name}`' for name in names) or 'it has none'}",
                )
            )

    def names(self) -> list[str]:
        """What the server has, by name.

        Raises:
            PosttrainError: it does not say.
        """
        self._check_key()
        listed = self._once("GET", f"{self.spec.endpoint}/models")
        data = listed.get("data")
        entries = data if isinstance(data, list) else []
        return [str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry]

    def tokenize(self, text: str) -> list[int]:
        """The server's own token ids of a text (vLLM's /tokenize), no special tokens added.

        Raises:
            PosttrainError: the server does not answer, or has no such route.
        """
        body = {"model": self.spec.model, "prompt": text, "add_special_tokens": False}
        said = self._once("POST", f"{self.root}/tokenize", body)
        if not isinstance(said.get("tokens"), list):
            raise self._problem(_Fault("tells no token ids (/tokenize)", "serve the model with vLLM", again=False))
        return list(said["tokens"])

    def ask_all(
        self, path: str, bodies: Sequence[Mapping[str, Any]], progress: Callable[[int], None] = lambda done: None
    ) -> list[Reply]:
        """The replies to all requests, in order (`ask`)."""
        replies: list[Reply | None] = [None] * len(bodies)
        for reply in self.ask(path, bodies):
            replies[reply.place] = reply
            progress(1)
        return [reply for reply in replies if reply is not None]

    def ask(self, path: str, bodies: Iterable[Mapping[str, Any]]) -> Iterator[Reply]:
        """Send requests and hand out the replies as they come, `concurrency` in flight.

        Args:
            path: below the base URL, as "chat/completions"; one that begins with "/" is below the server's root.
            bodies: what is sent, without `model`; read as far as there is room, so it may be endless.

        Raises:
            PosttrainError: a request failed for good. What others were answered is handed out before.
        """
        self._check_key()
        url = f"{self.root}{path}" if path.startswith("/") else f"{self.spec.endpoint}/{path}"
        with asyncio.Runner() as runner:
            client = self._client()
            try:
                yield from self._in_flight(runner, client, url, enumerate(bodies))
            finally:
                with contextlib.suppress(RuntimeError):  # the loop is gone where the interpreter is ending
                    runner.run(client.aclose())

    def _in_flight(
        self, runner: asyncio.Runner, client: httpx.AsyncClient, url: str, waiting: Iterator[tuple[int, Any]]
    ) -> Iterator[Reply]:
        flying: set[asyncio.Task[Reply]] = set()
        fault: _Fault | None = None

        async def step() -> set[asyncio.Task[Reply]]:
            while fault is None and len(flying) < self.spec.concurrency:
                following = next(waiting, None)
                if following is None:
                    break
                place, body = following
                flying.add(asyncio.create_task(self._reply(client, url, place, body)))
            done, _ = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED) if flying else (set(), None)
            return done

        while done := runner.run(step()):
            flying -= done
            for task in done:
                try:
                    reply = task.result()
                except _Fault as error:
                    fault = fault or error
                else:
                    yield reply
        if fault is not None:
            raise self._problem(fault, tried=f" (tried for {self.spec.patience:g} s)" if fault.again else "")

    async def _reply(self, client: httpx.AsyncClient, url: str, place: int, body: Mapping[str, Any]) -> Reply:
        """One request, tried until it is answered, refused, or patience is spent."""
        failing_since: float | None = None
        wait = 0.5
        while True:
            try:
                return await self._try(client, "POST", url, {"model": self.spec.model, **body}, place)
            except _Fault as fault:
                now = time.monotonic()
                failing_since = now if failing_since is None else failing_since
                if not fault.again or now - failing_since >= self.spec.patience:
                    raise
                self._tell(fault, now)
                # Spread out: hundreds of requests failed at the same moment.
                await asyncio.sleep(max(fault.after, wait * random.uniform(0.5, 1.0)))
                wait = min(2 * wait, LONGEST_WAIT)

    def _tell(self, fault: _Fault, now: float) -> None:
        if now - self._told > LONGEST_WAIT:
            self._told = now
            log.warning("%s %s; trying again", self._named, fault.what)

    async def _try(self, client: httpx.AsyncClient, method: str, url: str, body: Any, place: int = 0) -> Reply:
        import httpx

        try:
            answer = await client.request(method, url, json=body)
        except httpx.TimeoutException as error:
            what = f"did not answer within {self.spec.timeout:g} s"
            remedy = "raise `timeout`, or ask for less: `concurrency`, `max_new_tokens`"
            raise _Fault(what, remedy, again=True) from error
        except httpx.InvalidURL as error:
            raise _Fault(f"has no usable address: {error}", "mend `endpoint`", again=False) from error
        except httpx.HTTPError as error:
            what = f"is not reachable: {str(error).strip() or type(error).__name__}"
            remedy = "start it, or mend `endpoint`; the same command then goes on, and what was answered is kept"
            raise _Fault(what, remedy, again=True) from error
        return self._read(answer, place)

    def _read(self, answer: httpx.Response, place: int) -> Reply:
        status = answer.status_code
        if status in REFUSED:
            return Reply(place, {}, _reason(answer))
        if status in AGAIN or status >= 500:
            after = answer.headers.get("retry-after", "")
            what = f"answers HTTP {status}: {_reason(answer)}"
            remedy = "look into its log; the same command goes on, and what was answered is kept"
            seconds = min(float(after), self.spec.patience) if after.isdigit() else 0.0
            raise _Fault(what, remedy, again=True, after=seconds)
        if status in (401, 403):
            remedy = "name the environment variable with its key under `api_key_env`"
            raise _Fault(f"refuses the key (HTTP {status})", remedy, again=False)
        if status >= 300:
            remedy = f"check `endpoint` and `model` (`{self.spec.model}`)"
            raise _Fault(f"answers HTTP {status}: {_reason(answer)}", remedy, again=False)
        try:
            body = answer.json()
        except ValueError as error:
            remedy = "check that `endpoint` is an OpenAI-compatible API"
            raise _Fault("answers something that is no JSON", remedy, again=True) from error
        if not isinstance(body, dict):
            raise _Fault("answers no JSON object", "check `endpoint`", again=False)
        if answer.request.url.path.endswith("completions"):
            choices = body.get("choices")
            if not isinstance(choices, list) or not choices or not all(isinstance(one, dict) for one in choices):
                what = f"answers without a completion: {_reason(answer)}"
                raise _Fault(what, "check that `endpoint` is an OpenAI-compatible API", again=True)
            if any(choice.get("finish_reason") in BROKEN_OFF for choice in choices):
                raise _Fault("broke an answer off", "look into its log", again=True)  # vLLM does when it is stopped
        return Reply(place, body)

    def _once(self, method: str, url: str, body: Any = None) -> dict[str, Any]:
        """One request without a second try."""

        async def send() -> Reply:
            async with self._client(timeout=min(self.spec.timeout, 30.0)) as client:
                return await self._try(client, method, url, body)

        try:
            reply = asyncio.run(send())
        except _Fault as fault:
            raise self._problem(fault, tried="") from fault.__cause__
        if reply.refused:
            raise self._problem(_Fault(f"refuses a request: {reply.refused}", "check `endpoint`", again=False))
        return reply.body

    def _client(self, timeout: float | None = None) -> httpx.AsyncClient:
        import httpx

        key = self.spec.key()
        return httpx.AsyncClient(
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout or self.spec.timeout, connect=min(10.0, self.spec.timeout), pool=None),
            limits=httpx.Limits(
                max_connections=None,
                max_keepalive_connections=self.spec.concurrency,
                keepalive_expiry=2.0,  # before servers close an idle connection: uvicorn after 5 s
            ),
            trust_env=urlsplit(self.spec.endpoint).hostname not in LOOPBACK,  # no proxy in front of this machine
        )

    def _check_key(self) -> None:
        if self.spec.api_key_env and not self.spec.key():
            what = f"the key of {self._named} is to be in ${self.spec.api_key_env}, which is not set"
            raise PosttrainError(Problem(what, remedy=f"export {self.spec.api_key_env}=..."))

    @property
    def _named(self) -> str:
        return f"{self.who} at {self.spec.endpoint}"

    def _problem(self, fault: _Fault, tried: str = "") -> PosttrainError:
        return PosttrainError(Problem(f"{self._named} {fault.what}{tried}", remedy=fault.remedy))


def _reason(answer: httpx.Response) -> str:
    """What a server says of an error, in one line."""
    text = answer.text
    with contextlib.suppress(ValueError, AttributeError):
        said = json.loads(text)
        inner = said.get("error", said)
        text = str(inner.get("message") or inner.get("detail") or text)
    line = " ".join(text.split())
    return (line if len(line) <= 300 else line[:297] + "...") or "no reason given"
