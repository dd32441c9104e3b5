"""The budget's state machine against an oracle that reads the whole stream again at every step."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from posttrain.budget.state import BudgetRule, BudgetState, Marker

EOS = 9
QWEN = BudgetRule(open_ids=(1,), close_ids=(2,), stop_ids=(7, 7, 8, 2, 3), eos_ids=frozenset({EOS}))
SPLIT = BudgetRule(open_ids=(1, 4), close_ids=(2, 4, 5), stop_ids=(7, 8, 2, 4, 5, 3, 3), eos_ids=frozenset({EOS}))


def run(
    rule: BudgetRule, budget: int | None, sampled: list[int], *, thinking_open: bool = False
) -> tuple[list[int], BudgetState]:
    """The completion of a model that samples `sampled` (forced ids take the place of samples)."""
    state = BudgetState(rule, budget, thinking_open=thinking_open)
    return [state.emit(token) for token in sampled], state


# ---------------------------------------------------------------- the rule, sentence by sentence


def test_budget_lets_exactly_n_own_tokens_through() -> None:
    stream, state = run(QWEN, 3, [1, 6, 6, 6] + [6] * 5 + [6, EOS])
    assert stream == [1, 6, 6, 6, 7, 7, 8, 2, 3, 6, EOS]
    assert state.forced == [False] * 4 + [True] * 5 + [False] * 2
    assert (state.thinking_tokens, state.closed_by, state.thinking) == (3, "budget", False)


def test_natural_close_before_the_budget_leaves_the_answer_alone() -> None:
    stream, state = run(QWEN, 3, [1, 6, 6, 2, 6, 6, 6, 6, EOS])
    assert stream == [1, 6, 6, 2, 6, 6, 6, 6, EOS]
    assert (state.thinking_tokens, state.closed_by, any(state.forced)) == (2, "natural", False)


@pytest.mark.parametrize("budget", [None, -1])
def test_without_a_limit_it_counts_and_forces_nothing(budget: int | None) -> None:
    sampled = [1] + [6] * 50 + [EOS]
    stream, state = run(QWEN, budget, sampled)
    assert stream == sampled
    assert (state.thinking_tokens, state.closed_by, state.thinking) == (50, None, True)


def test_budget_zero_closes_at_the_open_marker_and_at_an_open_prompt() -> None:
    assert run(QWEN, 0, [1] + [6] * 6)[0] == [1, 7, 7, 8, 2, 3, 6]
    assert run(QWEN, 0, [6] * 6, thinking_open=True)[0] == [7, 7, 8, 2, 3, 6]
    assert run(QWEN, 0, [6] * 6)[0] == [6] * 6  # it never opens: there is nothing to close


def test_eos_inside_thinking_closes_first_and_the_model_answers() -> None:
    stream, state = run(QWEN, 10, [1, 6, EOS, 6, 6, EOS])
    assert stream == [1, 6, 2, 3, 6, EOS]  # the reason in the stop text would be false here: it is not said
    assert state.forced == [False, False, True, True, False, False]
    assert (state.thinking_tokens, state.closed_by) == (1, "eos")


def test_eos_that_got_into_the_stream_is_followed_by_the_close() -> None:
    state = BudgetState(QWEN, 10)
    for token in (1, 6, EOS):
        state.observe(token)
    assert state.forced_token() == 2
    assert state.thinking_tokens == 1
    assert state.closed_by is None  # not before the marker is out


def test_half_emitted_marker_is_finished_not_restarted() -> None:
    stream, state = run(SPLIT, 3, [1, 4, 6, 6, 2] + [6] * 5)
    assert stream == [1, 4, 6, 6, 2, 4, 5, 3, 3, 6]
    assert state.forced == [False] * 5 + [True] * 4 + [False]
    assert (state.thinking_tokens, state.closed_by) == (2, "budget")
    stream, state = run(SPLIT, 9, [1, 4, 6, 2, 4, EOS, 6, 6, 6])
    assert stream == [1, 4, 6, 2, 4, 5, 3, 3, 6]
    assert (state.thinking_tokens, state.closed_by) == (1, "eos")


def test_half_a_marker_that_comes_to_nothing_is_thinking() -> None:
    _, state = run(SPLIT, 9, [1, 4, 6, 2, 4, 6])
    assert state.thinking_tokens == 4
    assert Marker((0, 1, 0, 2)).advance(3, 1) == 2  # 0 1 0 then 1: the last 0 was the start of a new match


def test_total_holds_over_blocks_and_reentry_gains_nothing() -> None:
    stream, state = run(QWEN, 3, [1, 6, 2, 6, 1, 6, 6] + [6] * 5 + [6, 1, 6, 6, 6])
    assert stream == [1, 6, 2, 6, 1, 6, 6, 7, 7, 8, 2, 3, 6, 1, 2, 3, 6]  # the stop text is said once
    assert state.thinking_tokens == 3


def test_open_marker_inside_a_block_is_thinking() -> None:
    _, state = run(QWEN, 9, [1, 6, 1, 6, 2])
    assert (state.thinking_tokens, state.closed_by) == (3, "natural")


def test_an_engine_that_does_not_deliver_is_noticed() -> None:
    state = BudgetState(QWEN, 0, thinking_open=True)
    with pytest.raises(RuntimeError, match="emitted 6 where the thinking budget forces 7"):
        state.observe(6)


def test_rules_and_budgets_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="does not contain"):
        BudgetRule((1,), (2,), (7, 8), frozenset({EOS}))
    with pytest.raises(ValueError, match="two different markers"):
        BudgetRule((1,), (1,), (1,), frozenset({EOS}))
    with pytest.raises(ValueError, match="-1"):
        BudgetState(QWEN, -2)


def test_a_step_costs_the_same_after_a_long_stream() -> None:
    state = BudgetState(QWEN, 10**9, thinking_open=True)

    def cost(steps: int) -> float:
        began = time.process_time()
        for _ in range(steps):
            state.forced_token()
            state.observe(6)
        return (time.process_time() - began) / steps

    early = min(cost(2_000) for _ in range(5))
    cost(300_000)
    assert min(cost(2_000) for _ in range(5)) < 5 * early


# ---------------------------------------------------------------- the oracle


@dataclass
class Oracle:
    """Knows the stream so far, and nothing else from one step to the next except which forced runs an EOS began."""

    rule: BudgetRule
    budget: int | None
    thinking_open: bool
    ids: list[int] = field(default_factory=list)
    forced: list[bool] = field(default_factory=list)
    eos_runs: set[int] = field(default_factory=set)  # where a run began because of an EOS
    due: list[int] = field(default_factory=list)

    def read(self) -> tuple[bool, int, int, str | None]:
        """From the first id on: inside a block?, own thinking tokens, half-emitted marker's length, last closed by."""
        inside, start, count = self.thinking_open, 0, 0
        closed_by: str | None = None
        while True:
            marker = self.rule.close_ids if inside else self.rule.open_ids
            end = self._find(marker, start)
            if end is None:
                break
            if inside:
                count += self._own(start, end) - sum(not self.forced[at] for at in range(end - len(marker), end))
                closed_by = self._reason(end)
                while end < len(self.ids) and self.forced[end]:  # what follows the forced marker
                    end += 1
            inside, start = not inside, end
        if not inside:
            return False, count, 0, closed_by
        return True, count + self._own(start, len(self.ids)), self._half(start), closed_by

    def _find(self, marker: tuple[int, ...], start: int) -> int | None:
        for end in range(start + len(marker), len(self.ids) + 1):
            if tuple(self.ids[end - len(marker) : end]) == marker:
                return end
        return None

    def _own(self, start: int, end: int) -> int:
        return sum(not self.forced[at] and self.ids[at] != EOS for at in range(start, end))

    def _half(self, start: int) -> int:
        end = len(self.ids)
        while end > start and self.forced[end - 1]:  # a half is the model's own, and it stays one while it is finished
            end -= 1
        block = self.ids[start:end]
        sizes = range(min(len(self.rule.close_ids) - 1, len(block)), 0, -1)
        return next((size for size in sizes if tuple(block[-size:]) == self.rule.close_ids[:size]), 0)

    def _reason(self, end: int) -> str:
        if not self.forced[end - 1]:
            return "natural"
        begin = end - 1
        while begin and self.forced[begin - 1]:
            begin -= 1
        return "eos" if begin in self.eos_runs else "budget"

    def _said(self) -> bool:
        size = len(self.rule.stop_ids)
        return any(
            all(self.forced[at : at + size]) and tuple(self.ids[at : at + size]) == self.rule.stop_ids
            for at in range(len(self.ids) - size + 1)
            if not (at and self.forced[at - 1])
        )

    def _close(self, half: int) -> list[int]:
        size = len(self.rule.close_ids)
        at = next(at for at in range(99) if self.rule.stop_ids[at : at + size] == self.rule.close_ids)
        return [*self.rule.close_ids[half:], *self.rule.stop_ids[at + size :]]

    def decide(self) -> None:
        """What is due now, when nothing was."""
        inside, count, half, _ = self.read()
        if self.budget is None or not inside or self.due:
            return
        if self.ids and self.ids[-1] == EOS:
            self.eos_runs.add(len(self.ids))
            self.due = self._close(half)
        elif count >= self.budget:
            self.due = self._close(half) if half or self._said() else list(self.rule.stop_ids)

    def step(self, sampled: int, guard: bool) -> int:
        inside, _, half, _ = self.read()
        if guard and not self.due and sampled == EOS and inside and self.budget is not None:
            self.eos_runs.add(len(self.ids))
            self.due = self._close(half)
        self.forced.append(bool(self.due))
        self.ids.append(self.due.pop(0) if self.due else sampled)
        self.decide()
        return self.ids[-1]


