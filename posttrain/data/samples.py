"""A conversation becomes training samples: text in pieces, each inside the loss or outside it. No tokens yet.

History, a declared choice:

    keep    one sample a conversation, rendered by the prefix-preserving training template: every assistant turn is
            supervised in its own mode, and earlier think blocks stay in sight.
    strip   one sample an assistant turn: the history as the SERVED template shows it (earlier think blocks stripped),
            then that turn with its own think block, empty or not, and the loss on that turn alone. What is trained is
            what is served, at the price of more tokens: a history is read again for each of its turns.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from posttrain.errors import PosttrainError, Problem
from posttrain.templates.families import Family
from posttrain.templates.render import render, render_training

History = Literal["keep", "strip"]
Piece = tuple[str, bool]  # text, and whether the loss is on it


def render_samples(
    messages: Sequence[dict[str, Any]],
    family: Family,
    *,
    tools: Sequence[dict[str, Any]] | None = None,
    history: History = "keep",
    supervise_empty_think: bool = True,
) -> list[list[Piece]]:
    """The samples of one conversation. A conversation without an assistant's turn has none.

    The pieces' borders are those of the loss spans. Raises PosttrainError for what cannot be rendered.
    """
    text, spans = render_training(messages, family, tools=tools, supervise_empty_think=supervise_empty_think)
    if history == "strip":
        return list(_stripped(messages, family, tools, text, spans))
    pieces: list[Piece] = []
    at = 0
    for start, end in spans:
        pieces += [(text[at:start], False), (text[start:end], True)]
        at = end
    pieces.append((text[at:], False))  # at least the newline after the last turn
    return [pieces] if spans else []


def _stripped(
    messages: Sequence[dict[str, Any]], family: Family, tools: Any, text: str, spans: list[tuple[int, int]]
) -> Iterator[list[Piece]]:
    """One sample a turn: what a server shows up to the turn's header, then the turn as the training template has it."""
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    for turn, (start, end) in zip(turns, spans, strict=True):
        header = text.rindex(family.message_start, 0, start)
        if turn == turns[0]:  # nothing to strip yet: the templates agree, and Jinja takes ten times as long
            before = text[:header]
        else:
            prompt = render(messages[:turn], family, tools=tools, add_generation_prompt=True)
            before = prompt[: prompt.rindex(family.message_start)]
        yield [(before + text[header:start], False), (text[start:end], True)]


def control_token_in_answer(samples: list[list[Piece]], family: Family) -> str | None:
    """A turn marker inside an assistant's turn, where only its end marker belongs, at its end; None without one."""
    for sample in samples:
        for text, supervised in sample:
            if supervised:
                if text.find(family.message_end) != len(text) - len(family.message_end):
                    return family.message_end
                for marker in (family.message_start, family.end_of_text):
                    if marker in text:
                        return marker
    return None


def control_token_in_prompt(messages: Sequence[dict[str, Any]], family: Family) -> str | None:
    """A marker of the family typed into a message that is not the assistant's; None without one."""
    for message in messages:
        content = message.get("content")
        if content and message["role"] != "assistant" and "<" in content:
            for marker in _markers(family):
                if marker in content:
                    return marker
    return None


def _markers(family: Family) -> tuple[str, ...]:
    turn = (family.message_start, family.message_end, family.end_of_text)
    return (*turn, family.think_open, family.think_close, family.tool_call_open, family.tool_call_close)


def read_tools(tools: Any, *, nulls: bool = False) -> list[dict[str, Any]] | None:
    """A row's tools: a list, the JSON of one, or nothing. `nulls` as in `read_messages`; JSON text keeps them anyway.

    Raises PosttrainError for text that is not JSON.
    """
    if isinstance(tools, str):
        try:
            return json.loads(tools) if tools.strip() else None
        except ValueError as error:
            raise PosttrainError(Problem(f"not JSON: {error}", "tools")) from error
    return (tools if nulls else without_nulls(tools)) or None


def read_messages(messages: Any, *, nulls: bool = False) -> Any:
    """A row's messages, without what Arrow made up.

    A struct column gives every tool call the arguments of all, null where it has none. So there a null argument is one
    that was not given, and a null that was meant is lost; a column of `datasets.Json` keeps it: say `nulls=True`.
    """
    if nulls or not isinstance(messages, list):
        return messages
    return [
        {**message, "tool_calls": without_nulls(message["tool_calls"])}
        if isinstance(message, dict) and message.get("tool_calls")
        else message
        for message in messages
    ]


def without_nulls(value: Any) -> Any:
    """The value without the null entries of its dicts, at any depth."""
    if isinstance(value, dict):
        return {key: without_nulls(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [without_nulls(entry) for entry in value]
    return value
