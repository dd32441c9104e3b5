"""Completions back into reasoning, content and tool calls: whole or streamed, as text or as token ids.

One state machine (`stream`) reads the text once, marker by marker; any chunking gives the same message. It is lenient
where the templates are (a think block whose opening marker stood in the prompt, newlines around blocks), keeps what is
broken as text, and names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from posttrain.templates.families import Family
from posttrain.templates.parsed import Delta, ParsedMessage, ToolCall
from posttrain.templates.stream import StreamParser

__all__ = ["Decode", "Delta", "ParsedMessage", "StreamParser", "TokenStreamParser", "ToolCall", "parse", "parse_ids"]

Decode = Callable[[list[int]], str]  # token ids to text, special tokens and spaces kept as they are


def parse(text: str, family: Family, *, prefilled: str = "") -> ParsedMessage:
    """Take a completion apart. Never raises on what it reads.

    Args:
        text: what was generated, with or without the end marker. What follows an end marker is not read.
        family: its markers, and whether it thinks.
        prefilled: what the generation prompt wrote after the assistant's header (`family.prefill[mode]`), or more,
            such as reasoning to be continued. It becomes part of the message.
    """
    parser = StreamParser(family, prefilled)
    parser.feed(text)
    return parser.close()


def parse_ids(ids: Sequence[int], decode: Decode, family: Family, *, prefilled: str = "") -> ParsedMessage:
    """`parse` for token ids; `decode` is the tokenizer's, with `skip_special_tokens=False`."""
    return parse(decode(list(ids)), family, prefilled=prefilled)


class TokenStreamParser:
    """`StreamParser` over token ids.

    A character may take several tokens. While the text of the last ids ends in U+FFFD, the mark of an incomplete one,
    nothing is passed on. Each piece is decoded together with the piece before it, as tokenizers that put a space
    before a word (SentencePiece) need.
    """

    def __init__(self, family: Family, decode: Decode, prefilled: str = "") -> None:
        self.tail: list[Delta] = []
        self._parser = StreamParser(family, prefilled)
        self._decode = decode
        self._before: list[int] = []
        self._before_text = ""
        self._ids: list[int] = []

    def feed(self, ids: Iterable[int]) -> list[Delta]:
        """Read more token ids. Returns what they settled, in order."""
        deltas: list[Delta] = []
        for token in ids:
            self._ids.append(token)
            text = self._decode(self._before + self._ids)
            if not text.endswith("\ufffd"):
                deltas += self._pass_on(text)
        return deltas

    def close(self) -> ParsedMessage:
        """The message. It may be asked for again."""
        if self._ids:
            self.tail = self._pass_on(self._decode(self._before + self._ids))
        message = self._parser.close()
        self.tail += self._parser.tail
        self._parser.tail = []
        return message

    def _pass_on(self, text: str) -> list[Delta]:
        """`text`: of the piece before and of the pending ids."""
        deltas = self._parser.feed(text[len(self._before_text) :])
        self._before, self._ids = self._ids, []
        self._before_text = self._decode(self._before)
        return deltas
