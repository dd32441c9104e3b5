"""The state machine that reads a completion, in any pieces, and never raises on what it reads."""

from __future__ import annotations

import re
from functools import cache
from itertools import groupby
from typing import Literal

from posttrain.templates.families import Family
from posttrain.templates.parsed import Delta, ParsedMessage, ToolCall
from posttrain.templates.tool_call import CallText, read_tool_call


@cache
def _markers(family: Family) -> tuple[re.Pattern[str], frozenset[str], int]:
    """A pattern of all markers, their proper prefixes, and the length of the longest."""
    markers = {
        family.think_open, family.think_close, family.tool_call_open, family.tool_call_close,
        family.message_start, family.message_end, family.end_of_text,
    }  # fmt: skip
    longest_first = sorted(markers, key=len, reverse=True)
    prefixes = frozenset(marker[:n] for marker in markers for n in range(1, len(marker)))
    return re.compile("|".join(map(re.escape, longest_first))), prefixes, len(longest_first[0])


class StreamParser:
    """`parse` over pieces of text.

    `feed` returns what became certain, `tail` is what `close` settled. The deltas, joined by kind, are the message's
    reasoning and content, with one exception: a `</think>` that nothing opened turns what was sent as content into
    reasoning ("missing_open"). Nobody can know that in advance: pass `prefilled`. Words in `prefilled` come with the
    first deltas.
    """

    def __init__(self, family: Family, prefilled: str = "") -> None:
        self.tail: list[Delta] = []
        self._family = family
        self._buffer = ""  # the end of the text read, where it may be the beginning of a marker
        self._state: Literal["start", "reasoning", "content", "call", "done"] = "start"
        self._raw: list[str] = []  # all text while "missing_open" is possible
        self._reasoning: list[str] | None = None
        self._content: list[str] = []
        self._calls: list[ToolCall] = []
        self._problems: dict[str, None] = {}
        self._deltas: list[Delta] = []
        self._held = ""  # white space that counts only if text follows
        self._block_has_text = False
        self._ended_in_block = False
        self._newlines: int | None = None  # right after a think block: the newlines since; None elsewhere
        self._after_call = False
        self._call = CallText()
        self._raw_at_close = 0  # pieces of _raw before the call's first close marker inside a string
        self._message: ParsedMessage | None = None
        self._read(prefilled)

    def feed(self, text: str) -> list[Delta]:
        """Read more text. Returns what it settled, in order."""
        if self._message is not None:
            raise RuntimeError("the stream is closed")
        self._read(text)
        return self._take_deltas()

    def close(self) -> ParsedMessage:
        """The message. It may be asked for again."""
        if self._message is None:
            self._message = self._finish()
            self.tail = self._take_deltas()
        return self._message

    def _take_deltas(self) -> list[Delta]:
        taken, self._deltas = self._deltas, []
        deltas: list[Delta] = []
        for kind, group in groupby(taken, key=lambda delta: delta.kind):
            if kind == "tool_call":
                deltas += group
            else:
                deltas.append(Delta(kind, "".join(delta.text for delta in group)))
        return deltas

    def _emit(self, kind: Literal["reasoning", "content"], text: str) -> None:
        if not text:
            return
        target = self._content if kind == "content" else self._reasoning
        assert target is not None
        target.append(text)
        self._deltas.append(Delta(kind, text))

    def _problem(self, code: str) -> None:
        self._problems[code] = None

    # --- reading ------------------------------------------------------------------------------------------------------

    def _read(self, text: str) -> None:
        pattern, prefixes, longest = _markers(self._family)
        buffer, position = self._buffer + text, 0
        for match in pattern.finditer(buffer):
            self._text(buffer[position : match.start()])
            self._marker(match[0])
            position = match.end()
        rest = buffer[position:]
        keep = next((n for n in range(min(longest - 1, len(rest)), 0, -1) if rest[-n:] in prefixes), 0)
        self._text(rest[: len(rest) - keep])
        self._buffer = rest[len(rest) - keep :]

    def _text(self, text: str) -> None:
        if not text:
            return
        self._remember(text)
        if self._state == "start":
            self._held += text
            if not self._held.strip():
                return
            text, self._held = self._held, ""
            self._begin()
        if self._state == "reasoning":
            self._reason(text)
        elif self._state == "content":
            self._answer(text)
        elif self._state == "call":
            if not self._call.add(text):
                self._reread_call()
        elif text.strip():
            self._problem("text_after_end")

    def _remember(self, text: str) -> None:
        if self._reasoning is None and self._family.thinks:
            self._raw.append(text)

    def _marker(self, marker: str) -> None:
        family = self._family
        if self._state == "done":
            if marker not in (family.message_end, family.end_of_text):
                self._problem("text_after_end")
        elif marker in (family.message_end, family.end_of_text):
            self._end()
        elif self._state == "call":
            self._marker_in_call(marker)
        elif marker == family.message_start:
            self._problem("stray_message_start")
            self._text(marker)
        elif marker == family.think_open:
            self._open()
        elif marker == family.think_close:
            self._close_think()
        elif self._state == "start" and family.kind == "thinking":
            self._text(marker)
        elif self._state == "reasoning":
            self._reason(marker)
        elif marker == family.tool_call_open:
            self._open_call()
        else:
            self._problem("stray_tool_close")
            self._text(marker)

    def _begin(self) -> None:
        """The first words, and no think block before them: an answer, unless the prompt must have opened one."""
        if self._family.kind == "thinking":
            self._enter_block()
        else:
            self._state = "content"

    # --- the think block ----------------------------------------------------------------------------------------------

    def _open(self) -> None:
        family = self._family
        if self._state == "reasoning":
            self._problem("nested_think")
            self._reason(family.think_open)
        elif self._state == "content" and not family.thinks:
            self._problem("unexpected_think")
            self._text(family.think_open)
        else:
            if self._reasoning is not None:
                self._problem("repeated_think")
            elif self._state == "content":
                self._problem("text_before_think")
            if not family.thinks:
                self._problem("unexpected_think")
            self._flush()
            self._enter_block()

    def _enter_block(self) -> None:
        self._state = "reasoning"
        self._reasoning = self._reasoning or []
        self._raw.clear()
        self._held = ""
        self._block_has_text = False

    def _close_think(self) -> None:
        if self._state == "start" and self._family.kind == "thinking":
            text = self._held
            self._enter_block()
            self._reason(text)
        if self._reasoning is None and self._family.thinks:
            self._close_unopened()
        elif self._state == "reasoning":
            self._state = "content"
            self._held = ""
            self._newlines = None if self._content or self._calls else 0
        else:
            self._problem("stray_close")
            self._text(self._family.think_close)

    def _close_unopened(self) -> None:
        """What looked like an answer was reasoning all along: the opening marker was in the prompt, or is missing."""
        self._problems.clear()
        self._problem("missing_open")
        self._reasoning = ["".join(self._raw).strip("\n")]
        self._raw.clear()
        self._content.clear()
        self._calls.clear()
        self._state, self._held, self._after_call, self._newlines = "content", "", False, 0

    def _reason(self, text: str) -> None:
        assert self._reasoning is not None
        if not self._block_has_text:
            text = text.lstrip("\n")
            if not text:
                return
            self._block_has_text = True
            if self._reasoning:
                self._emit("reasoning", "\n\n")
        bare = text.rstrip("\n")
        if bare:
            self._emit("reasoning", self._held + bare)
            self._held = ""
        self._held += text[len(bare) :]

    # --- the answer ---------------------------------------------------------------------------------------------------

    def _answer(self, text: str) -> None:
        if self._newlines is not None:
            bare = text.lstrip("\n")
            self._newlines += len(text) - len(bare)
            if not bare:
                return
            text, self._newlines = bare, None
        text = self._held + text
        self._held = ""
        if self._after_call:
            if not text.strip():
                self._held = text
                return
            self._after_call = False
            self._problem("text_after_tool_calls")
        if text.endswith("\n"):  # it may be the newline that sets a tool call apart
            text, self._held = text[:-1], "\n"
        self._emit("content", text)

    def _flush(self) -> None:
        if self._state == "content" and not self._after_call:
            self._emit("content", self._held)
        self._held = ""

    # --- tool calls ---------------------------------------------------------------------------------------------------

    def _open_call(self) -> None:
        self._remember(self._family.tool_call_open)
        if self._state == "start":  # white space alone is content too, but for the newline that sets the call apart
            self._emit("content", self._held.removesuffix("\n"))
        elif self._newlines is not None and self._newlines > 2:
            self._emit("content", "\n")  # what the templates make of a content of newlines before a call
        self._state, self._held, self._newlines = "call", "", None
        self._call, self._raw_at_close = CallText(), 0

    def _marker_in_call(self, marker: str) -> None:
        family = self._family
        if self._call.in_string and marker == family.tool_call_close:
            self._raw_at_close = self._raw_at_close or len(self._raw)
            self._remember(marker)
            self._call.add_close_marker(marker)
        elif marker == family.tool_call_close:
            self._remember(marker)
            self._close_call()
        elif marker == family.tool_call_open and not self._call.in_string:
            self._problem("unclosed_tool_call")
            self._close_call()
            self._open_call()
        else:
            self._text(marker)

    def _close_call(self) -> None:
        body = str(self._call)
        call, problem = read_tool_call(body, self._family)
        if problem:
            self._problem(problem)
        self._calls.append(call)
        self._deltas.append(Delta("tool_call", body.strip()))
        self._state, self._after_call = "content", True

    # --- the end ------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        if self._state == "call":
            self._reread_call()
        if self._state == "call":
            self._problem("unclosed_tool_call")
            self._close_call()
        elif self._state == "reasoning":
            self._problem("unclosed_think")
            self._ended_in_block = True
        if self._state == "start":
            self._state = "content"
        self._flush()
        self._state = "done"

    def _reread_call(self) -> None:
        """Quotes do not balance: the call ended at its first end marker after all. Read what follows that anew."""
        rest = self._call.take_rest()
        if rest is None:
            return
        del self._raw[self._raw_at_close :]
        self._remember(self._family.tool_call_close)
        self._close_call()
        self._buffer = ""
        self._read(rest)
        self._text(self._buffer)
        self._buffer = ""

    def _finish(self) -> ParsedMessage:
        self._text(self._buffer)
        self._buffer = ""
        if self._state != "done":
            self._end()
        if self._reasoning is None and self._family.thinks:
            self._problem("no_think_block")
        return ParsedMessage(
            reasoning=None if self._reasoning is None else "".join(self._reasoning),
            content="".join(self._content),
            tool_calls=tuple(self._calls),
            closed=not self._ended_in_block,
            well_formed=not self._problems,
            problems=tuple(self._problems),
        )
