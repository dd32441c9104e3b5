"""What a completion is once parsed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from posttrain.templates.families import Mode


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
