"""Messages over a pair of pipes: a length of four bytes, then JSON."""

from __future__ import annotations

import os
import select

from posttrain.sandbox.judge.wire import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LARGEST = 32 << 20  # bytes of a message


class Closed(Exception):
    """The other side is gone, or what it sent is no message."""


class Channel:
    """One side.

    Args:
        watch: called about ten times a second while waiting for a message; what it raises ends the waiting.
    """

    def __init__(self, readable: int, writable: int, watch: Callable[[], None] | None = None) -> None:
        self.readable, self.writable = readable, writable
        self._watch = watch

    def send(self, message: Any) -> None:
        """Raises Closed, or ValueError for a message that is too large."""
        body = dumps(message).encode()
        if len(body) > LARGEST:
            raise ValueError(f"a value of more than {LARGEST >> 20} MiB")
        rest = memoryview(len(body).to_bytes(4, "big") + body)
        try:
            while rest:
                rest = rest[os.write(self.writable, rest) :]
        except OSError:
            raise Closed from None

    def receive(self) -> Any:
        """The next message. Raises Closed."""
        length = int.from_bytes(self._exactly(4), "big")
        if length > LARGEST:
            raise Closed
        try:
            return loads(self._exactly(length).decode())
        except (ValueError, RecursionError):
            raise Closed from None

    def _exactly(self, count: int) -> bytes:
        parts = []
        while count:
            while self._watch and not select.select([self.readable], [], [], 0.1)[0]:
                self._watch()
            part = os.read(self.readable, min(count, 1 << 20))
            if not part:
                raise Closed
            parts.append(part)
            count -= len(part)
        return b"".join(parts)
