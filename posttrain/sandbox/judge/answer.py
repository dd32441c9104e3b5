"""The process of the answer: runs the model's code and answers the judge's questions about it.

Whatever the code does to this process, the judge hears values and nothing else.
"""

from __future__ import annotations

import builtins
import resource
import sys
from types import ModuleType

from posttrain.sandbox.judge.channel import Channel
from posttrain.sandbox.judge.values import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

OPERATIONS: dict[str, Callable[..., Any]] = {
    "get": getattr,
    "set": setattr,
    "call": lambda target, *args, **named: target(*args, **named),
    "len": len,
    "iter": iter,
    "next": next,
    "item": lambda target, key: target[key],
    "set_item": lambda target, key, value: target.__setitem__(key, value),
    "contains": lambda target, item: item in target,
    "bool": bool,
    "str": str,
    "repr": repr,
}


def confine(limits: Mapping[str, int]) -> None:
    """Put the limits on this process. Soft and hard are the same, so nothing in it can lift them."""
    for name in ("AS", "CPU", "FSIZE", "NOFILE", "NPROC", "CORE"):
        value = limits[name]
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def module_of(code: str, name: str) -> ModuleType:
    """The code run as a module of that name. Raises whatever it raises."""
    module = ModuleType(name)
    sys.modules[name] = module
    exec(compile(code, "<answer>", "exec", dont_inherit=True), module.__dict__)
    return module


class Answer:
    """Answers questions until the judge is gone."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._objects: dict[int, Any] = {}

    def serve(self, code: str) -> None:
        """Run the code, then answer. The first reply is whether the code ran."""
        self._reply(lambda: self._objects.__setitem__(0, module_of(code, "answer")))
        self._answer_until("end")

    def _answer_until(self, last: str) -> Any:
        while True:
            message = self._channel.receive()
            if message["do"] == last:
                return message
            self._reply(lambda: self._done(message))  # noqa: B023  called at once

    def _done(self, message: Mapping[str, Any]) -> Any:
        args = [decode(item, self._resolve) for item in message["args"]]
        named = {name: decode(item, self._resolve) for name, item in message["named"].items()}
        return OPERATIONS[message["do"]](self._objects[message["of"]], *args, **named)

    def _reply(self, attempt: Callable[[], Any]) -> None:
        try:
            value = attempt()
            reply = {"value": encode(value, self._refer)}
        except BaseException as error:  # SystemExit and KeyboardInterrupt are the model's too
            reply = {"raised": _name(error), "message": _text(error)}
        try:
            self._channel.send(reply)
        except ValueError as error:
            self._channel.send({"raised": "ValueError", "message": f"it gave {error}"})

    def _refer(self, value: Any) -> dict[str, Any]:
        number = len(self._objects)
        self._objects[number] = value
        return {"object": number}

    def _resolve(self, reference: dict[str, Any]) -> Any:
        if "object" in reference:
            return self._objects[reference["object"]]
        return self._callback(reference["function"])

    def _callback(self, number: int) -> Callable[..., Any]:
        """A function of the tests, handed to the answer: it runs in the judge."""

        def function(*args: Any, **named: Any) -> Any:
            self._channel.send(
                {
                    "callback": number,
                    "args": [encode(item, self._refer) for item in args],
                    "named": {name: encode(item, self._refer) for name, item in named.items()},
                }
            )
            message = self._answer_until("returned")
            if "raised" in message:
                raise getattr(builtins, message["raised"], RuntimeError)(message["message"])
            return decode(message["value"], self._resolve)

        return function


def _name(error: BaseException) -> str:
    for kind in type(error).__mro__:
        name = kind.__name__
        if getattr(builtins, name, None) is kind:
            return str(name)
    return "Exception"


def _text(error: BaseException) -> str:
    try:
        name = type(error).__name__
        return f"{name}: {error}"[:300] if name != _name(error) else str(error)[:300]
    except BaseException:  # its __str__ is the model's too
        return ""