def ids(symbols: str, low: int, high: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.sampled_from([int(symbol) for symbol in symbols]), min_size=low, max_size=high).map(tuple)


@st.composite
def rules(draw: st.DrawFn) -> BudgetRule:
    opening, close = draw(ids("012", 1, 3)), draw(ids("012", 1, 4))
    lead, tail = draw(ids("0123", 0, 3)), draw(ids("0123", 0, 2))
    if opening == close:
        opening = (*opening, 3)
    return BudgetRule(opening, close, lead + close + tail, frozenset({EOS}))


@settings(max_examples=400, deadline=None)
@given(
    rule=rules(),
    budget=st.none() | st.integers(0, 8),
    thinking_open=st.booleans(),
    guard=st.booleans(),
    sampled=st.lists(st.sampled_from([0, 1, 2, 0, 1, 2, 3, EOS]), max_size=60),
)
@example(BudgetRule((0,), (1, 1, 2), (3, 1, 1, 2, 3), frozenset({EOS})), 3, True, True, [1, 1, 1, 0, 0, 0, 0, 0])
def test_agrees_with_the_oracle_on_every_stream(
    rule: BudgetRule, budget: int | None, thinking_open: bool, guard: bool, sampled: list[int]
) -> None:
    compare(rule, budget, thinking_open, guard, sampled)


def compare(rule: BudgetRule, budget: int | None, thinking_open: bool, guard: bool, sampled: list[int]) -> None:
    """`guard`: the engine sees samples and puts the close in an EOS's place; else the EOS stays in the stream."""
    state = BudgetState(rule, budget, thinking_open=thinking_open)
    oracle = Oracle(rule, budget, thinking_open)
    oracle.decide()
    for token in sampled:
        due = state.forced_token()
        assert due == (oracle.due[0] if oracle.due else None)
        if guard:
            emitted = state.emit(token)
        else:
            emitted = token if due is None else due
            state.observe(emitted)
        assert emitted == oracle.step(token, guard)
        inside, count, half, closed_by = oracle.read()
        assert (state.thinking, state.thinking_tokens, state.closed_by) == (inside, count - half, closed_by)
        assert budget is None or state.thinking_tokens <= budget
    assert state.forced == oracle.forced
