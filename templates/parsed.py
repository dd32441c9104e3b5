"""What a completion is once parsed, and how the text of one tool call is read."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from posttrain.templates.families import Family, Mode


@dataclass(frozen=True)
class ToolCall:
    """One tool call of an assistant.

    Attributes:
        name: of the function; "" where none could be read.
        arguments: the JSON object, or the text as written where it is no JSON object.
        written: the arguments' text, kept where `arguments` would not be written back the same (other spacing,
            repeated keys, a float spelled differently), else "".
    """

    name: str
    arguments: dict[str, Any] | str
    written: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As an entry of a message's `tool_calls`; rendering it gives the text it was read from."""
        return {"type": "function", "function": {"name": self.name, "arguments": self.written or self.arguments}}


@dataclass(frozen=True)
class ParsedMessage:
    """A completion taken apart.

    Attributes:
        reasoning: text of the think block without the newlines around it; "" for an empty block, None for none at all.
            Text of further blocks is joined to it, whatever stands between, so nobody hides thinking after `</think>`.
        content: the answer. Stray markers stay in it as text.
        tool_calls: in order; broken ones too, with the arguments as text.
        closed: the think block, if there is one, was closed.
        well_formed: there are no problems.
        problems: short codes, each once, in the order they were met:
            no_think_block, missing_open, text_before_think, nested_think, repeated_think, unclosed_think,
            unexpected_think (the family has none), stray_close, stray_message_start, broken_tool_call,
            arguments_not_object, unclosed_tool_call, stray_tool_close, text_after_tool_calls, text_after_end.
    """

    reasoning: str | None
    content: str
    tool_calls: tuple[ToolCall, ...]
    closed: bool
    well_formed: bool
    problems: tuple[str, ...]

    @property
    def mode(self) -> Mode:
        """The mode the model really answered in: thinking if there is anything but blanks in its reasoning."""
        return "thinking" if self.reasoning and self.reasoning.strip() else "non_thinking"

    def to_message(self) -> dict[str, Any]:
        """As an assistant message, for the history of a conversation or for training."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        return message


@dataclass(frozen=True)
class Delta:
    """A piece of a streamed message. A tool call comes whole, as the text between its markers."""

    kind: Literal["reasoning", "content", "tool_call"]
    text: str


# As the templates write it. What stands between is the arguments' text even where it is no JSON.
_AS_RENDERED = re.compile(r'\{"name": "([^"\\\x00-\x1f]*)", "arguments": (.*)\}', re.DOTALL)
_NAME = re.compile(r'"name"\s*:\s*"([^"\\\x00-\x1f]*)"')


def read_tool_call(body: str, family: Family) -> tuple[ToolCall, str]:
    """The call in the text between its markers, and the code of what is wrong with it ("" if nothing is)."""
    body = body.strip()
    rendered = _AS_RENDERED.fullmatch(body)
    text = rendered[2] if rendered else None
    call = _loads(body)
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or "arguments" not in call:
        name = rendered or _NAME.search(body)
        return ToolCall(name[1] if name else "", body if text is None else text), "broken_tool_call"
    name, arguments = call["name"], call["arguments"]
    # A name that needs escapes would not survive rendering, which pastes names as they are.
    problem = "" if rendered or _NAME.fullmatch(f'"name": "{name}"') else "broken_tool_call"
    if isinstance(arguments, dict):
        same = text is None or json.dumps(arguments, ensure_ascii=False) == text
        return ToolCall(name, arguments, "" if same or family.string_arguments == "json" else str(text)), problem
    if not isinstance(arguments, str) or family.string_arguments == "raw":
        arguments = json.dumps(arguments, ensure_ascii=False) if text is None else text
    return ToolCall(name, arguments), problem or "arguments_not_object"


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # ValueError: not JSON, or an integer of more digits than Python reads
        return None
