"""A GOLD stage that was stopped and resumed ends with the weights of one that was not: bit by bit.

Run as a program (`python test_gold_resume.py ROOT STEP`), it trains the stage and kills itself with SIGKILL as soon as
checkpoint STEP is written.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.model.artifacts import RunDir
from posttrain.model.policy import load_model
from tests.gold import THINKS, conversations, models, trainer, write_data
from tests.test_rl_resume import Stop

STEPS = 7
# Twelve samples at four a step: three steps an epoch, so that the run ends in its third one. The log has a line every
# second step, and each step two micro-batches, of the teacher's answers or the student's own.
OPTIONS: dict[str, Any] = {
    "modes": {"thinking": 1.0},
    "thinking_budgets": {"share": 0.5, "choices": [2]},
    "train": {
        "max_steps": STEPS, "lmbda": 0.5, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
        "save_strategy": "steps", "save_steps": 1, "save_total_limit": None, "logging_steps": 2, "max_length": 200,
    },
}  # fmt: skip
FIGURES = (
    "matched_loss",
    "on_policy_loss",
    "off_policy_loss",
    "tokens/rollout",
    "tokens/train",
    "rollouts/forced_tokens",
)


def prepared(root: Path) -> RunDir:
    run = RunDir(root)
    if not run.base.exists():
        models(run, THINKS)
        write_data(run, conversations(12), THINKS)
    return run


def train(run: RunDir, *, stop: int = 0, kill: bool = False, resume: bool = False) -> Any:
    """Train the stage. Whatever ran before in this process leaves no trace in it."""
    torch.manual_seed(torch.seed() % 2**31)
    random.seed()
    made = trainer(run, THINKS, **OPTIONS)
    made.add_callback(Stop(stop, kill=kill))
    found = sorted(run.stage("student").checkpoints.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    made.train(resume_from_checkpoint=str(found[-1]) if resume else None)
    return made


def weights(made: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in made.model.state_dict().items()}


def same(made: Any, expected: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, expected[name]) for name, value in made.model.state_dict().items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, Any, dict[str, torch.Tensor]]:
    """An uninterrupted run."""
    run = prepared(tmp_path_factory.mktemp("gold"))
    made = train(run)
    expected = weights(made)
    assert not same(made, load_model(run.base).state_dict())
    assert {"on_policy_loss", "off_policy_loss"} <= {key for line in made.state.log_history for key in line}
    return run, made, expected


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_a_stopped_run_ends_as_an_uninterrupted_one(whole: tuple[RunDir, Any, Any], stop: int) -> None:
    run, first, expected = whole
    checkpoints = run.stage("student").checkpoints
    checkpoints.rename(checkpoints.with_name(f"before-{stop}"))
    train(run, stop=stop)
    resumed = train(run, resume=True)
    assert resumed.state.global_step == STEPS
    assert same(resumed, expected)
    assert resumed.counters == first.counters
    for key in FIGURES:  # those too that were not logged yet
        line = [entry[key] for entry in first.state.log_history if key in entry]
        assert line and line == [entry[key] for entry in resumed.state.log_history if key in entry], key


def test_without_what_is_kept_it_would_end_otherwise(
    whole: tuple[RunDir, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: TRL alone resumes in the second epoch as another run."""
    from trl.experimental.gold import GOLDTrainer

    from posttrain.rl.resume import ResumableRollouts

    run, _, expected = whole
    monkeypatch.setattr(ResumableRollouts, "_load_optimizer_and_scheduler", GOLDTrainer._load_optimizer_and_scheduler)
    monkeypatch.setattr(ResumableRollouts, "_get_train_sampler", GOLDTrainer._get_train_sampler)
    checkpoints = run.stage("student").checkpoints
    checkpoints.rename(checkpoints.with_name("before-stock"))
    train(run, stop=5)
    assert not same(train(run, resume=True), expected)


@pytest.mark.timeout(900)  # a second process imports everything anew
def test_kill_9_of_another_process(whole: tuple[RunDir, Any, Any]) -> None:
    run, _, expected = whole
    checkpoints = run.stage("student").checkpoints
    checkpoints.rename(checkpoints.with_name("before-kill"))
    command = [sys.executable, __file__, str(run.path), "4"]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert same(train(run, resume=True), expected)


if __name__ == "__main__":
    train(prepared(Path(sys.argv[1])), stop=int(sys.argv[2]), kill=True)
