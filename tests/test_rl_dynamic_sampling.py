"""Batches filled with groups that carry a difference; rows without an advantage cost nothing and change nothing."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset

from posttrain.errors import PosttrainError
from posttrain.rl.advantage_rows import SCALE, differs, with_advantage
from posttrain.rl.filled_batches import FilledBatches, Group
from posttrain.rl.rewards import Rollout
from posttrain.rl.stream import DynamicSampling, QueryStream, mixed_chance, stratum_of
from tests import test_rl_masking as masking
from tests.test_rl_trainer import TRAIN, prepared, root, trainer_of  # noqa: F401  (root is a fixture)

policies = masking.policies


def stream(count: int = 100, **options: Any) -> QueryStream:
    strata = options.pop("strata", ["easy" if i % 2 else "hard" for i in range(count)])
    return QueryStream(
        range(count), strata, options.pop("rates", {}), **{"group": 8, "shuffled": True, "seed": 1} | options
    )


def test_the_chance_of_a_difference_is_the_beta_binomials() -> None:
    # A pass rate of uniform prior: all right and all wrong have 1 in G + 1 each.
    assert mixed_chance(1.0, 1.0, 8) == pytest.approx(1 - 2 / 9)
    # Known exactly: 1 - p^G - (1 - p)^G.
    assert mixed_chance(9e6, 1e6, 8) == pytest.approx(1 - 0.9**8 - 0.1**8, abs=1e-5)
    draws = random.Random(0)
    seen = 0
    for _ in range(20_000):
        rate = draws.betavariate(5.0, 2.0)
        seen += 0 < sum(draws.random() < rate for _ in range(4)) < 4
    assert mixed_chance(5.0, 2.0, 4) == pytest.approx(seen / 20_000, abs=0.015)


def test_every_query_comes_once_a_pass_in_an_order_of_its_own() -> None:
    source = stream()
    passes = [[source.draw(1, 1, ())[0] for _ in range(100)] for _ in range(2)]
    assert [sorted(order) for order in passes] == [list(range(100))] * 2
    assert passes[0] != passes[1]
    assert stream(shuffled=False).draw(5, 5, {1, 3}) == [0, 2, 4, 5, 6]


def test_what_taught_nothing_is_passed_over_but_not_for_good() -> None:
    source = stream(1000)
    for _ in range(10):
        drawn = source.draw(16, 64, ())
        # Easy queries are always all right, hard ones differ.
        source.note([(place, place % 2 == 0, 0.5 if place % 2 == 0 else 1.0) for place in drawn])
    kinds = Counter(place % 2 for _ in range(10) for place in source.draw(16, 64, ()))
    assert kinds[0] > 4 * kinds[1] > 0
    assert source.passed_over > 100


def test_a_query_that_was_all_right_is_passed_over_by_its_own_history() -> None:
    source = stream(strata=["one"] * 100, rates={place: 1.0 if place < 50 else 0.5 for place in range(100)})
    assert source.chance(0) < 0.5 < 0.9 < source.chance(99)
    source.note([(0, True, 0.5)] * 3 + [(99, False, 0.0)] * 3)
    assert source.chance(0) > 0.7 and source.chance(99) < 0.4


def test_more_is_drawn_where_less_is_likely_and_never_more_than_allowed() -> None:
    source = stream(1000, strata=["one"] * 1000)
    assert len(source.draw(16, 64, ())) == 16
    for _ in range(10):
        source.note([(place, place % 4 == 0, 0.9) for place in source.draw(16, 64, ())])
    fresh = [place for place in source.draw(16, 500, ())]
    assert 48 < len(fresh) < 160
    assert len(source.draw(16, 20, ())) == 20
    assert len(stream(10).draw(16, 64, {0, 1})) == 8


def test_a_budget_of_0_is_a_limit() -> None:
    asked = {"prompt": [{"content": "2+2"}], "task": "number", "mode": "thinking"}
    none, nothing, some = (stratum_of({**asked, "thinking_budget": budget}) for budget in (-1, 0, 64))
    assert nothing == some != none == stratum_of({**asked, "thinking_budget": None})


class Part(FilledBatches):
    """One of two processes (threads here) that fill a batch; groups never carry a difference."""

    def __init__(self, process: int, exchange: Callable[[int, int], torch.Tensor]) -> None:
        self.made: list[int] = []
        gather = lambda value: exchange(process, int(value))  # noqa: E731
        self.accelerator = SimpleNamespace(process_index=process, num_processes=2, device="cpu", gather=gather)
        self.num_generations, self.counters = 4, {"rollout_tokens": 0}
        self.train_dataset = Dataset.from_list([{"prompt": [{"content": f"{i}"}]} for i in range(7)])

    def _generated(self, places: Sequence[int], attempt: int) -> list[Group]:
        self.made.append(len(places))
        return [Group(place, [], [], torch.zeros(4, 1), False) for place in places]

    def _log_filling(self, *args: Any) -> None:
        pass


def test_processes_with_unequal_shares_of_the_queries_generate_equally_many() -> None:
    """Seven queries on two processes: one has four, the other three. What they generate is gathered."""
    meet, said = threading.Barrier(2, timeout=5), [0, 0]

    def exchange(process: int, value: int) -> torch.Tensor:
        said[process] = value
        meet.wait()
        both = torch.tensor(said)
        meet.wait()
        return both

    parts = [Part(process, exchange) for process in range(2)]
    for part in parts:
        part.fill_batches(DynamicSampling(tries=3, oversampling=4), shuffled=True, seed=1)
    with ThreadPoolExecutor(2) as pool:
        chosen = list(pool.map(lambda part: part._fill(3, part._stream), parts))
    assert parts[0].made == parts[1].made == [3]
    assert [len(groups) for groups in chosen] == [3, 3]


def test_a_stream_goes_on_from_its_state() -> None:
    first, second = stream(50), stream(50)
    for step in range(7):
        first.note([(place, place % 3 > 0, place % 3 / 2) for place in first.draw(6, 20, ())])
        if step == 3:
            second.restore(first.state())
        elif step > 3:
            second.note([(place, place % 3 > 0, place % 3 / 2) for place in second.draw(6, 20, ())])
    assert second.state() == first.state()
    assert first.state()["pass"] >= 1


def coin(query: Mapping[str, Any], rollout: Rollout) -> float:
    """Half of the queries are always right; an answer to the others is right by the luck of its first sign."""
    return 1.0 if query["difficulty"] % 2 else float(ord(rollout.text[:1] or "a") % 2)


def test_batches_are_filled_with_differences(root: Path) -> None:  # noqa: F811
    options = {"rewards": {f"{__name__}:coin": 1.0}, "train": {**TRAIN, "max_steps": 6, "temperature": 1.5}}
    stock = trainer_of(prepared(root, "stock", **options))
    stock.train()
    filled = trainer_of(prepared(root, "filled", dynamic_sampling={"tries": 3, "oversampling": 5.0}, **options))
    filled.train()

    def mean(trainer: Any, key: str) -> float:
        values = [line[key] for line in trainer.state.log_history if key in line]
        return float(sum(values) / len(values))

    assert mean(filled, "dynamic_sampling/filled") == pytest.approx(1 - mean(filled, "frac_reward_zero_std"))
    assert mean(filled, "frac_reward_zero_std") < 0.1 < 0.3 < mean(stock, "frac_reward_zero_std")
    # What was generated and not used is counted: as groups, and as tokens.
    assert filled.counters["groups"] > 6 * 2
    assert filled.counters["equal_groups"] > 0
    assert filled.counters["rollout_tokens"] > filled.counters["train_tokens"]


def test_tries_are_bounded_and_then_the_batch_is_what_there_is(root: Path) -> None:  # noqa: F811
    where = prepared(
        root, "bounded", dynamic_sampling={"tries": 2, "oversampling": 3.0}, train={**TRAIN, "max_steps": 1}
    )
    trainer = trainer_of(where)
    asked: list[int] = []

    def right(query: Mapping[str, Any], rollout: Rollout) -> float:
        asked.append(1)
        return 1.0

    trainer.reward_funcs[0].reward = right
    trainer.train()
    line = trainer.state.log_history[0]
    # Two groups are wanted: 2, then 3 more to be sure, or what is left of 3 x 2.
    assert line["dynamic_sampling/tries"] == 2 and line["dynamic_sampling/filled"] == 0
    assert 4 <= line["dynamic_sampling/groups"] <= 6 and len(asked) == 4 * line["dynamic_sampling/groups"]
    assert line["alarm/equal_rewards"] == 1.0


def test_groups_that_lie_on_two_processes_are_refused(root: Path) -> None:  # noqa: F811
    train = {**TRAIN, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "steps_per_generation": 1}
    where = prepared(root, "split", dynamic_sampling={}, train={**train, "num_generations": 2})
    trainer_of(where)
    from posttrain.rl.grpo import whole_groups

    class Arguments:
        per_device_train_batch_size, steps_per_generation, num_generations = 2, 1, 4

    with pytest.raises(PosttrainError, match="2 rollouts a process are no whole groups of 4"):
        whole_groups("rl", Arguments)


def test_a_difference_is_what_gives_an_advantage() -> None:
    weights = torch.tensor([1.0, 0.5])
    nan = torch.nan
    assert not differs(torch.tensor([[0.1, 0.2]] * 3), weights, "sum_then_normalize")
    # Different rewards of one sum give no advantage, but for those that are normalised one by one.
    equal = torch.tensor([[0.5, 0.0], [0.0, 1.0]])
    assert not differs(equal, weights, "sum_then_normalize") and differs(equal, weights, "normalize_then_sum")
    assert not differs(torch.tensor([[nan, nan], [1.0, nan]]), weights, "sum_then_normalize")
    assert differs(torch.tensor([[0.0, nan], [1.0, nan]]), weights, "sum_then_normalize")


@pytest.fixture(scope="module")
def generated(policies: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any]]:
    """A trainer and eight rollouts with advantages and old log-probabilities that make every term count."""
    trainer = masking.grpo(policies[0], tmp_path_factory.mktemp("grpo"))
    inputs = masking.disturbed(trainer._generate_and_score_completions(list(trainer.train_dataset)))
    inputs.pop("ref_per_token_logps")
    return trainer, inputs


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("kind", ["grpo", "dapo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo"])
def test_rows_without_advantage_leave_without_a_trace(
    generated: tuple[Any, dict[str, Any]], kind: str, level: str, truncated: bool
) -> None:
    trainer, inputs = generated
    trainer.loss_type, trainer.importance_sampling_level = kind, level
    whole = {key: value.clone() for key, value in inputs.items()}
    # Of eight rows five stay; the longest go, so that padding goes with them.
    order = whole["completion_mask"].sum(-1).argsort()
    whole["advantages"][order[5:]] = 0.0
    if truncated:  # as mask_truncated_completions has it
        whole["completion_mask"][order[2]] = 0
    least = 7 if truncated else 1  # seven, where another process has as many
    kept = with_advantage(whole, kind, least=least)
    assert len(kept["advantages"]) == max(5, least)
    losses, gradients = [], []
    for batch in (whole, kept):
        loss = trainer._compute_loss(trainer.model, batch)
        loss.backward()
        losses.append(loss.item())
        gradients.append(masking.gradients(trainer.model))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4, abs=1e-7)
    largest = max(float(gradient.abs().max()) for gradient in gradients[0].values())
    assert largest > 1e-4
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=2e-3, atol=1e-4 * largest, msg=name)


def test_one_row_is_kept_of_none_and_padding_is_cut() -> None:
    inputs = {
        "prompt_ids": torch.tensor([[9, 1, 2], [0, 0, 3]]),
        "prompt_mask": torch.tensor([[1, 1, 1], [0, 0, 1]]),
        "completion_ids": torch.tensor([[4, 5, 6, 7], [8, 9, 0, 0]]),
        "completion_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "advantages": torch.tensor([0.0, 1.0]),
        "num_items_in_batch": torch.tensor(6),
    }
    kept = with_advantage(inputs, "grpo")
    assert kept["prompt_ids"].tolist() == [[3]] and kept["completion_ids"].tolist() == [[8, 9]]
    assert kept[SCALE] == 0.5 and kept["num_items_in_batch"] == 6
    none = with_advantage({**inputs, "advantages": torch.zeros(2)}, "grpo")
    assert none["prompt_ids"].tolist() == [[9, 1, 2]]
    assert SCALE not in with_advantage({**inputs, "advantages": torch.ones(2)}, "grpo")
    assert with_advantage(inputs, "grpo", least=2) is inputs
