"""What the tests hold of the answer: its functions, classes and objects, each question asked of its own process."""

from __future__ import annotations

import builtins

from posttrain.sandbox.judge.channel import Channel, Closed
from posttrain.sandbox.judge.values import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any


class AnswerEnded(BaseException):
    """The process of the answer is gone, or gave up. No `except Exception` of a test holds it."""


class Peer:
    """The judge's side of the channel to the answer's process."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._functions: list[Callable[..., Any]] = []

    def load(self, limits: Mapping[str, int], code: str) -> None:
        """Hand over the code and wait until it has run within the limits. Raises what it raised."""
        self._channel.send([limits, code])
        self._result()

    def ask(self, operation: str, of: int, *args: Any, **named: Any) -> Any:
        """What the answer gives. Raises the built-in exception that it raised (the nearest one, if its own)."""
        try:
            self._channel.send(
                {
                    "do": operation,
                    "of": of,
                    "args": [encode(item, self._refer) for item in args],
                    "named": {name: encode(item, self._refer) for name, item in named.items()},
                }
            )
        except Closed:
            raise AnswerEnded from None
        return self._result()

    def _result(self) -> Any:
        while True:
            try:
                reply = self._channel.receive()
                if "callback" in reply:
                    self._channel.send(self._called_back(reply))
                    continue
            except Closed:
                raise AnswerEnded from None
            if "raised" in reply:
                raise _exception(str(reply["raised"]), str(reply["message"]))
            return decode(reply["value"], self._resolve)

    def _called_back(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            args = [decode(item, self._resolve) for item in request["args"]]
            named = {name: decode(item, self._resolve) for name, item in request["named"].items()}
            value = encode(self._functions[request["callback"]](*args, **named), self._refer)
            return {"do": "returned", "value": value}
        except Exception as error:
            return {"do": "returned", "raised": type(error).__name__, "message": str(error)}

    def _refer(self, value: Any) -> dict[str, Any]:
        if isinstance(value, Remote):
            return {"object": value._number}
        if not callable(value):
            raise TypeError(f"the tests hand over a {type(value).__name__}, which is no plain data")
        self._functions.append(value)
        return {"function": len(self._functions) - 1}

    def _resolve(self, reference: dict[str, Any]) -> Remote:
        number = reference["object"]
        if not isinstance(number, int):
            raise ValueError("no reference")
        return Remote(self, number)


def _exception(name: str, message: str) -> BaseException:
    if name == "MemoryError":
        return AnswerEnded("memory")
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(message)
        except TypeError:  # UnicodeDecodeError and the like want more than a text
            return RuntimeError(f"{name}: {message}")
    return AnswerEnded(f"{name} {message}".strip())


class Remote:
    """A function, class or object of the answer.

    Calls, attributes, items, iteration, length, membership, truth and text are asked of its process and come back as
    the judge's own plain data. Comparison is not asked: an object may claim to equal anything.
    """

    __slots__ = ("_number", "_peer")
    _number: int
    _peer: Peer

    def __init__(self, peer: Peer, number: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._peer.ask("call", self._number, *args, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__") and name not in ("__name__", "__doc__"):
            raise AttributeError(name)
        return self._peer.ask("get", self._number, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.ask("set", self._number, name, value)

    def __len__(self) -> int:
        return int(self._peer.ask("len", self._number))

    def __iter__(self) -> Iterator[Any]:
        items = self._peer.ask("iter", self._number)
        return items if isinstance(items, Remote) else iter(items)

    def __next__(self) -> Any:
        return self._peer.ask("next", self._number)

    def __getitem__(self, key: Any) -> Any:
        return self._peer.ask("item", self._number, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._peer.ask("set_item", self._number, key, value)

    def __contains__(self, item: Any) -> bool:
        return bool(self._peer.ask("contains", self._number, item))

    def __bool__(self) -> bool:
        return bool(self._peer.ask("bool", self._number))

    def __str__(self) -> str:
        return str(self._peer.ask("str", self._number))

    def __repr__(self) -> str:
        return str(self._peer.ask("repr", self._number))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Remote):
            return self._peer is other._peer and self._number == other._number
        if other is None:
            return False
        raise TypeError("the answer gave an object of its own where the tests compare a value")

    def __hash__(self) -> int:
        return hash(self._number)
