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
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from posttrain.errors import PosttrainError, Problem
from posttrain.model.http import Fault, Reply, open_session, send

if TYPE_CHECKING:
    import aiohttp

    from posttrain.recipe.endpoint import EndpointSpec

log = logging.getLogger("posttrain")

LONGEST_WAIT = 15.0  # seconds between two tries


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
            raise self._problem(Fault("tells no token ids (/tokenize)", "serve the model with vLLM", again=False))
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
        for _, reply in ask_together([(self, path, bodies)]):
            yield reply

    def fly(self, path: str, bodies: Iterable[Mapping[str, Any]], wake: asyncio.Event) -> _Flight:
        """The requests in flight, of which none is sent yet; `wake` is set whenever one ends."""
        self._check_key()
        url = f"{self.root}{path}" if path.startswith("/") else f"{self.spec.endpoint}/{path}"
        return _Flight(self, url, enumerate(bodies), wake)

    def failed(self, fault: Fault) -> PosttrainError:
        """The error that a request comes to which failed for good."""
        return self._problem(fault, tried=f" (tried for {self.spec.patience:g} s)" if fault.again else "")

    async def reply(self, session: aiohttp.ClientSession, url: str, place: int, body: Mapping[str, Any]) -> Reply:
        """One request, tried until it is answered, refused, or patience is spent."""
        failing_since: float | None = None
        wait = 0.5
        while True:
            try:
                whole = {"model": self.spec.model, **body}
                return await send(session, "POST", url, whole, spec=self.spec, place=place)
            except Fault as fault:
                now = time.monotonic()
                failing_since = now if failing_since is None else failing_since
                if not fault.again or now - failing_since >= self.spec.patience:
                    raise
                self._tell(fault, now)
                # Spread out: hundreds of requests failed at the same moment.
                await asyncio.sleep(max(fault.after, wait * random.uniform(0.5, 1.0)))
                wait = min(2 * wait, LONGEST_WAIT)

    def _tell(self, fault: Fault, now: float) -> None:
        if now - self._told > LONGEST_WAIT:
            self._told = now
            log.warning("%s %s; trying again", self._named, fault.what)

    def _once(self, method: str, url: str, body: Any = None) -> dict[str, Any]:
        """One request without a second try."""

        async def once() -> Reply:
            async with open_session(self.spec, min(self.spec.timeout, 30.0)) as session:
                return await send(session, method, url, body, spec=self.spec)

        try:
            reply = asyncio.run(once())
        except Fault as fault:
            raise self._problem(fault, tried="") from fault.__cause__
        if reply.refused:
            raise self._problem(Fault(f"refuses a request: {reply.refused}", "check `endpoint`", again=False))
        return reply.body

    def _check_key(self) -> None:
        if self.spec.api_key_env and not self.spec.key():
            what = f"the key of {self._named} is to be in ${self.spec.api_key_env}, which is not set"
            raise PosttrainError(Problem(what, remedy=f"export {self.spec.api_key_env}=..."))

    @property
    def _named(self) -> str:
        return f"{self.who} at {self.spec.endpoint}"

    def _problem(self, fault: Fault, tried: str = "") -> PosttrainError:
        return PosttrainError(Problem(f"{self._named} {fault.what}{tried}", remedy=fault.remedy))


Asked = tuple[Endpoint, str, Iterable[Mapping[str, Any]]]
"""A model, and path and bodies as `Endpoint.ask` takes them."""


def ask_together(asked: Sequence[Asked]) -> Iterator[tuple[int, Reply]]:
    """Ask several models at the same time, each as `Endpoint.ask` does: replies, each with the place of its model.

    The event loop runs inside a step alone. What is done between two steps (a reply parsed and written down) takes
    milliseconds at most, and the servers' next answers wait in the sockets.

    Raises:
        PosttrainError: a request failed for good; none is sent after it to any of them.
    """
    with asyncio.Runner() as runner:
        wake = asyncio.Event()
        flights = [endpoint.fly(path, bodies, wake) for endpoint, path, bodies in asked]
        try:
            while done := runner.run(_step(flights, wake)):
                yield from done
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is gone where the interpreter is ending
                runner.run(_end(flights))
        for (endpoint, _, _), flight in zip(asked, flights, strict=True):
            if flight.fault is not None:
                raise endpoint.failed(flight.fault)


async def _step(flights: Sequence[_Flight], wake: asyncio.Event) -> list[tuple[int, Reply]]:
    """Replies that came, at least one; [] once there is nothing to wait for."""
    for flight in flights:
        flight.fill()
    replies: list[tuple[int, Reply]] = []
    while not replies and any(flight.flying for flight in flights):
        await wake.wait()
        wake.clear()
        for place, flight in enumerate(flights):
            replies += [(place, reply) for reply in flight.land()]
        if any(flight.fault is not None for flight in flights):
            for flight in flights:
                flight.open = False
        for flight in flights:
            flight.fill_later()
    await asyncio.sleep(0)  # what is asked next is on its way before anybody looks at the replies
    return replies


async def _end(flights: Sequence[_Flight]) -> None:
    for flight in flights:
        await flight.end()


class _Flight:
    """Requests in flight: as many as there is room for, a new one as soon as one ends."""

    def __init__(
        self, endpoint: Endpoint, url: str, waiting: Iterator[tuple[int, Mapping[str, Any]]], wake: asyncio.Event
    ) -> None:
        self._endpoint, self._url, self._waiting, self._wake = endpoint, url, waiting, wake
        self._session: aiohttp.ClientSession | None = None
        self.flying: set[asyncio.Task[Reply]] = set()
        self._landed: list[asyncio.Task[Reply]] = []
        self._unreadable: Exception | None = None  # what reading the next request raised
        self.open = True
        """Whether further requests are sent."""
        self.fault: Fault | None = None
        """The first request that failed for good."""

    def land(self) -> Iterator[Reply]:
        """The replies that came since the last time."""
        landed, self._landed = self._landed, []
        for task in landed:
            self.flying.remove(task)
            try:
                yield task.result()
            except Fault as fault:
                self.fault = self.fault or fault

    def fill_later(self) -> None:
        """`fill`; what reading a request raises is told at the next one, once what came is handed out."""
        try:
            self.fill()
        except Exception as error:
            self._unreadable = error

    def fill(self) -> None:
        """Send as many requests as there is room for."""
        if self._unreadable is not None:
            raise self._unreadable
        while self.open and len(self.flying) < self._endpoint.spec.concurrency:
            following = next(self._waiting, None)
            if following is None:
                return
            if self._session is None:
                self._session = open_session(self._endpoint.spec, self._endpoint.spec.timeout)
            task = asyncio.create_task(self._endpoint.reply(self._session, self._url, *following))
            self.flying.add(task)
            task.add_done_callback(self._land)

    def _land(self, task: asyncio.Task[Reply]) -> None:
        self._landed.append(task)
        self._wake.set()

    async def end(self) -> None:
        """Give up what is in flight."""
        for task in self.flying:
            task.cancel()
        await asyncio.gather(*self.flying, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
