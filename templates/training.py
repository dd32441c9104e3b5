"""The training variant of the templates in plain Python: text, and the character spans the loss is on.

The `*_training.jinja` files are the source of truth. This is a tenth of Jinja's time, which matters because it runs on
every conversation of a data set; a property test holds the two equal, text and spans.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from posttrain.templates.checks import check_messages
from posttrain.templates.families import Family

_TOOLS_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TOOLS_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


def render_training(
    messages: Sequence[dict[str, Any]],
    family: Family,
    *,
    tools: Sequence[dict[str, Any]] | None = None,
    supervise_empty_think: bool = True,
) -> tuple[str, list[tuple[int, int]]]:
    """Text of the prefix-preserving training variant, and one (start, end) span of characters per assistant turn.

    A span covers what the model must emit: the think block (for a thinking-only family what follows the `<think>`
    that its generation prompt writes), content, tool calls and the end marker; not the header, not the newline after
    the end marker. `supervise_empty_think=False` leaves an empty think block out of it: right only where every
    non-thinking generation prompt writes that block, as a server with `enable_thinking=False` does, and wrong where
    the `/no_think` flag alone must bring it about.

    Raises PosttrainError, naming the message, for what cannot be rendered.
    """
    check_messages(messages, family, tools, training=True)
    head = _head(messages, family, tools)
    pieces = [head]
    spans: list[tuple[int, int]] = []
    length = len(head)
    previous = ""
    for index, message in enumerate(messages):
        role = message["role"]
        piece = f"{family.message_end}\n" if previous == "tool" and role != "tool" else ""
        if role == "assistant":
            given, emitted = _assistant(message, family, supervise_empty_think)
            piece += f"{family.message_start}assistant\n{given}"
            start = length + len(piece)
            spans.append((start, start + len(emitted)))
            piece += f"{emitted}\n"
        elif role == "tool":
            opening = "" if previous == "tool" else f"{family.message_start}user"
            piece = f"{opening}\n<tool_response>\n{message.get('content') or ''}\n</tool_response>"
        elif role == "user" or index > 0:
            piece += f"{family.message_start}{role}\n{message.get('content') or ''}{family.message_end}\n"
        pieces.append(piece)
        length += len(piece)
        previous = role
    return "".join(pieces), spans


def _head(messages: Sequence[dict[str, Any]], family: Family, tools: Sequence[dict[str, Any]] | None) -> str:
    """The opening system turn: the first message's text, else the family's default, and the tools."""
    has_system = messages[0]["role"] == "system"
    system = messages[0]["content"] if has_system else family.default_system
    if tools:
        system += "\n\n" if has_system or family.default_system else ""
        system += _tools_text(tools)
    elif not has_system and not family.default_system:
        return ""
    return f"{family.message_start}system\n{system}{family.message_end}\n"


def _tools_text(tools: Sequence[dict[str, Any]]) -> str:
    return _TOOLS_BEFORE + "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools) + _TOOLS_AFTER


def _assistant(message: dict[str, Any], family: Family, supervise_empty_think: bool) -> tuple[str, str]:
    """What the prompt gives of an assistant turn after its header, and what the model must emit."""
    content = message.get("content") or ""
    given, emitted = "", content
    if family.thinks:
        reasoning = message.get("reasoning_content")
        if reasoning is None:
            reasoning, content = _split_inline(content, family)
        reasoning = reasoning.strip("\n")
        block = f"{family.think_open}\n{reasoning}\n{family.think_close}\n\n"
        given = block if not reasoning and not supervise_empty_think else family.prefill[family.default_mode]
        emitted = block[len(given) :] + content.lstrip("\n")
    if calls := message.get("tool_calls"):
        emitted += ("\n" if content else "") + "\n".join(_call_text(call, family) for call in calls)
    return given, emitted + family.message_end


def _split_inline(content: str, family: Family) -> tuple[str, str]:
    """Reasoning and content of a turn whose think block was left inside its content."""
    if family.think_close not in content:
        return "", content
    parts = content.split(family.think_close)
    return parts[0].rstrip("\n").split(family.think_open)[-1].lstrip("\n"), parts[-1].lstrip("\n")


def _call_text(call: dict[str, Any], family: Family) -> str:
    function = call.get("function") or call
    arguments = function["arguments"]
    if not isinstance(arguments, str) or family.string_arguments == "json":
        arguments = json.dumps(arguments, ensure_ascii=False)
    body = f'{{"name": "{function["name"]}", "arguments": {arguments}}}'
    return f"{family.tool_call_open}\n{body}\n{family.tool_call_close}"
