"""Rollouts on several processes: each fills its share of a batch, and episodes of unequal length do not part them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.model.artifacts import faults_of
from posttrain.rl.rewards import Rollout
from posttrain.run.launch import launch

from .conftest import CHAIN, posttrain
from .test_engine import engine_of, launched, prepared, rows, series, weights

RECIPE = CHAIN.with_name("rollouts.yaml")


def often_equal(query: Mapping[str, Any], rollout: Rollout) -> float:
    """All rollouts of one query in two score the same; the others' scores differ."""
    return 0.0 if query["difficulty"] == 1 else sum(map(ord, rollout.text)) % 7 / 6


def always_equal(query: Mapping[str, Any], rollout: Rollout) -> float:
    return 0.5


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of tests/recipes/rollouts.yaml in one process. Do not change it: copy it."""
    directory = tmp_path_factory.mktemp("rollouts") / "run"
    done = posttrain("run", RECIPE, "--output", directory, "--quiet")
    assert done.returncode == 0, done.stderr
    return directory


def states(run: Path, stage: str, step: int) -> list[dict[str, Any]]:
    """What each process keeps of its rollouts at a step."""
    folder = run / "stages" / stage / "checkpoints" / f"checkpoint-{step}"
    return [torch.load(folder / f"rollouts_{rank}.pt") for rank in (0, 1)]


@launched
def test_each_process_fills_its_share_from_its_own_queries(one_process: Path, tmp_path: Path) -> None:
    context = prepared(one_process, tmp_path / "run", "filled", engine_of("ddp"))
    launch(context)
    ours, theirs = rows(context.run.path, "filled"), rows(one_process, "filled")
    assert [set(row) for row in ours] == [set(row) for row in theirs]
    for row in ours[:-1]:  # what is said of the groups is said of those of both processes
        assert row["dynamic_sampling/filled"] == pytest.approx(1 - row["frac_reward_zero_std"])
        assert row["dynamic_sampling/groups"] >= 4 and row["dynamic_sampling/groups"] % 2 == 0
    assert sum(series(context.run.path, "filled", "dynamic_sampling/equal_groups")) > 0
    assert sum(series(context.run.path, "filled", "dynamic_sampling/filled")) > 3
    first, second = states(context.run.path, "filled", 4)
    asked = [set(state["stream"]["own"]) for state in (first, second)]
    assert (
        asked[0] and asked[1] and {place % 2 for place in asked[0]} == {0} and {place % 2 for place in asked[1]} == {1}
    )
    assert first["counters"] == second["counters"]
    assert first["counters"]["groups"] == sum(series(context.run.path, "filled", "dynamic_sampling/groups"))
    assert faults_of(context.dir.model) == []


@launched
def test_queries_that_run_out_unevenly_do_not_part_the_processes(one_process: Path, tmp_path: Path) -> None:
    context = prepared(one_process, tmp_path / "run", "few", engine_of("ddp"))
    launch(context)
    # Two groups are wanted of each process, and as many more as both still have.
    assert series(context.run.path, "few", "dynamic_sampling/groups") == [6.0, 6.0]
    assert series(context.run.path, "few", "dynamic_sampling/filled") == [0.0, 0.0]


@launched
def test_episodes_are_played_side_by_side(one_process: Path, tmp_path: Path) -> None:
    """Sharded, both processes generate in step: one whose episodes are over goes on until the other's are too.

    Each fills its share with groups of episodes that differ, as one process does by itself.
    """
    context = prepared(one_process, tmp_path / "run", "played", engine_of("fsdp2"))
    launch(context)
    ours, theirs = rows(context.run.path, "played"), rows(one_process, "played")
    of_winners = {"environment/turns_when_won"}  # there where there are any
    assert [set(row) - of_winners for row in ours] == [set(row) - of_winners for row in theirs]
    for row in ours[:-1]:
        assert 1 < row["environment/turns"] <= 4 and row["environment/faults"] == 0
        # The environment's share of a completion is masked in both: all of it is counted.
        assert 0 < row["rollouts/forced_tokens"] < 1
    for row in [*ours[:-1], *rows(one_process, "played")[:-1]]:
        # Four groups at least, and no more than twice as many.
        assert 4 <= row["dynamic_sampling/groups"] <= 8 and row["dynamic_sampling/groups"] % 2 == 0
        assert row["dynamic_sampling/filled"] == pytest.approx(1 - row["frac_reward_zero_std"])
    asked = [{place % 2 for place in state["stream"]["own"]} for state in states(context.run.path, "played", 2)]
    assert asked == [{0}, {1}]
    before, after = weights(one_process / "stages/imitation/model"), weights(context.dir.model)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert faults_of(context.dir.model) == []
