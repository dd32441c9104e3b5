"""Reads a completion, token by token: where it is inside a think block, inside a tool call, or in the answer.

What is read how is told in `posttrain.budget.state`; what follows from it is decided there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from posttrain.budget.rule import BudgetRule

Event = Literal["end", "opened", "closed", "counted", "other"]


class BlockReader:
    """What a completion is inside of.

    Attributes:
        thinking: inside a block.
        in_call: inside a tool call.
        after_call: the latest token completed a call.
        counted: tokens that count as thinking so far, those of half-emitted markers included.
        matched: ids of the think marker looked for (close inside a block, open elsewhere) that the latest tokens match.
        tool_matched: ids of the tool-call marker looked for that they match.
        call_length: tokens of the call that is open.
    """

    __slots__ = ("_rule", "after_call", "call_length", "counted", "in_call", "matched", "thinking", "tool_matched")

    def __init__(self, rule: BudgetRule, thinking_open: bool) -> None:
        self._rule = rule
        self.thinking = thinking_open
        self.in_call = self.after_call = False
        self.counted = self.matched = self.tool_matched = self.call_length = 0

    def read(self, token: int) -> Event:
        """Take note of an own token, and say what it was.

        "end": an end of turn. "opened", "closed": it completed a think marker. "counted": it counts as thinking, as far
        as is known. "other": it belongs to the answer or to a call.
        """
        self.after_call = False
        if token in self._rule.eos_ids:
            self.in_call = False
            self.match_afresh()
            return "end"
        if self.in_call:
            return self._read_in_call(token)
        return self._read_in_block(token) if self.thinking else self._read_in_answer(token)

    def pass_over(self, tokens: Sequence[int]) -> None:
        """Take note of own tokens that begin no marker and end no turn, while no marker is half emitted."""
        self.after_call = False
        if self.in_call:
            self.call_length += len(tokens)
        elif self.thinking:
            self.counted += len(tokens)

    def count(self) -> None:
        """Take note of a forced token that counts."""
        self.counted += 1

    def close(self) -> None:
        """A forced token completed the close marker; the half that the model had emitted does not count any more."""
        self.counted -= self.matched
        self.thinking = False
        self.match_afresh()

    def match_afresh(self) -> None:
        self.matched = self.tool_matched = 0

    def _read_in_block(self, token: int) -> Event:
        rule, tool_open = self._rule, self._rule.tool_open_marker
        self.counted += 1
        self.matched = rule.close_marker.advance(self.matched, token)
        if self.matched == len(rule.close_ids):
            self.close()
            return "closed"
        if tool_open is not None:
            self.tool_matched = tool_open.advance(self.tool_matched, token)
            if self.tool_matched == len(tool_open.ids):
                self.counted -= self.tool_matched
                self._open_call()
                return "other"
        return "counted"

    def _read_in_call(self, token: int) -> Event:
        rule, tool_close = self._rule, self._rule.tool_close_marker
        assert tool_close is not None
        self.call_length += 1
        if self.thinking:
            self.matched = rule.close_marker.advance(self.matched, token)
            if self.matched == len(rule.close_ids):
                self.in_call = self.thinking = False
                self.match_afresh()
                return "closed"
        self.tool_matched = tool_close.advance(self.tool_matched, token)
        self.after_call = self.tool_matched == len(tool_close.ids)
        if self.after_call or self.call_length >= rule.tool_call_longest:
            self.in_call = False
            self.match_afresh()
        return "other"

    def _read_in_answer(self, token: int) -> Event:
        rule, tool_open = self._rule, self._rule.tool_open_marker
        self.matched = rule.open_marker.advance(self.matched, token)
        if self.matched == len(rule.open_ids):
            self.thinking = True
            self.match_afresh()
            return "opened"
        if tool_open is not None:
            self.tool_matched = tool_open.advance(self.tool_matched, token)
            if self.tool_matched == len(tool_open.ids):
                self._open_call()
        return "other"

    def _open_call(self) -> None:
        self.in_call, self.call_length = True, 0
        self.match_afresh()
