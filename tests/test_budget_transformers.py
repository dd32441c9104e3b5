"""The budget inside transformers' own `generate`, on a real tiny Qwen3 with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, Qwen3Config, Qwen3ForCausalLM, StoppingCriteria, StoppingCriteriaList

from posttrain.budget.request import BudgetRequest
from posttrain.budget.state import BudgetRule, BudgetState
from posttrain.budget.transformers import ThinkingBudgetProcessor
from posttrain.errors import PosttrainError

PAD, EOS, OPEN, CLOSE = 0, 1, 2, 3
RULE = BudgetRule((OPEN,), (CLOSE,), (10, 11, 12, CLOSE, 13), frozenset({EOS}))
SPLIT = BudgetRule((OPEN, 5), (CLOSE, 5, 6), (10, 11, CLOSE, 5, 6, 13, 13), frozenset({EOS, 4}))


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=32,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        intermediate_size=64,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config).eval()


class Script(LogitsProcessor):  # type: ignore[misc]
    """Makes every row want the ids of a script, one per step; what is forced comes after it and wins."""

    def __init__(self, *ids: int) -> None:
        self.ids = list(ids)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, self.ids.pop(0) if self.ids else 20] += 1e4
        return scores


class Lean(LogitsProcessor):  # type: ignore[misc]
    """Makes markers, halves of markers and ends likely."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, [OPEN, CLOSE]] += 2.0
        for first, second in ((OPEN, 5), (CLOSE, 5), (5, 6)):
            scores[input_ids[:, -1] == first, second] += 5.0
        return scores


