"""The budget's state machine: its rule sentence by sentence, and against an oracle that reads the stream again."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.budget.loop import LoopGuard
from posttrain.budget.request import BudgetRequest
from posttrain.budget.rule import BudgetRule, Marker
from posttrain.budget.state import FOREVER, BudgetOutcome, BudgetState
from tests.budget_oracle import Case, compare, random_case, step

EOS = 9
QWEN = BudgetRule(open_ids=(1,), close_ids=(2,), stop_ids=(7, 7, 8, 2, 3), eos_ids=frozenset({EOS}))
SPLIT = BudgetRule(open_ids=(1, 4), close_ids=(2, 4, 5), stop_ids=(7, 8, 2, 4, 5, 3, 3), eos_ids=frozenset({EOS}))
# 20: "Wait"; 30, 31: the markers of a tool call; 40: ends a sentence; 41: a bare period; 42: a digit
FULL = replace(
    QWEN,
    continue_ids=(20,),
    tool_open_ids=(30,),
    tool_close_ids=(31,),
    boundary_ids=frozenset({40, 41}),
    period_ids=frozenset({41}),
    unfinished_ids=frozenset({42}),
    tool_call_longest=8,
)
STOP = [7, 7, 8, 2, 3]


def run(
    rule: BudgetRule,
    request: BudgetRequest | int | None,
    sampled: list[int],
    *,
    thinking_open: bool = False,
    max_tokens: int | None = None,
) -> tuple[list[int], BudgetState]:
    """The completion of a model that samples `sampled` (forced ids take the place of samples)."""
    state = BudgetState(rule, request, thinking_open=thinking_open, max_tokens=max_tokens)
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


def test_total_holds_over_blocks() -> None:
    stream, state = run(QWEN, 3, [1, 6, 2, 6, 1, 6, 6] + [6] * 5 + [6])
    assert stream == [1, 6, 2, 6, 1, 6, 6, *STOP, 6]
    assert state.thinking_tokens == 3


@pytest.mark.parametrize("sampled", [[1, 6, 6, 6, 6, 6, 6, 6], [1, EOS, 6]])
def test_reentry_after_a_forced_close_gains_nothing(sampled: list[int]) -> None:
    stream, state = run(QWEN, 2, [*sampled, 6, 1, 6, 6, 6])
    assert stream[-4:] == [1, 2, 3, 6]  # the stop text is said once, at most
    assert state.closed_by == ("eos" if EOS in sampled else "budget")


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


def test_forced_positions_are_told() -> None:
    _, state = run(QWEN, 2, [1, 6, 6, 0, 0, 0, 0, 0, 6, 1, 0, 0, 6])
    assert state.outcome() == BudgetOutcome(2, "budget", False, 0, (3, 4, 5, 6, 7, 10, 11))
    assert [at for at, forced in enumerate(state.forced) if forced] == [3, 4, 5, 6, 7, 10, 11]
    assert not state.last_forced


def test_grace_closes_at_the_first_sentence_end_near_the_budget() -> None:
    request = BudgetRequest(thinking_budget=10, grace=4)
    stream, state = run(FULL, request, [1, 6, 40, 6, 6, 6, 6, 40] + [0] * 6)
    assert stream == [1, 6, 40, 6, 6, 6, 6, 40, *STOP, 0]  # the first 40 came at 2 of 10, the second at 7
    assert (state.closed_by, state.thinking_tokens) == ("grace", 7)
    stream, state = run(FULL, request, [1] + [6] * 11)
    assert (stream[:12], state.closed_by) == ([1] + [6] * 10 + [7], None)  # no sentence ends: the budget strikes


def test_a_period_after_a_digit_ends_no_sentence() -> None:
    request = BudgetRequest(thinking_budget=9, grace=9)
    assert run(FULL, request, [1, 42, 41, 42, 6, 41, 0])[0] == [1, 42, 41, 42, 6, 41, 7]


def test_grace_waits_for_a_half_emitted_marker() -> None:
    rule = replace(SPLIT, boundary_ids=frozenset({2}))
    assert run(rule, BudgetRequest(thinking_budget=9, grace=9), [1, 4, 6, 2, 4, 5, 0])[0] == [1, 4, 6, 2, 4, 5, 0]


def test_the_answer_keeps_its_reserve() -> None:
    request = BudgetRequest(answer_reserve=4)
    stream, state = run(FULL, request, [1] + [6] * 40, max_tokens=20)
    begin = 20 - 4 - len(STOP)
    assert stream[begin : begin + 5] == STOP
    assert (state.closed_by, begin + 5 + 4) == ("reserve", 20)
    late, state = run(FULL, request, [6] * 14 + [1, 6, 6, 6, 6, 6], max_tokens=20)
    assert late[14:18] == [1, 2, 3, 6]  # the text would have left nothing: it is left out
    assert state.closed_by == "reserve"


def test_an_early_end_becomes_a_continuation_until_the_minimum() -> None:
    request = BudgetRequest(thinking_budget=9, minimum=3)
    stream, state = run(FULL, request, [1, 6, 2, EOS, 6, 2, 6])
    assert stream == [1, 6, 20, 20, 6, 2, 6]
    assert state.forced == [False, False, True, True, False, False, False]
    assert state.outcome() == BudgetOutcome(4, "natural", False, 2, (2, 3))
    assert run(FULL, BudgetRequest(minimum=3), [1, 2, 2, 2, 2, 6])[0] == [1, 20, 20, 20, 2, 6]


def test_limits_do_not_wait_for_the_minimum() -> None:
    request = BudgetRequest(minimum=50, answer_reserve=2)
    stream, state = run(FULL, request, [1, 2] + [6] * 30, max_tokens=16)
    assert stream[1] == 20
    assert stream[9:14] == STOP
    assert state.closed_by == "reserve"


def test_a_verbatim_loop_is_closed() -> None:
    request = BudgetRequest(thinking_budget=99, loop_guard=9)
    stream, state = run(FULL, request, [1, 5, 6, 0, 5, 6, 0, 5, 6, 0, 1])
    assert stream == [1, 5, 6, 0, 5, 6, 0, 5, 6, 0, 7]
    assert state.forced_token() == 7
    longer = [1, 5, 6, 0, 1, 5, 6, 0, 1, 5, 6, 0, 1, 6]  # a block of four does not stand three times in nine tokens
    assert run(FULL, request, longer)[0] == longer


def test_nothing_is_forced_inside_a_tool_call() -> None:
    stream, state = run(FULL, 2, [1, 6, 30, 6, 1, 6, 31, EOS])
    assert stream == [1, 6, 30, 6, 1, 6, 31, EOS]  # inside a block: its tokens are no thinking, and the turn may end
    assert (state.thinking_tokens, any(state.forced)) == (1, False)
    stream, _ = run(FULL, 0, [30, 1, 6, 31, 1, 6])
    assert stream == [30, 1, 6, 31, 1, 7]  # in the answer: no marker is read inside
    stream, state = run(FULL, 2, [1, 6, 30, 31, 6, 6])
    assert stream == [1, 6, 30, 31, 6, 7]  # what follows a call is thinking again


def test_a_marker_mentioned_in_passing_is_no_call() -> None:
    stream, state = run(FULL, 2, [1, 6, 30] + [6] * 8 + [6, 6])
    assert stream == [1, 6, 30] + [6] * 8 + [6, 7]
    assert state.thinking_tokens == 2


def test_scores_only_engines_are_told_where_an_end_goes() -> None:
    state = BudgetState(FULL, BudgetRequest(minimum=1), thinking_open=True)
    assert state.redirect() == (frozenset({EOS, 2}), 20)
    state.observe(20)
    assert state.redirect() == (frozenset({EOS}), 2)
    state.observe(2)
    assert state.redirect() is None
    split = BudgetState(SPLIT, 9, thinking_open=True)
    split.observe(2)
    assert split.redirect() == (frozenset({EOS}), 4)  # the half-emitted marker goes on


def test_requests_that_cannot_be_kept_are_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens"):
        BudgetState(FULL, BudgetRequest(answer_reserve=3))
    with pytest.raises(ValueError, match="continuation"):
        BudgetState(QWEN, BudgetRequest(minimum=3))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tool_open_ids": (30,), "tool_close_ids": ()}, "two markers or none"),
        ({"tool_open_ids": (1,), "tool_close_ids": (31,)}, "two markers are equal"),
        ({"continue_ids": (6, 2)}, "contains a marker"),
        ({"continue_ids": (6, EOS)}, "contains a marker or an end"),
    ],
)
def test_rules_that_make_no_sense_are_refused(change: dict[str, tuple[int, ...]], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        replace(QWEN, **change)  # type: ignore[arg-type]


# ---------------------------------------------------------------- against brute force

SEEDS = st.integers(0, 2**48)


@settings(max_examples=600)
@given(seed=SEEDS)
def test_agrees_with_the_oracle_on_every_stream(seed: int) -> None:
    compare(random_case(seed, longest=60))


@settings(max_examples=150)
@given(seed=SEEDS)
def test_a_replayed_state_stands_where_the_live_one_stood(seed: int) -> None:
    """Any prefix, in any pieces. Where the engine replaced ends that it saw, the flags are needed, too."""
    draw, case = random.Random(seed), random_case(seed)
    live, stream = fresh(case), list[int]()
    snapshots = [snapshot(live)]
    for sampled in case.sampled:
        stream.append(step(live, sampled, case.engine))
        snapshots.append(snapshot(live))
    flags = live.forced if case.engine == "emit" else None
    for length in range(len(stream) + 1):
        cut = draw.randint(0, length)
        first = fresh(case)
        first.replay(stream[:cut], flags and flags[:cut])
        then = first.copy()
        then.replay(stream[cut:length], flags and flags[cut:length])
        assert snapshot(then) == snapshots[length]
        assert snapshot(first) == snapshots[cut]  # the copy went its own way


def snapshot(state: BudgetState) -> tuple[object, ...]:
    return state.forced_token(), state.redirect(), state.in_call, state.quiet(), state.outcome()


def fresh(case: Case) -> BudgetState:
    return BudgetState(case.rule, case.request, thinking_open=case.thinking_open, max_tokens=case.max_tokens)


@settings(max_examples=300)
@given(
    size=st.integers(3, 14),
    pieces=st.lists(
        st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.integers(1, 7)), min_size=1, max_size=6
    ),
)
def test_the_loop_guard_finds_what_a_look_at_every_token_finds(size: int, pieces: list[tuple[list[int], int]]) -> None:
    tokens = [token for block, times in pieces for token in block * times]
    guard = LoopGuard(size)
    for at in range(len(tokens)):
        guard.add(tokens[at])
        latest = tokens[max(0, at + 1 - size) : at + 1]
        expected = len(latest) == size and any(
            latest[period:] == latest[:-period] for period in range(1, size // 3 + 1)
        )
        assert guard.found() == expected
        if expected:
            return


def test_a_step_costs_the_same_after_a_long_stream() -> None:
    request = BudgetRequest(10**9, grace=100, answer_reserve=100, minimum=10**8, loop_guard=300)
    state = BudgetState(FULL, request, thinking_open=True, max_tokens=10**9)
    draw = random.Random(0)
    tokens = [draw.choice((5, 6, 40, 41, 42)) for _ in range(2_000)]

    def cost() -> float:
        began = time.process_time()
        for token in tokens:
            state.forced_token()
            state.observe(token)
        return time.process_time() - began

    early = min(cost() for _ in range(5))
    state.replay([draw.choice((5, 6, 40, 41, 42)) for _ in range(300_000)])
    assert min(cost() for _ in range(5)) < 5 * early


def test_rows_that_need_no_look_are_told() -> None:
    state = BudgetState(FULL, BudgetRequest(thinking_budget=1000, grace=100))
    assert state.quiet() == FOREVER  # in the answer only a mark matters
    state.observe(1)
    assert state.quiet() == 1000 - 100 - 1
    state.replay([6] * 899)
    assert (state.quiet(), state.forced_token()) == (0, None)
    state.observe(40)
    assert state.forced_token() == 7
