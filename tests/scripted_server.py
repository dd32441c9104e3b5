"""A small OpenAI-compatible server on this machine whose answers and faults a test decides."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


class Scripted:
    """What the server is to do, and what it was asked.

    Attributes:
        url: its base URL.
        models: the names it lists.
        answer: a request's path and body -> the answer's JSON, or (status, JSON), or (status, JSON, headers); it may
            raise `Hangup` to close the connection in the middle of an answer, and sleep to be slow.
        asked: (path, body, headers) of every request but those for the list of models.
        in_flight, most_in_flight: requests being answered now, and at most.
        connections: opened so far.
    """

    def __init__(self, answer: Callable[[str, Body], Any]) -> None:
        self.answer = answer
        self.models = ["teacher"]
        self.asked: list[tuple[str, Body, dict[str, str]]] = []
        self.in_flight = self.most_in_flight = self.connections = 0
        self.lock = threading.Lock()
        self.url = ""


class Hangup(Exception):
    """Half an answer, and the connection is closed."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


@contextlib.contextmanager
def scripted(answer: Callable[[str, Body], Any], port: int = 0) -> Iterator[Scripted]:
    """A server that answers by a function, until the block ends."""
    script = Scripted(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            with script.lock:
                script.connections += 1

        def do_GET(self) -> None:
            self._send(200, {"object": "list", "data": [{"id": name} for name in script.models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with script.lock:
                script.asked.append((self.path, body, {key.lower(): value for key, value in self.headers.items()}))
                script.in_flight += 1
                script.most_in_flight = max(script.most_in_flight, script.in_flight)
            try:
                answer = script.answer(self.path, body)
                self._send(*answer if isinstance(answer, tuple) else (200, answer))
            except Hangup:
                self.send_response(200)
                self.send_header("content-length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices": [')
                self.close_connection = True
            finally:
                with script.lock:
                    script.in_flight -= 1

        def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client did not wait
                self.send_response(status)
                for key, value in (headers or {}).items():
                    self.send_header(key, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = _Server(("127.0.0.1", port), Handler)
    script.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def said(text: str, *, reason: str = "stop", **more: Any) -> Body:
    """A chat completion as such servers write it."""
    return {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text, **more}, "finish_reason": reason}],
        "usage": {"prompt_tokens": 3, "completion_tokens": len(text.split())},
    }


def slowly(seconds: float, content: Any) -> Any:
    """The content, after a while."""
    time.sleep(seconds)
    return content
