"""Rollouts by a real vLLM: budgets by sample, weights that arrive, and an alarm where they do not."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (make setup-vllm)"),
    pytest.mark.timeout(560),
]
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one stage of three steps came to, in a process of its own."""
    command = [sys.executable, "-m", "tests.vllm_rollouts", str(tmp_path_factory.mktemp("run"))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    found: dict[str, Any] = json.loads(line.removeprefix("RESULT"))
    return found


def test_every_rollout_keeps_the_budget_of_its_own_row(figures: dict[str, Any]) -> None:
    rollouts = figures["rollouts"]
    assert len(rollouts) == 3 * 16 and all(one["scored"] for one in rollouts)
    limited = [one for one in rollouts if one["budget"] is not None]
    assert {one["budget"] for one in limited} == {0, 3, 6} and len(limited) < len(rollouts)
    assert all(one["thinking"] <= one["budget"] for one in limited)
    struck = [one for one in limited if one["closed_by"] == "budget"]
    assert len(struck) > len(limited) / 2
    # A block that opens again after a forced close is closed at once.
    forced = re.compile(re.escape(figures["stop_text"]) + r"(</think>(\n\n)?)*")
    assert all(forced.fullmatch(one["forced"]) for one in struck)
    # What a budget forces comes on top of the row's own tokens.
    assert all(one["own"] <= 16 for one in rollouts)
    assert not any(one["forced"] for one in rollouts if one["budget"] is None)


def test_the_policys_weights_reach_the_engine_at_every_step(figures: dict[str, Any]) -> None:
    assert figures["moved"] > 0.01
    assert len(figures["differences"]) == 3 and max(figures["differences"]) < 1e-3
    for ratio in figures["ratios"] + figures["corrections"]:
        assert ratio == pytest.approx(1.0, abs=1e-2)
    by_vllm, by_us = figures["greedy"]
    assert by_vllm == by_us


def test_weights_that_do_not_arrive_stop_the_run(figures: dict[str, Any]) -> None:
    assert "differ from the policy's by" in figures["refused"]


def test_vllm_samples_whatever_else_is_sampled(figures: dict[str, Any]) -> None:
    by_vllm, by_transformers = figures["sampled"]
    assert by_vllm == by_transformers
    assert by_vllm != figures["greedy"][0]  # the start's weights, not the trained ones
