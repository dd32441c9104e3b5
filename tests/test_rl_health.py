"""Faults injected into a real trainer: each is noticed, and the entropy comes back into its band."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from posttrain.errors import PosttrainError
from posttrain.rl.entropy import EntropyBand, EntropyControl
from posttrain.rl.health import PolicyHealth, Watch
from tests import test_rl_masking as masking
from tests.test_rl_trainer import TRAIN, prepared, root, trainer_of  # noqa: F401  (root is a fixture)

policies = masking.policies
BAND = {"low": 0.9, "high": 4.5, "step": 0.5, "limit": 6.0}


def entropies(trainer: Any) -> list[float]:
    return [line["entropy"] for line in trainer.state.log_history if "entropy" in line]


def test_the_coefficient_answers_to_either_side_and_lets_go_inside() -> None:
    control = EntropyControl(EntropyBand(low=0.2, high=0.6, step=0.1, limit=0.25))
    assert [round(control.update(0.1), 3) for _ in range(4)] == [0.1, 0.2, 0.25, 0.25]
    assert [round(control.update(0.4), 3) for _ in range(4)] == [0.15, 0.05, 0.0, 0.0]
    assert [round(control.update(0.7), 3) for _ in range(4)] == [-0.1, -0.2, -0.25, -0.25]
    # What was wound up against a blow-up does not deepen a collapse.
    assert control.update(0.1) == pytest.approx(0.1)
    with pytest.raises(ValidationError, match="is not below high"):
        EntropyBand(low=0.5, high=0.5)


@pytest.mark.parametrize("scale", [80.0, 1.0])
def test_a_collapse_and_a_blow_up_are_brought_back(
    root: Path,  # noqa: F811
    scale: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Scores eighty times as sharp, or as they begin: all but alike, 5.8 nats over 330 entries."""
    name = f"entropy_{scale:g}"
    train = {**TRAIN, "max_steps": 30, "learning_rate": 2e-2, "lr_scheduler_type": "constant"}
    trainer = trainer_of(prepared(root, name, train=train, health={"entropy": BAND}))
    trainer.reward_funcs[0].reward = lambda query, rollout: 0.0
    with torch.no_grad():
        trainer.model.lm_head.weight.mul_(scale)
    with caplog.at_level(logging.WARNING, "posttrain"):
        trainer.train()
    found = entropies(trainer)
    start_outside = found[0] < BAND["low"] if scale > 1 else found[0] > BAND["high"]
    assert start_outside
    assert "outside 0.9 to 4.5" in caplog.text
    regained = next((i for i, value in enumerate(found) if BAND["low"] <= value <= BAND["high"]), None)
    assert regained is not None, found
    lines = [line for line in trainer.state.log_history if "alarm/entropy" in line]
    assert lines[0]["alarm/entropy"] == 1.0 and lines[regained]["alarm/entropy"] == 0.0
    assert (lines[1]["entropy_coef"] > 0) == (scale > 1)


def test_without_a_band_the_collapse_stays(root: Path) -> None:  # noqa: F811
    trainer = trainer_of(prepared(root, "collapsed", train={**TRAIN, "max_steps": 5, "learning_rate": 2e-2}))
    trainer.reward_funcs[0].reward = lambda query, rollout: 0.0
    with torch.no_grad():
        trainer.model.lm_head.weight.mul_(80.0)
    trainer.train()
    assert sum(entropies(trainer)) / 5 < BAND["low"]


def test_an_entropy_that_does_not_come_back_stops_the_run(root: Path) -> None:  # noqa: F811
    health = {"entropy": {"low": 7.0, "high": 8.0}, "stop_if_outside": 2}  # more than 330 entries can have
    trainer = trainer_of(prepared(root, "beyond", health=health))
    with pytest.raises(PosttrainError, match=r"outside 7 to 8; .* 2 batches in a row"):
        trainer.train()


def test_the_two_ways_to_hold_the_entropy_exclude_each_other(root: Path) -> None:  # noqa: F811
    train = {**TRAIN, "use_adaptive_entropy": True}
    where = prepared(root, "both", train=train, health={"entropy": {"low": 0.1, "high": 1.0}})
    stage = where.recipe.stages["both"]
    assert [fault.loc for fault in stage.faults(where.recipe, "hybrid")] == [("train", "use_adaptive_entropy")]


# --- ratios

OFF_POLICY = {"steps_per_generation": 1, "num_iterations": 4, "max_steps": 4}


