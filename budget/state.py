"""The thinking budget of one completion: a state machine over token ids. It knows no engine, tokenizer or text.

The rule
--------
**Own and forced tokens.** A completion is a stream of token ids. Each is either forced by this rule or the model's
own. What is asked stands in a `BudgetRequest`; the ids in a `BudgetRule`. A request without budget, reserve, minimum
and loop guard has no limit: then the machine watches and counts, and forces nothing.

**What opens thinking.** The open marker, emitted by the model itself outside a block and outside a tool call; or a
generation prompt that ends inside an open block (`thinking_open=True`). Never a marker that a user typed or that an
earlier turn contains: the prompt's ids do not reach this machine. Inside a block another open marker is ordinary
thinking.

**What counts.** The model's own tokens strictly inside a block, and continuations (below), over all blocks of the
completion together. Not the markers, not other forced tokens, not an EOS, not a tool call. A budget of N means at
most N such tokens; 0 means none.

**What closes a block**, after any token inside it, the first of these that holds:
- `natural`: the model has emitted the whole close marker.
- `budget`: N tokens are spent. A marker half emitted counts as spent until it is complete (it may still turn out to
  be thinking), so the budget strikes then too, but lets the marker finish: only its remaining ids are forced.
- `reserve`: with an answer reserve of R and `max_tokens` of M, no more than R tokens and the stop text are left of M
  (of all tokens of the completion). So the answer gets at least R, where the block began early enough.
- `loop`: with a loop guard of L, the latest L counted tokens of the block are a block of at most L // 3 tokens
  repeated verbatim. A forced token other than a continuation, a tool call and an EOS begin the L afresh.
- `grace`: with a grace of G, no more than G tokens are left until budget or reserve would strike, the latest token is
  a boundary (`boundary_ids`, but no bare period right after one of `unfinished_ids` in this block), no marker is half
  emitted, and the minimum is reached.
- `eos`: the model ends its turn inside the block: the block is closed, and the model answers.
Budget and reserve strike as soon as a block opens, too.

**An end below the minimum.** With a minimum of A, the model's own end of thinking (the id that completes the close
marker, or an EOS) is replaced by the continuation ("Wait": budget forcing, Muennighoff et al. 2025, arXiv
2501.19393), as long as this leaves the count at no more than A and the reserve some way off. That happens at every
such end, not only at the first: so A is reached (to within a continuation) unless another limit closes the block, and
because a continuation counts, even an obstinate model gets no more than A of them. Limits do not wait for the minimum
(a budget is never below it), but grace does.

**What is forced at a close.** For `budget`, `reserve`, `loop`, `grace`: every id of `stop_ids`, what follows the
close marker included. The short close, which is what is left of the close marker and what follows it in `stop_ids`,
takes its place where the marker is half emitted, for `eos` (the stop text gives a reason that would be false), after
an earlier forced close, and where the text would eat into the reserve (a block that opened too late).

**What comes after.** The model answers. After a natural close it may think again, and the total goes on. After a
forced close, a block that opens is closed at once, for the same reason: re-entry gains nothing.

**Tool calls.** From a whole tool-call open marker to the whole close marker, nothing is forced, counted or replaced,
and the open marker is not read. Inside a block a call also ends with the natural close of the block. An EOS inside a
call, or directly after one, ends the turn: it is left alone, in a block too. Limits that are due strike after the
next token that counts. A call that is open for `tool_call_longest` tokens was a marker mentioned in passing: what
follows is read as if the call were over, so that no limit is lost. The markers of a call inside a block do not count
once they are whole.

**Markers** may have one or several ids. They are made of consecutive own tokens; matching starts afresh after a
complete marker, an EOS and a forced sequence, at a call that became too long, and does not go on within a
continuation. Where two are complete at once, the think marker counts. All steps are O(1) amortised, whatever the
length of the stream.

Engines
-------
**One that sees the sampled token** calls `emit`, which puts a close or a continuation in the place of an end.

**One that edits scores only** (a logits processor) cannot see an end before it is emitted. While `redirect()` names
ids, none of these may be emitted, and their probability belongs to the id that it names: the next of the close
marker, or the first of the continuation. With scores s and a temperature t the score of that id becomes t log(sum
exp(s_i / t)) over itself and the others, the greatest of them for t = 0, and the others' -inf. The id is then the
model's own, not forced. So an EOS closes thinking as a natural close, and everything is a function of the emitted
tokens alone. Of a continuation of several ids only the first is put there; the others are up to the model. One that
decides before sampling whether the end comes may call `close_for_eos` instead.

**Preemption and replay.** A fresh state that is fed with the tokens emitted so far, forced ones included (`observe`,
`replay`), stands where the state of the live run stands, and goes on in the middle of a forced sequence. Not knowable
from tokens is that `emit` or `close_for_eos` replaced an end: the ids put there read as own ones, the close as
natural, and a continuation of several ids, if the prefix ends inside it, as over. With the flags of the live run
(`forced`) this is known, too. An EOS that got into the stream all the same is followed by what would have replaced
it.

**Rows that need no look.** For the next `quiet()` tokens nothing is forced and `redirect()` stays as it is, unless
one of them is in `rule.marks`. Until then an engine may leave the state alone, and `replay` the tokens later.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from posttrain.budget.limits import FOREVER, Limit, Limits
from posttrain.budget.reader import BlockReader
from posttrain.budget.request import BudgetRequest
from posttrain.budget.rule import BudgetRule

__all__ = ["FOREVER", "BudgetOutcome", "BudgetRule", "BudgetState", "ClosedBy"]

ClosedBy = Literal["natural", "eos"] | Limit

_AT_ONCE = 1024  # tokens that `replay` looks at together


@dataclass(frozen=True)
class BudgetOutcome:
    """What happened to the thinking of one completion.

    Attributes:
        thinking_tokens: counted tokens.
        closed_by: how the latest block was closed; None where none was.
        thinking: a block is still open.
        continued: ends that a continuation replaced (where the engine sees them: `BudgetState.emit`).
        forced_positions: which tokens of the completion were forced; trainers leave them out.
    """

    thinking_tokens: int
    closed_by: ClosedBy | None
    thinking: bool
    continued: int
    forced_positions: tuple[int, ...]


class BudgetState:
    """Where one completion stands under the rule of this module's docstring.

    Args:
        rule: the ids.
        request: what is asked; a number of tokens, None or -1 stands for a request with that budget alone.
        thinking_open: the generation prompt ends inside an open block.
        max_tokens: tokens that the completion may have, forced ones included.

    Attributes:
        closed_by: how the latest block was closed; None where none was.
        length: tokens observed.

    Raises:
        ValueError: the request makes no sense, or asks for a reserve without `max_tokens`, or for a minimum where the
            rule has no continuation.
    """

    __slots__ = (
        "_at", "_close_end", "_continued", "_continuing", "_limits", "_queue", "_reader", "_reason", "_rule", "_runs",
        "_shut", "closed_by", "length",
    )  # fmt: skip

    def __init__(
        self,
        rule: BudgetRule,
        request: BudgetRequest | int | None,
        *,
        thinking_open: bool = False,
        max_tokens: int | None = None,
    ) -> None:
        if not isinstance(request, BudgetRequest):
            request = BudgetRequest(request)
        self._rule = rule
        self._limits = Limits(rule, request, max_tokens)
        self._reader = BlockReader(rule, thinking_open)
        self.closed_by: ClosedBy | None = None
        self.length = 0
        self._runs: list[int] = []  # begin and end of every run of forced tokens, one after another
        self._continued = 0
        self._shut: ClosedBy | None = None  # why the first forced close came
        self._queue: tuple[int, ...] = ()  # what is being forced,
        self._at = 0  # how much of it was observed,
        self._continuing = False  # whether it is a continuation,
        self._close_end = 0  # if not, where its close marker ends
        self._reason: ClosedBy = "budget"  # and why it is forced
        self._decide(False)

    # What an engine asks.

    @property
    def thinking(self) -> bool:
        """Inside a block; while a close is being forced, until its marker is complete."""
        return self._reader.thinking

    @property
    def in_call(self) -> bool:
        """Inside a tool call."""
        return self._reader.in_call

    @property
    def thinking_tokens(self) -> int:
        """Counted tokens so far; a half-emitted close marker is left out."""
        reader = self._reader
        return reader.counted - reader.matched if reader.thinking and not reader.in_call else reader.counted

    @property
    def forced(self) -> list[bool]:
        """One flag per observed token."""
        flags = [False] * self.length
        for begin, end in zip(self._runs[::2], self._runs[1::2], strict=True):
            flags[begin:end] = [True] * (end - begin)
        return flags

    @property
    def last_forced(self) -> bool:
        """Whether the latest token was forced."""
        return bool(self._runs) and self._runs[-1] == self.length

    @property
    def guards_eos(self) -> bool:
        """Whether an EOS sampled now has to give way to a close or a continuation."""
        reader = self._reader
        return reader.thinking and self._limits.active and not (self._queue or reader.in_call or reader.after_call)

    def forced_token(self) -> int | None:
        """The id that must come next; None leaves the choice to the model."""
        return self._queue[self._at] if self._queue else None

    @property
    def due(self) -> tuple[int, ...]:
        """The ids that must come next, one after the other. What follows them is known only when they came."""
        return self._queue[self._at :]

    def redirect(self) -> tuple[frozenset[int], int] | None:
        """The ids that must not be emitted now, and the id that their probability belongs to; None: all may be."""
        if not self.guards_eos:
            return None
        rule, matched = self._rule, self._reader.matched
        if not self._limits.early(self._reader, self.length):
            return rule.eos_ids, rule.close_ids[matched]
        return rule.end_ids if matched == len(rule.close_ids) - 1 else rule.eos_ids, rule.continue_ids[0]

    def quiet(self) -> int:
        """How many further tokens, none of them in `rule.marks`, leave `forced_token()` None and `redirect()` alone."""
        reader = self._reader
        if self._queue or reader.matched or reader.tool_matched or (reader.after_call and reader.thinking):
            return 0
        if reader.in_call:
            return self._rule.tool_call_longest - reader.call_length - 1
        if not reader.thinking or not self._limits.active:
            return FOREVER
        return self._limits.quiet(reader, self.length)

    def outcome(self) -> BudgetOutcome:
        """What happened so far."""
        runs = zip(self._runs[::2], self._runs[1::2], strict=True)
        forced = tuple(position for run in runs for position in range(*run))
        return BudgetOutcome(self.thinking_tokens, self.closed_by, self.thinking, self._continued, forced)

    def copy(self) -> BudgetState:
        """A state that goes its own way from here, for tokens that may be taken back (drafts)."""
        other = copy.copy(self)
        other._reader = copy.copy(self._reader)
        other._runs = self._runs.copy()
        other._limits = self._limits.copy()
        return other

    # What an engine tells.

    def emit(self, sampled: int) -> int:
        """What the completion gets when the model samples `sampled`; that is observed, too."""
        if sampled in self._rule.end_ids and (redirect := self.redirect()) is not None and sampled in redirect[0]:
            self._replace_end()
        token = self._queue[self._at] if self._queue else sampled
        self.observe(token)
        return token

    def close_for_eos(self) -> None:
        """The model wants to end its turn inside a block: force what takes the place of that."""
        self._replace_end()

    def replay(self, tokens: Sequence[int], forced: Sequence[bool] | None = None, *, plain: int = 0) -> None:
        """Take note of tokens that were emitted already.

        Args:
            tokens: the ids that follow those observed so far.
            forced: their flags in the live run (`forced`), where they are known. They tell which ends were replaced.
            plain: of the first so many it is known that none is a mark; they are no more than `quiet()`.

        Raises:
            RuntimeError: as `observe`.
        """
        if forced is not None:
            for token, flag in zip(tokens, forced, strict=True):
                self.observe(token, forced=flag)
            return
        at, marks = plain, self._rule.marks
        if plain:
            self._pass_over(tokens[:plain])
        while at < len(tokens):
            if self._queue:
                at += self._observe_forced(tokens[at : at + len(self._queue) - self._at])
                continue
            some = tokens[at : at + min(self.quiet(), _AT_ONCE)]
            if not marks.isdisjoint(some):
                some = some[: next(place for place, token in enumerate(some) if token in marks)]
            if some:
                self._pass_over(some)
                at += len(some)
            else:
                self.observe(tokens[at])
                at += 1

    def observe(self, token_id: int, *, forced: bool = False) -> None:
        """Take note of the completion's next id.

        Args:
            forced: the live run flagged it as forced. Where nothing is due, it then begins what replaced an end.

        Raises:
            RuntimeError: another id was due. An engine that does not deliver forced ids must not go on unnoticed.
        """
        if forced and not self._queue:
            self._replace_end()
        if self._queue:
            self._observe_forced((token_id,))
            return
        guarded = self.guards_eos
        self.length += 1
        event = self._reader.read(token_id)
        if event == "counted":
            self._decide(self._limits.count(token_id))
            return
        self._limits.forget()
        if event == "closed":
            self.closed_by = "natural"
        elif event == "opened":
            self._decide(False)
        elif event == "end" and guarded:
            self._replace_end()

    def _observe_forced(self, tokens: Sequence[int]) -> int:
        """Take note of tokens that are due, no more than are. Returns how many there were."""
        due = self._queue[self._at : self._at + len(tokens)]
        wrong = None if due == tuple(tokens) else next(at for at, token in enumerate(tokens) if token != due[at])
        came = due[:wrong]
        if came:
            if self.last_forced:
                self._runs[-1] += len(came)
            else:
                self._runs += [self.length, self.length + len(came)]
            self.length += len(came)
            before, self._at = self._at, self._at + len(came)
            boundary = False
            if self._continuing:
                for token in came:
                    self._reader.count()
                    boundary = self._limits.count(token)
            elif before < self._close_end <= self._at:
                self._reader.close()
                self.closed_by = self._reason
            if self._at == len(self._queue):
                self._queue, self._continuing = (), False
                self._decide(boundary)
        if wrong is not None:
            raise RuntimeError(f"the engine emitted {tokens[wrong]} where the thinking budget forces {due[wrong]}")
        return len(came)

    def _pass_over(self, tokens: Sequence[int]) -> None:
        """Take note of some of the `quiet` tokens, none of them a mark."""
        self.length += len(tokens)
        self._reader.pass_over(tokens)
        if self._reader.thinking and not self._reader.in_call:
            self._limits.pass_over(tokens)

    def _decide(self, boundary: bool) -> None:
        """Whether the block has to close now. The one place where limits strike; `boundary`: at the latest token."""
        if self._shut is not None and self._reader.thinking:
            self._close(self._shut)
        elif (limit := self._limits.due(self._reader, self.length, boundary)) is not None:
            self._close(limit)

    def _close(self, reason: ClosedBy) -> None:
        """Begin a forced close."""
        matched = self._reader.matched
        says = reason != "eos" and not matched and self._shut is None and self._limits.spares(self.length)
        self._shut = reason
        close = (self._rule.lead_ids if says else ()) + self._rule.close_ids[matched:]
        self._queue, self._at, self._close_end, self._reason = close + self._rule.tail_ids, 0, len(close), reason

    def _replace_end(self) -> None:
        """The model ends its thinking, or its turn inside a block: begin what takes the place of that."""
        if not self.guards_eos:
            raise RuntimeError("no end of thinking can be replaced here")
        if not self._limits.early(self._reader, self.length):
            self._close("eos")
            return
        self._reader.match_afresh()
        self._queue, self._at, self._continuing = self._rule.continue_ids, 0, True
        self._continued += 1
