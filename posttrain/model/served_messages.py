"""Conversations as OpenAI-compatible servers take them, and the calls that they hand out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.templates.families import Family
from posttrain.templates.parsed import ToolCall

Message = Mapping[str, Any]


def sent_messages(messages: Sequence[Message], family: Family) -> list[dict[str, Any]]:
    """A conversation as servers demand it (vLLM refuses anything else).

    Reasoning stands under both of its names. Calls have ids and their arguments as text, and results the ids of their
    calls, in order. A call that cannot be read is text of its message, as the model wrote it.
    """
    sent, waiting, count = [], [], 0
    for message in messages:
        one = {key: value for key, value in message.items() if value is not None and key != "tool_calls"}
        if "reasoning_content" in one:
            one["reasoning"] = one["reasoning_content"]
        calls = [(call, call.get("function") or call) for call in message.get("tool_calls") or []]
        if broken := [_as_text(function, family) for _, function in calls if not _readable(function)]:
            one["content"] = "\n".join(filter(None, [one.get("content"), *broken]))
        if readable := [(call, function) for call, function in calls if _readable(function)]:
            # Nine letters and digits: what some templates demand of an id.
            waiting = [str(call.get("id") or f"call{count + at:05}") for at, (call, _) in enumerate(readable)]
            one["tool_calls"] = [
                {"id": id, "type": "function", "function": {**function, "arguments": _written(function)}}
                for id, (_, function) in zip(waiting, readable, strict=True)
            ]
            count += len(readable)
        elif one.get("role") == "tool" and waiting:
            one = {"tool_call_id": waiting.pop(0), **one}
        sent.append(one)
    return sent


def _written(function: Mapping[str, Any]) -> str:
    arguments = function["arguments"]
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _readable(function: Mapping[str, Any]) -> bool:
    return bool(function.get("name")) and isinstance(_object(_written(function)), dict)


def _as_text(function: Mapping[str, Any], family: Family) -> str:
    body = f'{{"name": "{function.get("name", "")}", "arguments": {_written(function)}}}'
    return f"{family.tool_call_open}\n{body}\n{family.tool_call_close}"


def read_call(call: Message) -> ToolCall:
    """A call that a server took out of an answer."""
    function = call.get("function")
    if not isinstance(function, dict):
        function = {}
    written = str(function.get("arguments") or "")
    arguments = _object(written)
    return ToolCall(str(function.get("name") or ""), written if arguments is None else arguments)


def _object(written: str) -> dict[str, Any] | None:
    """The JSON object that a text is, or None."""
    try:
        read = json.loads(written)
    except (ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) else None
