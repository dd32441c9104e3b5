"""When thinking has to close: budget, answer reserve, loop guard, grace; and until when an end comes too early.

What each of them means is told in `posttrain.budget.state`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from posttrain.budget.loop import LoopGuard
from posttrain.budget.reader import BlockReader
from posttrain.budget.request import BudgetRequest
from posttrain.budget.rule import BudgetRule

Limit = Literal["budget", "reserve", "loop", "grace"]
FOREVER = 1 << 62  # tokens; where only a mark can change anything


class Limits:
    """The limits of one request, and what they have to remember of the latest tokens.

    Raises:
        ValueError: the request asks for a reserve without `max_tokens`, or for a minimum where the rule has no
            continuation.
    """

    __slots__ = ("_loop", "_request", "_reserve_at", "_rule", "_unfinished", "active")

    def __init__(self, rule: BudgetRule, request: BudgetRequest, max_tokens: int | None) -> None:
        if request.answer_reserve and max_tokens is None:
            raise ValueError("an answer reserve is a part of max_tokens, and none is known")
        if request.minimum and not rule.continue_ids:
            raise ValueError("a minimum of thinking needs a continuation, and the rule has none")
        self._rule = rule
        self._request = request
        self.active = request.limited
        self._reserve_at: int | None = None  # the length of the completion at which the reserve strikes
        if request.answer_reserve and max_tokens is not None:
            self._reserve_at = max_tokens - request.answer_reserve - len(rule.stop_ids)
        self._loop = LoopGuard(request.loop_guard) if request.loop_guard is not None else None
        self._unfinished = False  # a period now would end no sentence; known where there is a grace

    def copy(self) -> Limits:
        other = Limits.__new__(Limits)
        other._rule, other._request, other.active = self._rule, self._request, self.active
        other._reserve_at, other._unfinished = self._reserve_at, self._unfinished
        other._loop = self._loop.copy() if self._loop is not None else None
        return other

    def count(self, token: int) -> bool:
        """Remember a counted token; whether it is a boundary."""
        if self._loop is not None:
            self._loop.add(token)
        if not self._request.grace:
            return False
        rule = self._rule
        boundary = token in rule.boundary_ids and not (self._unfinished and token in rule.period_ids)
        self._unfinished = token in rule.unfinished_ids
        return boundary

    def pass_over(self, tokens: Sequence[int]) -> None:
        """Remember counted tokens, no more than are `quiet`."""
        self._unfinished = bool(self._request.grace) and tokens[-1] in self._rule.unfinished_ids
        if self._loop is not None:
            self._loop.extend(tokens)

    def forget(self) -> None:
        """Something that is not counted came between."""
        self._unfinished = False
        if self._loop is not None:
            self._loop.reset()

    def due(self, reader: BlockReader, length: int, boundary: bool) -> Limit | None:
        """Which limit closes the block now; `boundary`: the latest token is one. None outside a block."""
        if not reader.thinking or not self.active:
            return None
        request = self._request
        if request.thinking_budget is not None and reader.counted >= request.thinking_budget:
            return "budget"
        if self._reserve_at is not None and length >= self._reserve_at:
            return "reserve"
        if self._loop is not None and self._loop.found():
            return "loop"
        soft = boundary and not (reader.matched or reader.tool_matched) and reader.counted >= request.minimum
        return "grace" if soft and self._room(reader, length) <= request.grace else None

    def early(self, reader: BlockReader, length: int) -> bool:
        """Whether an end of thinking now would come below the minimum, and can be replaced."""
        minimum, size = self._request.minimum, len(self._rule.continue_ids)
        if not minimum or reader.counted + size > minimum:
            return False
        return self._reserve_at is None or length + size < self._reserve_at

    def spares(self, length: int) -> bool:
        """Whether the whole stop text now would leave the reserve whole."""
        return self._reserve_at is None or length <= self._reserve_at

    def quiet(self, reader: BlockReader, length: int) -> int:
        """How many further counted tokens change neither `due` (None now) nor `early`."""
        tokens = [self._room(reader, length) - self._request.grace - 1]
        if self._loop is not None:
            tokens.append(self._loop.quiet)
        if self.early(reader, length):
            size = len(self._rule.continue_ids)
            tokens.append(self._request.minimum - reader.counted - size)
            if self._reserve_at is not None:
                tokens.append(self._reserve_at - length - size - 1)
        return max(0, min(tokens))

    def _room(self, reader: BlockReader, length: int) -> int:
        """Tokens until budget or reserve strike."""
        budget = self._request.thinking_budget
        room = FOREVER if budget is None else budget - reader.counted
        return room if self._reserve_at is None else min(room, self._reserve_at - length)
