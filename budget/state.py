"""The thinking budget of one completion: a state machine over token ids. It knows no engine, tokenizer or text.

The rule
--------
**Own and forced tokens.** A completion is a stream of token ids. Each is either forced by this rule or the model's own.

**What opens thinking.** The open marker, emitted by the model itself, or a generation prompt that ends inside an open
block (`thinking_open=True`). Never a marker that a user typed or that an earlier turn contains: the prompt's ids do not
reach this machine. Inside a block another open marker is ordinary thinking.

**What counts.** The model's own tokens strictly inside a block, over all blocks of the completion together. Not the
markers, not forced tokens, not an EOS. A budget of N means at most N such tokens; 0 means none; None or -1 means no
limit: then the machine watches and counts, and forces nothing.

**What closes a block.**
- `natural`: the model emits the whole close marker.
- `budget`: N tokens are spent inside the block. A marker half emitted at that moment counts as spent until it is
  complete (it may still turn out to be thinking), so the budget strikes then too, but lets the marker finish: only
  its remaining ids are forced.
- `eos`: the model ends its turn inside the block. The block is closed first and the model answers. An engine that sees
  the sampled token calls `emit`, which puts the close in the place of the EOS; one that sees scores only asks
  `guards_eos` and calls `close_for_eos`. Where an EOS got into the stream all the same, the close follows it.

**What is then forced.** When the budget strikes: every id of `stop_ids` once, what follows the close marker included.
At an EOS, at a half-emitted marker, and when the stop text was already said: what is left of the close marker, and what
follows it in `stop_ids`. (The stop text gives a reason that would be false at an EOS, and need not be said twice.)

**What comes after.** The model answers. It may open another block: the total goes on, and a block opened with the
budget spent is closed at once, so re-entry gains nothing.

**Markers** may have one or several ids. They are made of consecutive own tokens; matching starts afresh after a
complete marker, an EOS and a forced sequence. All steps are O(1) amortised, whatever the length of the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

ClosedBy = Literal["natural", "budget", "eos"]


@dataclass(frozen=True)
class BudgetRule:
    """The token ids that the rule works with, from the tokenizer (`posttrain.budget.tokens`).

    Attributes:
        open_ids, close_ids: the markers.
        stop_ids: the stop text, which contains the close marker.
        eos_ids: the ids that end a turn.

    Raises:
        ValueError: a marker is empty, the markers are equal, or the stop text lacks the close marker.
    """

    open_ids: tuple[int, ...]
    close_ids: tuple[int, ...]
    stop_ids: tuple[int, ...]
    eos_ids: frozenset[int]

    def __post_init__(self) -> None:
        if not self.open_ids or not self.close_ids or self.open_ids == self.close_ids:
            raise ValueError(f"two different markers are needed, not {self.open_ids} and {self.close_ids}")
        if self._close_at < 0:
            raise ValueError(f"the stop text {self.stop_ids} does not contain the close marker {self.close_ids}")

    @cached_property
    def _close_at(self) -> int:
        """Where the close marker begins in `stop_ids`; -1 where it is not."""
        size = len(self.close_ids)
        starts = range(len(self.stop_ids) - size + 1)
        return next((start for start in starts if self.stop_ids[start : start + size] == self.close_ids), -1)

    @cached_property
    def lead_ids(self) -> tuple[int, ...]:
        """What is said before the close marker when the budget strikes."""
        return self.stop_ids[: self._close_at]

    @cached_property
    def tail_ids(self) -> tuple[int, ...]:
        """What follows the close marker whenever it is forced."""
        return self.stop_ids[self._close_at + len(self.close_ids) :]

    @cached_property
    def open_marker(self) -> Marker:
        return Marker(self.open_ids)

    @cached_property
    def close_marker(self) -> Marker:
        return Marker(self.close_ids)


class Marker:
    """A marker with the table of Knuth, Morris and Pratt (1977): finds overlapping starts without going back."""

    __slots__ = ("borders", "ids")

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = tuple(ids)
        self.borders = [0]  # [p]: length of the longest proper prefix of ids[: p + 1] that is also its suffix
        for token in self.ids[1:]:
            self.borders.append(self.advance(self.borders[-1], token))

    def advance(self, matched: int, token: int) -> int:
        """How many ids are matched after `token`, when `matched` (not yet all) were before it."""
        while matched and self.ids[matched] != token:
            matched = self.borders[matched - 1]
        return matched + (self.ids[matched] == token)


class BudgetState:
    """Where one completion stands under the rule of this module's docstring.

    Args:
        rule: the ids.
        budget: own thinking tokens allowed, in tokens; None or -1: no limit.
        thinking_open: the generation prompt ends inside an open block.

    Attributes:
        thinking: inside a block (while a close is being forced: until its marker is complete).
        closed_by: how the latest block was closed; None where none was.
        forced: one flag per observed token.
    """

    __slots__ = (
        "_at",
        "_budget",
        "_close_end",
        "_matched",
        "_queue",
        "_reason",
        "_rule",
        "_said",
        "_spent",
        "closed_by",
        "forced",
        "thinking",
    )

    def __init__(self, rule: BudgetRule, budget: int | None, *, thinking_open: bool = False) -> None:
        if budget is not None and budget < -1:
            raise ValueError(f"a budget is -1 (no limit), 0 or more tokens, not {budget}")
        self._rule = rule
        self._budget = None if budget == -1 else budget
        self.thinking = thinking_open
        self.closed_by: ClosedBy | None = None
        self.forced: list[bool] = []
        self._spent = 0  # own tokens inside blocks, those of a half-emitted close marker included
        self._matched = 0  # ids of the marker looked for that the latest own tokens match
        self._said = False  # the stop text
        self._queue: tuple[int, ...] = ()  # what is being forced,
        self._at = 0  # how much of it was observed,
        self._close_end = 0  # where its close marker ends,
        self._reason: ClosedBy = "budget"  # and why
        self._decide()

    @property
    def thinking_tokens(self) -> int:
        """Own tokens inside blocks so far; a half-emitted close marker is left out."""
        return self._spent - self._matched if self.thinking else self._spent

    @property
    def guards_eos(self) -> bool:
        """Whether an EOS sampled now has to give way to a close."""
        return self.thinking and self._budget is not None and not self._queue

    def forced_token(self) -> int | None:
        """The id that must come next; None leaves the choice to the model."""
        return self._queue[self._at] if self._queue else None

    def emit(self, sampled: int) -> int:
        """What the completion gets when the model samples `sampled`; that is observed, too."""
        if self.guards_eos and sampled in self._rule.eos_ids:
            self.close_for_eos()
        token = self._queue[self._at] if self._queue else sampled
        self.observe(token)
        return token

    def close_for_eos(self) -> None:
        """The model wants to end its turn inside the block: force the close instead."""
        self._force("eos")

    def observe(self, token_id: int) -> None:
        """Take note of the completion's next id.

        Raises:
            RuntimeError: another id was due. An engine that does not deliver forced ids must not go on unnoticed.
        """
        if self._queue:
            self._observe_forced(token_id)
            return
        self.forced.append(False)
        if token_id in self._rule.eos_ids:
            self._matched = 0
            if self.guards_eos:
                self._force("eos")
        elif self.thinking:
            self._spent += 1
            self._matched = self._rule.close_marker.advance(self._matched, token_id)
            if self._matched == len(self._rule.close_ids):
                self._spent -= self._matched
                self.thinking, self.closed_by, self._matched = False, "natural", 0
            else:
                self._decide()
        else:
            self._matched = self._rule.open_marker.advance(self._matched, token_id)
            if self._matched == len(self._rule.open_ids):
                self.thinking, self._matched = True, 0
                self._decide()

    def _observe_forced(self, token_id: int) -> None:
        if token_id != self._queue[self._at]:
            raise RuntimeError(
                f"the engine emitted {token_id} where the thinking budget forces {self._queue[self._at]}"
            )
        self.forced.append(True)
        self._at += 1
        if self._at == self._close_end:
            self._spent -= self._matched
            self.thinking, self.closed_by, self._matched = False, self._reason, 0
        if self._at == len(self._queue):
            self._queue = ()

    def _decide(self) -> None:
        """Whether the block has to close now. The one place where limits strike."""
        if self.thinking and self._budget is not None and self._spent >= self._budget:
            self._force("budget")

    def _force(self, reason: ClosedBy) -> None:
        says = reason == "budget" and not self._matched and not self._said
        self._said = self._said or says
        close = (self._rule.lead_ids if says else ()) + self._rule.close_ids[self._matched :]
        self._queue, self._at, self._close_end, self._reason = close + self._rule.tail_ids, 0, len(close), reason