def test_raw_ratios_are_logged_and_exploding_ones_noticed(
    root: Path,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    train = {**TRAIN, **OFF_POLICY, "learning_rate": 1e-4}
    calm = trainer_of(prepared(root, "calm", train=train, rewards={"tests.test_rl_trainer:letters": 1.0}))
    calm.train()
    lines = [line for line in calm.state.log_history if "ratio/max" in line]
    # On the rollouts' own policy every ratio is 1; from then on they spread.
    assert lines[0]["ratio/max"] == pytest.approx(1.0, abs=1e-3) == lines[0]["ratio/min"]
    assert lines[0]["ratio/max"] < lines[-1]["ratio/max"] < 2.0
    assert all(line["alarm/ratio"] == 0.0 for line in lines)
    train["learning_rate"] = 0.3
    wild = trainer_of(prepared(root, "wild", train=train, rewards={"tests.test_rl_trainer:letters": 1.0}))
    with caplog.at_level(logging.WARNING, "posttrain"):
        wild.train()
    assert "importance ratio is" in caplog.text
    assert max(line.get("alarm/ratio", 0.0) for line in wild.state.log_history) == 1.0
    stopping = {"max_ratio": 2.0, "stop_if_exploding": 2}
    stopped = trainer_of(
        prepared(root, "stops", train=train, rewards={"tests.test_rl_trainer:letters": 1.0}, health=stopping)
    )
    with pytest.raises(PosttrainError, match=r"importance ratio .* 2 batches in a row"):
        stopped.train()


def test_ratios_are_bounded_where_an_advantage_is_negative(root: Path) -> None:  # noqa: F811
    """d/dθ of ratio * advantage grows with the ratio; behind `delta` there is no gradient at all."""
    norms = []
    for name, delta in (("bounded", {}), ("unbounded", {"delta": None})):
        trainer = trainer_of(prepared(root, name, train={**TRAIN, **delta}))
        assert trainer.args.delta == (None if delta else 4.0)
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        inputs = trainer._generate_and_score_completions(list(trainer.train_dataset)[:8])
        far = {"old_per_token_logps": torch.full(inputs["completion_ids"].shape, -20.0)}
        loss = trainer._compute_loss(trainer.model, {**inputs, "advantages": -torch.ones(8), **far})
        loss.backward()
        norms.append(float(torch.stack([p.grad.norm() for p in trainer.model.parameters()]).norm()))
        assert trainer._metrics["train"]["ratio/max"][0] > 1e3
    assert norms[0] == 0.0 and norms[1] > 1e3


# --- the probe


@pytest.fixture
def sampled(root: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Any, dict[str, Any]]]:  # noqa: F811
    """A trainer and its rollouts with the log-probabilities of a sampler that has the same weights."""
    trainer = trainer_of(prepared(root, request.node.name[:30], rewards={"tests.test_rl_trainer:letters": 1.0}))
    trainer.model.train()
    output = trainer._generate_and_score_completions(list(trainer.train_dataset)[:8])
    with torch.no_grad():
        log_probs = masking.own_log_probs(trainer.model, output)
    yield trainer, {**output, "sampling_per_token_logps": log_probs}


def test_a_sampler_with_the_policys_weights_passes_the_probe(sampled: tuple[Any, dict[str, Any]]) -> None:
    trainer, output = sampled
    trainer._probe(output)
    figures = trainer._metrics["train"]
    assert figures["probe/difference"][0] < 1e-4 and figures["probe/ratio"][0] == pytest.approx(1.0, abs=1e-4)
    assert figures["alarm/probe"] == [0.0]
    # What the budget forced is the sampler's with certainty, and not compared; nor is what the engine could not score.
    forced = {**output, "tool_mask": torch.ones_like(output["completion_ids"])}
    forced["tool_mask"][:, 0] = 0
    forced["sampling_per_token_logps"] = output["sampling_per_token_logps"].clone()
    forced["sampling_per_token_logps"][:, 0] = 0.0
    forced["sampling_per_token_logps"][:, 1] = torch.nan
    trainer._probe(forced)
    assert figures["alarm/probe"] == [0.0, 0.0]


def test_rollouts_that_are_all_masked_say_nothing_of_the_weights(sampled: tuple[Any, dict[str, Any]]) -> None:
    """As where every one of the first rollouts is cut off, and the recipe masks those."""
    trainer, output = sampled
    trainer._probe({**output, "completion_mask": torch.zeros_like(output["completion_mask"])})
    assert "probe/difference" not in trainer._metrics["train"]


def test_weights_that_did_not_reach_the_sampler_stop_the_run(sampled: tuple[Any, dict[str, Any]]) -> None:
    trainer, output = sampled
    with torch.no_grad():
        trainer.model.lm_head.weight.add_(0.5 * torch.randn(trainer.model.lm_head.weight.shape))
    with pytest.raises(PosttrainError, match="differ from the policy's by"):
        trainer._probe(output)
    assert trainer._metrics["train"]["alarm/probe"] == [1.0]
    with pytest.raises(PosttrainError, match="differ from the policy's by nan"):
        trainer._probe({**output, "sampling_per_token_logps": output["sampling_per_token_logps"] * torch.nan})


def test_alarms_are_told_at_one_two_four_in_a_row(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch(PolicyHealth())
    with caplog.at_level(logging.WARNING, "posttrain"):
        assert [watch.ratio(value) for value in (50.0, 50.0, 50.0, float("nan"), 1.0, 50.0)] == [1, 1, 1, 1, 0, 1]
    assert [record.args[1] for record in caplog.records if isinstance(record.args, tuple)] == [1, 2, 4, 1]