def prompts(rows: int, longest: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded prompts of different lengths."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(14, 32, (rows, longest), generator=generator)
    mask = torch.arange(longest) >= (torch.arange(rows) % (longest - 1))[:, None]
    return ids.masked_fill(~mask, PAD), mask.long()


def generate(
    model: Any, processor: ThinkingBudgetProcessor, *before: LogitsProcessor, rows: int, **options: Any
) -> list[list[int]]:
    """The completions, up to and with the EOS."""
    ids, mask = prompts(rows)
    options = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": [EOS, 4]} | options
    torch.manual_seed(3)
    output = model.generate(
        ids, attention_mask=mask, logits_processor=[*before, processor], pad_token_id=PAD, **options
    )
    processor.finish(output)
    completions = []
    for row in output[:, ids.shape[1] :].tolist():
        ends = [at for at, token in enumerate(row) if token in (EOS, 4)]
        completions.append(row[: ends[0] + 1] if ends else row)
    return completions


def test_budgets_of_a_mixed_batch_are_exact(model: Any) -> None:
    budgets = [0, 1, 5, 30, None, -1]
    processor = ThinkingBudgetProcessor(RULE, budgets)
    completions = generate(model, processor, Script(20, OPEN), rows=6)
    for budget, completion, state in zip(budgets, completions, processor.states, strict=True):
        if budget is None or budget == -1:
            assert completion == [20, OPEN] + [20] * 38
            assert (state.thinking_tokens, state.closed_by, any(state.forced)) == (38, None, False)
        else:
            answer = [20] * (40 - 2 - budget - 5)
            assert completion == [20, OPEN] + [20] * budget + [10, 11, 12, CLOSE, 13] + answer
            assert (state.thinking_tokens, state.closed_by) == (budget, "budget")
            assert [at for at, is_forced in enumerate(state.forced) if is_forced] == list(range(2 + budget, 7 + budget))


@pytest.mark.parametrize("rule", [RULE, SPLIT])
@pytest.mark.parametrize("thinking_open", [False, True])
def test_every_sampled_row_keeps_the_rule(model: Any, rule: BudgetRule, thinking_open: bool) -> None:
    rows = 96
    budgets = [row % 12 for row in range(rows)]
    processor = ThinkingBudgetProcessor(
        rule, budgets, thinking_open=[thinking_open] * rows, pad_token_id=PAD, temperature=1.5
    )
    completions = generate(
        model, processor, Lean(), rows=rows, do_sample=True, temperature=1.5, top_k=0, max_new_tokens=80
    )
    closed = set()
    for budget, completion, state in zip(budgets, completions, processor.states, strict=True):
        again = BudgetState(rule, budget, thinking_open=thinking_open)
        again.replay(completion, state.forced)  # raises where a due id was not delivered
        assert again.outcome() == state.outcome()
        assert state.thinking_tokens <= budget
        assert completion[-1] not in rule.eos_ids or not state.thinking  # no EOS inside a block
        assert len(state.forced) == len(completion)
        closed.add(state.closed_by)
    assert closed >= {"budget", "natural"}


def test_eos_inside_thinking_closes_first(model: Any) -> None:
    processor = ThinkingBudgetProcessor(RULE, [9, 9])
    completions = generate(model, processor, Script(OPEN, 20, EOS, 20, 20, 20, EOS), rows=2)
    assert completions == [[OPEN, 20, CLOSE, 13, 20, 20, EOS]] * 2
    assert processor.states[0].closed_by == "eos"
    assert processor.states[0].forced == [False, False, True, True, False, False, False]


def test_rows_that_ended_are_left_alone(model: Any) -> None:
    """Row 0 ends while row 1 goes on: padding must not count, open, or be forced."""

    class EndFirstRow(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            if input_ids.shape[1] == 12:
                scores[0, EOS] += 1e5
            return scores

    processor = ThinkingBudgetProcessor(RULE, [4, 4])
    completions = generate(model, processor, Script(20, 20, 20, 20, OPEN), EndFirstRow(), rows=2)
    assert completions[0] == [20, 20, 20, EOS]
    assert processor.states[0].forced == [False] * 4
    assert completions[1][:14] == [20] * 4 + [OPEN] + [20] * 4 + list(RULE.stop_ids)


def test_rows_without_a_limit_are_what_they_are_without_the_processor(model: Any) -> None:
    ids, mask = prompts(8)
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": PAD, "eos_token_id": EOS}
    plain = model.generate(ids, attention_mask=mask, **options)
    watched = ThinkingBudgetProcessor(RULE, [None] * 8)
    assert torch.equal(plain, model.generate(ids, attention_mask=mask, logits_processor=[watched], **options))


def test_several_sequences_of_a_prompt_are_rows(model: Any) -> None:
    processor = ThinkingBudgetProcessor(RULE, [2, 3, 4, 5])
    ids, mask = prompts(2)
    output = model.generate(
        ids,
        attention_mask=mask,
        num_return_sequences=2,
        do_sample=True,
        max_new_tokens=20,
        logits_processor=[Script(OPEN), processor],
    )
    assert [state.thinking_tokens for state in processor.finish(output)] == [2, 3, 4, 5]


@pytest.mark.parametrize("budgets", [[3, 3], [3, 3, 3, 3, 3, 3]])
def test_beams_are_refused(model: Any, budgets: list[int]) -> None:
    ids, mask = prompts(2)
    processor = ThinkingBudgetProcessor(RULE, budgets)
    with pytest.raises(PosttrainError, match="beams move"):
        model.generate(ids, attention_mask=mask, num_beams=3, max_new_tokens=30, logits_processor=[processor])


FULL = BudgetRule(
    (OPEN,), (CLOSE,), (10, 11, CLOSE, 13), frozenset({EOS}), (8, 9), (5,), (6,), frozenset({20, 21, 22, 23})
)


def test_every_feature_of_a_request_row_by_row(model: Any) -> None:
    requests = [
        BudgetRequest(12, grace=6),
        BudgetRequest(answer_reserve=8),
        BudgetRequest(12, minimum=6),
        BudgetRequest(loop_guard=6),
        BudgetRequest(3),
        BudgetRequest(),
    ]
    processor = ThinkingBudgetProcessor(FULL, requests, max_new_tokens=20)

    class Rows(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            step = input_ids.shape[1] - 9
            scores[:, 24 + step % 7] += 1e4  # period 7: no loop in six tokens
            if step == 0:
                scores[:, OPEN] += 1e5
            if step == 3:
                scores[2, CLOSE] += 1e5
            if step == 9:
                scores[0, 20] += 1e5  # ends a sentence
            if step > 4:
                scores[3, 25] += 1e5  # and again, and again
            if step == 2:
                scores[4, 5] += 1e5  # a tool call, to the end
            return scores

    rows = generate(model, processor, Rows(), rows=6, max_new_tokens=20)
    assert rows[0][9:14] == [20, 10, 11, CLOSE, 13]
    assert rows[1][8:12] == [10, 11, CLOSE, 13]  # and eight tokens follow
    assert rows[2][3:5] == [8, 9]
    assert rows[3][5:15] == [25] * 6 + [10, 11, CLOSE, 13]
    assert not any(processor.states[4].forced)
    assert [state.closed_by for state in processor.states] == ["grace", "reserve", "budget", "loop", None, None]


def test_rows_have_stop_texts_of_their_own(model: Any) -> None:
    rules = [RULE, BudgetRule((OPEN,), (CLOSE,), (14, 15, CLOSE), frozenset({EOS}))]
    requests = [BudgetRequest(2), BudgetRequest(2, stop_text="enough")]
    processor = ThinkingBudgetProcessor(rules, requests)
    completions = generate(model, processor, Script(OPEN), rows=2)
    assert completions[0][3:8] == [10, 11, 12, CLOSE, 13]
    assert completions[1][3:6] == [14, 15, CLOSE]
    with pytest.raises(PosttrainError, match="a stop text of its own"):
        ThinkingBudgetProcessor(RULE, requests)
    with pytest.raises(PosttrainError, match="max_tokens"):
        ThinkingBudgetProcessor(RULE, [BudgetRequest(answer_reserve=3)])


def test_an_end_is_replaced_as_often_as_it_would_have_come() -> None:
    """0.3 EOS, 0.1 close marker, 0.6 other, in 20,000 rows: within four standard errors."""
    rows, temperature = 20_000, 0.7
    wanted = torch.full((32,), 0.6 / 30).index_put((torch.tensor([EOS, CLOSE]),), torch.tensor([0.3, 0.1]))
    scores = (wanted.log() * temperature).expand(rows, -1).clone()
    processor = ThinkingBudgetProcessor(FULL, [9] * rows, thinking_open=[True] * rows, temperature=temperature)
    torch.manual_seed(0)
    sampled = torch.multinomial(
        (processor(torch.zeros(rows, 1, dtype=torch.long), scores) / temperature).softmax(-1), 1
    )
    forced = torch.tensor([state.forced_token() is not None for state in processor.states])
    for share, found in ((0.3, forced), (0.1, (sampled[:, 0] == CLOSE) & ~forced), (0.0, sampled[:, 0] == EOS)):
        assert abs(found.float().mean().item() - share) <= 4 * (share * (1 - share) / rows) ** 0.5


class StopAfter(StoppingCriteria):  # type: ignore[misc]
    """Ends a row, as a stop string would: the first after 3 ids, the second after 4, and so on."""

    def __init__(self, prompt: int) -> None:
        self.prompt = prompt

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return input_ids.shape[1] - self.prompt >= torch.arange(len(input_ids)) + 3


@pytest.mark.parametrize("pad", [EOS, PAD])
def test_a_row_may_be_ended_anywhere_by_something_else(model: Any, pad: int) -> None:
    """Thinking, in the middle of what is forced, and in the answer; the others go on, and the padding may be an EOS."""
    ids, mask = prompts(12)
    processor = ThinkingBudgetProcessor(RULE, [3] * 12, pad_token_id=pad)
    stop = StoppingCriteriaList([StopAfter(ids.shape[1])])
    output = model.generate(
        ids, attention_mask=mask, logits_processor=[Script(20, OPEN), processor], stopping_criteria=stop,
        max_new_tokens=40, do_sample=False, eos_token_id=[EOS, 4], pad_token_id=pad,
    )  # fmt: skip
    whole = [20, OPEN] + [20] * 3 + [10, 11, 12, CLOSE, 13] + [20] * 40
    for row, state in enumerate(processor.finish(output)):
        assert output[row, ids.shape[1] :].tolist() == whole[: row + 3] + [pad] * (11 - row)
        assert state.thinking_tokens == min(3, row + 1)
        assert state.closed_by == ("budget" if row + 3 >= 9 else None)
