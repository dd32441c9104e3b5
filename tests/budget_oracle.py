"""A brute-force reading of the thinking budget's rule, and random streams to hold the state machine against.

The oracle was written from the docstring of `posttrain.budget.state` alone. It has no memory of its own but the stream,
the flags of its forced tokens and where what it forced began; at every step it reads all of the stream again.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from posttrain.budget.request import BudgetRequest
from posttrain.budget.rule import BudgetRule
from posttrain.budget.state import BudgetState

# How an engine meets an end of thinking: it sees the sampled token, or edits scores only, or does neither.
Engine = Literal["emit", "scores", "stream"]


@dataclass(frozen=True)
class Case:
    """One stream: what is asked, and what the model samples where nothing is forced."""

    rule: BudgetRule
    request: BudgetRequest
    thinking_open: bool
    max_tokens: int | None
    engine: Engine
    sampled: tuple[int, ...]


@dataclass(slots=True)
class Reading:
    """What the stream is read as, up to its end."""

    thinking: bool
    in_call: bool = False
    after_call: bool = False
    counted: list[int] = field(default_factory=list)  # positions
    row: list[int] = field(default_factory=list)  # positions of this block's latest counted tokens, nothing in between
    fresh: int = 0  # where matching began
    call_at: int = 0  # first position after the open marker of a call
    closed_by: str | None = None
    shut: str | None = None  # why the first forced close came
    looks: bool = True  # limits are looked at after the latest token


@dataclass
class Forced:
    begin: int
    ids: tuple[int, ...]
    close_end: int  # position after the close marker; -1 for a continuation
    reason: str


class Oracle:
    """The rule, read again from the first token at every step."""

    def __init__(self, case: Case) -> None:
        self.rule, self.request = case.rule, case.request
        self.thinking_open, self.max_tokens = case.thinking_open, case.max_tokens
        self.ids: list[int] = []
        self.flags: list[bool] = []
        self.sequences: list[Forced] = []
        self.now = self.read()
        self.strike()
        self.redirect = self.redirected()

    # Reading.

    def read(self) -> Reading:
        now = Reading(self.thinking_open)
        ids, eos_ids = self.ids, self.rule.eos_ids
        forced = {at: each for each in self.sequences for at in range(each.begin, each.begin + len(each.ids))}
        for at in range(len(ids)):
            now.after_call = now.looks = False
            if at in forced:
                self.read_forced(now, at, forced[at])
            elif ids[at] in eos_ids:
                now.in_call, now.fresh, now.row = False, at + 1, []
            elif now.in_call:
                self.read_in_call(now, at)
            elif now.thinking:
                self.read_in_block(now, at)
            elif self.ends(self.rule.open_ids, now, at):
                now.thinking, now.looks, now.fresh, now.row = True, True, at + 1, []
            elif self.ends(self.rule.tool_open_ids, now, at):
                self.begin_call(now, at)
        return now

    def read_forced(self, now: Reading, at: int, sequence: Forced) -> None:
        now.fresh = at + 1
        if sequence.close_end < 0:
            now.counted.append(at)
            now.row.append(at)
            now.looks = at + 1 == sequence.begin + len(sequence.ids)
            return
        now.shut = now.shut or sequence.reason
        if at + 1 == sequence.close_end:
            del now.counted[len(now.counted) - self.begun(sequence) :]
            now.thinking, now.closed_by, now.row = False, sequence.reason, []

    def read_in_block(self, now: Reading, at: int) -> None:
        now.counted.append(at)
        now.row.append(at)
        now.looks = True
        if self.ends(self.rule.close_ids, now, at):
            del now.counted[-len(self.rule.close_ids) :]
            now.thinking, now.looks, now.closed_by, now.fresh, now.row = False, False, "natural", at + 1, []
        elif self.ends(self.rule.tool_open_ids, now, at):
            del now.counted[-len(self.rule.tool_open_ids) :]
            self.begin_call(now, at)

    def read_in_call(self, now: Reading, at: int) -> None:
        if now.thinking and self.ends(self.rule.close_ids, now, at):
            now.thinking, now.in_call, now.closed_by, now.fresh = False, False, "natural", at + 1
        elif self.ends(self.rule.tool_close_ids, now, at):
            now.in_call, now.after_call, now.fresh = False, True, at + 1
        elif at + 1 - now.call_at >= self.rule.tool_call_longest:
            now.in_call, now.fresh = False, at + 1

    def begin_call(self, now: Reading, at: int) -> None:
        now.in_call, now.looks, now.call_at, now.fresh, now.row = True, False, at + 1, at + 1, []

    def ends(self, marker: tuple[int, ...], now: Reading, at: int) -> bool:
        if not marker or self.ids[at] != marker[-1]:
            return False
        begin = at + 1 - len(marker)
        return begin >= now.fresh and tuple(self.ids[begin : at + 1]) == marker

    def begun(self, sequence: Forced) -> int:
        """How many ids of the close marker the model had emitted before the rest was forced."""
        return max(0, len(self.rule.close_ids) - (sequence.close_end - sequence.begin))

    def half(self, marker: tuple[int, ...]) -> int:
        latest = self.ids[self.now.fresh :]
        sizes = range(min(len(marker) - 1, len(latest)), 0, -1)
        return next((size for size in sizes if tuple(latest[-size:]) == marker[:size]), 0)

    # Deciding.

    @property
    def due(self) -> int | None:
        """The id that is forced next."""
        running = self.running
        return None if running is None else running.ids[len(self.ids) - running.begin]

    @property
    def running(self) -> Forced | None:
        latest = self.sequences[-1] if self.sequences else None
        return latest if latest is not None and len(self.ids) < latest.begin + len(latest.ids) else None

    @property
    def count(self) -> int:
        """Counted tokens without a half-emitted close marker, be its rest the model's or forced."""
        size = len(self.now.counted)
        if not self.now.thinking or self.now.in_call:
            return size
        if self.running is not None and self.running.close_end >= 0:
            return size - self.begun(self.running)
        return size - self.half(self.rule.close_ids)

    @property
    def limited(self) -> bool:
        asked = self.request
        return (
            not (asked.thinking_budget is None and asked.loop_guard is None) or asked.answer_reserve + asked.minimum > 0
        )

    def left(self) -> int | None:
        """Tokens of max_tokens left beside the reserve and the stop text; None: there is no reserve."""
        if not self.request.answer_reserve or self.max_tokens is None:
            return None
        return self.max_tokens - len(self.ids) - self.request.answer_reserve - len(self.rule.stop_ids)

    def strike(self) -> None:
        """Begin a forced close where a limit is due."""
        now, asked, left = self.now, self.request, self.left()
        if not (self.limited and now.thinking and now.looks) or self.due is not None:
            return
        spent = len(now.counted)
        room = [] if left is None else [left]
        room += [] if asked.thinking_budget is None else [asked.thinking_budget - spent]
        if now.shut:
            self.close(now.shut)
        elif asked.thinking_budget is not None and spent >= asked.thinking_budget:
            self.close("budget")
        elif left is not None and left <= 0:
            self.close("reserve")
        elif asked.loop_guard is not None and self.loops(asked.loop_guard):
            self.close("loop")
        elif room and min(room) <= asked.grace and self.at_boundary() and spent >= asked.minimum:
            self.close("grace")

    def loops(self, size: int) -> bool:
        latest = [self.ids[at] for at in self.now.row[-size:]]
        return len(latest) == size and any(
            all(latest[at] == latest[at - period] for at in range(period, size)) for period in range(1, size // 3 + 1)
        )

    def at_boundary(self) -> bool:
        row = self.now.row
        if not row or self.half(self.rule.close_ids) or self.half(self.rule.tool_open_ids):
            return False
        latest = self.ids[row[-1]]
        unfinished = len(row) > 1 and self.ids[row[-2]] in self.rule.unfinished_ids
        return latest in self.rule.boundary_ids and not (unfinished and latest in self.rule.period_ids)

    def close(self, reason: str) -> None:
        rule, left, half = self.rule, self.left(), self.half(self.rule.close_ids)
        close = next(at for at in range(99) if rule.stop_ids[at : at + len(rule.close_ids)] == rule.close_ids)
        short = half or reason == "eos" or self.now.shut or (left is not None and left < 0)
        ids = rule.stop_ids[close + half :] if short else rule.stop_ids
        tail = len(rule.stop_ids) - close - len(rule.close_ids)
        self.sequences.append(Forced(len(self.ids), ids, len(self.ids) + len(ids) - tail, reason))

    def replace_end(self) -> None:
        if self.early():
            self.sequences.append(Forced(len(self.ids), self.rule.continue_ids, -1, "continued"))
        else:
            self.close("eos")

    def early(self) -> bool:
        size, left = len(self.rule.continue_ids), self.left()
        fits = len(self.now.counted) + size <= self.request.minimum
        return self.request.minimum > 0 and fits and (left is None or left > size)

    def redirected(self) -> tuple[frozenset[int], int] | None:
        now, rule = self.now, self.rule
        if not (self.limited and now.thinking) or now.in_call or now.after_call or self.due is not None:
            return None
        half = self.half(rule.close_ids)
        if not self.early():
            return rule.eos_ids, rule.close_ids[half]
        completes = {rule.close_ids[-1]} if half == len(rule.close_ids) - 1 else set()
        return rule.eos_ids | completes, rule.continue_ids[0]

    def step(self, sampled: int, engine: Engine) -> int:
        """One more token of the completion."""
        redirect = self.redirect
        if engine == "emit" and redirect and sampled in redirect[0]:
            self.replace_end()
        elif engine == "scores" and redirect and sampled in redirect[0]:
            sampled = redirect[1]
        due = self.due
        token = sampled if due is None else due
        self.ids.append(token)
        self.flags.append(due is not None)
        self.now = self.read()
        if due is None and redirect and token in self.rule.eos_ids:
            self.replace_end()
        self.strike()
        self.redirect = self.redirected()
        return token


# ---------------------------------------------------------------- the state machine beside it


def step(state: BudgetState, sampled: int, engine: Engine) -> int:
    """What an engine of this kind does."""
    if engine == "emit":
        return state.emit(sampled)
    redirect, due = state.redirect(), state.forced_token()
    if engine == "scores" and redirect and sampled in redirect[0]:
        sampled = redirect[1]
    token = sampled if due is None else due
    state.observe(token)
    return token


def seen(state: BudgetState | Oracle) -> tuple[object, ...]:
    """Everything an engine can ask for that the oracle knows as well."""
    if isinstance(state, Oracle):
        now = state.now
        return state.due, state.redirect, now.thinking, now.in_call, state.count, now.closed_by
    return (
        state.forced_token(),
        state.redirect(),
        state.thinking,
        state.in_call,
        state.thinking_tokens,
        state.closed_by,
    )


def compare(case: Case) -> tuple[BudgetState, list[int]]:
    """Run both over a case. AssertionError where they differ, or where the machine was not as quiet as it said."""
    state = BudgetState(case.rule, case.request, thinking_open=case.thinking_open, max_tokens=case.max_tokens)
    oracle = Oracle(case)
    stream: list[int] = []
    now = seen(state)
    assert now == seen(oracle), (case, stream)
    budget = case.request.thinking_budget
    quiet, promised = state.quiet(), now[:2]
    for sampled in case.sampled:
        token = step(state, sampled, case.engine)
        stream.append(token)
        assert token == oracle.step(sampled, case.engine), (case, stream)
        now = seen(state)
        assert now == seen(oracle), (case, stream, now, seen(oracle))
        assert budget is None or state.thinking_tokens <= budget, (case, stream)
        if quiet and token not in case.rule.marks and sampled not in case.rule.marks:
            assert now[:2] == promised, (case, stream, "quiet")
            quiet -= 1
        else:
            quiet, promised = state.quiet(), now[:2]
    assert state.forced == oracle.flags, (case, stream)
    return state, stream


# ---------------------------------------------------------------- random cases

EOS = 9


def random_rule(draw: random.Random) -> BudgetRule:
    """Markers of one to four ids out of few, so that they overlap themselves and each other."""

    def ids(symbols: int, low: int, high: int) -> tuple[int, ...]:
        return tuple(int(draw.random() * symbols) for _ in range(draw.randint(low, high)))

    def some() -> frozenset[int]:
        return frozenset(symbol for symbol in range(6) if draw.random() < 0.4)

    while True:
        close = ids(3, 1, 4)
        boundary = some()
        tools = draw.random() < 0.6
        try:
            return BudgetRule(
                open_ids=ids(3, 1, 3),
                close_ids=close,
                stop_ids=ids(4, 0, 3) + close + ids(4, 0, 2),
                eos_ids=frozenset({EOS, 8} if draw.random() < 0.3 else {EOS}),
                continue_ids=ids(6, 1, 2),
                tool_open_ids=ids(4, 1, 3) if tools else (),
                tool_close_ids=ids(4, 1, 3) if tools else (),
                boundary_ids=boundary,
                period_ids=boundary & some(),
                unfinished_ids=some(),
                tool_call_longest=draw.randint(1, 9),
            )
        except ValueError:
            continue  # two markers are equal, or the continuation contains one


@lru_cache(1)
def rule_of(seed: int) -> BudgetRule:
    return random_rule(random.Random(seed))


def random_case(seed: int, longest: int = 0) -> Case:
    """The case of a seed, every feature switched on or off at random. Eight seeds in a row share a rule.

    Args:
        longest: tokens of the stream at most; 0: some number or other.
    """
    draw, rule = random.Random(seed), rule_of(seed // 8)
    longest = longest or draw.choice((8, 12, 12, 16, 16, 20, 36))
    budget = draw.choice((None, draw.randint(0, 4), draw.randint(2, 16)))
    reserve = draw.choice((0, 0, draw.randint(1, 8)))
    request = BudgetRequest(
        thinking_budget=budget,
        grace=draw.choice((0, draw.randint(1, 6))),
        answer_reserve=reserve,
        minimum=draw.choice((0, 0, draw.randint(0, 10 if budget is None else budget))),
        loop_guard=draw.choice((None, None, draw.randint(3, 10))),
    )
    return Case(
        rule,
        request,
        thinking_open=draw.random() < 0.6,
        max_tokens=draw.randint(1, longest) if reserve or draw.random() < 0.5 else None,
        engine=draw.choice(("emit", "scores", "stream")),
        sampled=tuple(random_samples(draw, rule, draw.randint(0, longest))),
    )


def random_samples(draw: random.Random, rule: BudgetRule, size: int) -> list[int]:
    """Single ids, whole markers, halves of markers, ends, and stretches said again."""
    markers = [ids for ids in (rule.open_ids, rule.close_ids, rule.tool_open_ids, rule.tool_close_ids) if ids]
    sampled: list[int] = []
    while len(sampled) < size:
        kind = draw.random()
        if kind < 0.55:
            sampled.append(draw.randint(0, 6))
        elif kind < 0.8:
            marker = draw.choice(markers)
            sampled += marker[: len(marker) if draw.random() < 0.7 else draw.randint(1, len(marker))]
        elif kind < 0.88:
            sampled.append(draw.choice(sorted(rule.eos_ids)))
        elif sampled:
            block = sampled[-draw.randint(1, 3) :]
            sampled += block * draw.randint(1, 6)
    return sampled[:size]
