"""How the text of one tool call is read, and where it ends."""

from __future__ import annotations

import json
import re
from typing import Any

from posttrain.templates.families import Family
from posttrain.templates.parsed import ToolCall

_SIGNS = re.compile(r'\\(?:.|\Z)|"|\n', re.DOTALL)


class CallText:
    """The text of a call as it comes in, and whether it stands inside a JSON string.

    There a close marker is the caller's data: `{"text": "</tool_call>"}`. A string that goes over the end of a line
    is none, so then the quotes do not balance, and the call ended at the first close marker it had.

    Attributes:
        in_string: the text ends inside a JSON string, as far as its quotes can be trusted.
    """

    def __init__(self) -> None:
        self.in_string = False
        self._trust_quotes = True
        self._escaped = False
        self._pieces: list[str] = []
        self._first_close: int | None = None

    def add(self, text: str) -> bool:
        """Append text. Returns False where it shows that the quotes do not balance."""
        self._pieces.append(text)
        if not self._trust_quotes:
            return True
        skip, self._escaped = (1 if self._escaped else 0), False
        for sign in _SIGNS.finditer(text, skip):
            if sign[0] == '"':
                self.in_string = not self.in_string
            elif sign[0] == "\\":
                self._escaped = True
            elif sign[0] == "\n" and self.in_string:
                self.in_string = self._trust_quotes = False
                return False
        return True

    def add_close_marker(self, marker: str) -> None:
        """Append a close marker that stands inside a string."""
        if self._first_close is None:
            self._first_close = len(self._pieces)
        self._pieces.append(marker)

    def take_rest(self) -> str | None:
        """Cut the text at its first close marker. Returns what followed the marker; None if there was none."""
        if self._first_close is None:
            return None
        rest = "".join(self._pieces[self._first_close + 1 :])
        del self._pieces[self._first_close :]
        return rest

    def __str__(self) -> str:
        return "".join(self._pieces)


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
