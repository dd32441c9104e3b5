"""Several machines: which is which, and how the others follow the first through a run."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import PosttrainError
from posttrain.model.artifacts import RunDir, write_json
from posttrain.recipe.load import load_recipe
from posttrain.recipe.schema import EngineSpec
from posttrain.run import machines
from posttrain.run.context import context_of
from posttrain.run.machines import announce, follow, leading, machine_rank, main_address, require_free_port

from .conftest import CHAIN

RECIPE = CHAIN.with_name("engine.yaml")


def spec_of(**options: Any) -> EngineSpec:
    return EngineSpec.model_validate({"launcher": "accelerate", "processes": 2, "machines": 2, **options})


def test_machines_are_named_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POSTTRAIN_MACHINE_RANK", raising=False)
    monkeypatch.delenv("POSTTRAIN_MAIN_ADDRESS", raising=False)
    assert machine_rank(spec_of()) == 0 and machine_rank(spec_of(machine_rank=1)) == 1
    monkeypatch.setenv("POSTTRAIN_MACHINE_RANK", "1")
    assert machine_rank(spec_of()) == 1
    assert machine_rank(spec_of(machine_rank=0)) == 0
    assert machine_rank(EngineSpec()) == 0  # a variable left over does not make a lone machine wait for another
    for wrong in ("2", "-1", "one"):
        monkeypatch.setenv("POSTTRAIN_MACHINE_RANK", wrong)
        with pytest.raises(PosttrainError, match=f"machine rank {wrong}: there are 2 machines"):
            machine_rank(spec_of())
    with pytest.raises(PosttrainError, match="no address of machine 0"):
        main_address(spec_of())
    monkeypatch.setenv("POSTTRAIN_MAIN_ADDRESS", "10.0.0.1")
    assert main_address(spec_of()) == "10.0.0.1"


def test_a_taken_port_is_refused_on_several_machines() -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        spec = spec_of(main_address="127.0.0.1", main_port=other.getsockname()[1])
        with pytest.raises(PosttrainError, match=f"port {spec.main_port} cannot be listened on"):
            require_free_port(spec)
    require_free_port(spec)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "BEAT", 0.02)
    monkeypatch.setattr(machines, "PATIENCE", 0.5)


class Follower(threading.Thread):
    """Another machine, in a thread: what it trained, and how it ended."""

    def __init__(self, run: RunDir, finished: bool = False) -> None:
        super().__init__(daemon=True)
        self.run_dir, self.finished, self.trained, self.error = run, finished, list[str](), ""
        self.start()

    def run(self) -> None:
        try:
            follow(self.run_dir, self.trained.append, lambda: self.finished)
        except PosttrainError as error:
            self.error = str(error)


def call(run: RunDir, stage: str) -> None:
    recipe = load_recipe(RECIPE).recipe
    announce(context_of(recipe, run, stage))


@pytest.mark.usefixtures("hasty")
def test_a_machine_follows_the_first_through_a_run(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    # An earlier run was killed here: what it left calls nobody.
    write_json(tmp_path / "machines.json", {"session": "old", "beat": 7, "state": "running", "why": ""})
    write_json(tmp_path / "launch.json", {"number": 4, "session": "old", "stage": "sft"})
    follower = Follower(run)
    time.sleep(0.7)
    assert follower.trained == []
    with leading(run, spec_of()):
        for count, stage in enumerate(("sft", "grpo", "grpo"), 1):  # the last: machine 0 launches a stage again
            call(run, stage)
            wait_for(lambda count=count: len(follower.trained) == count)
    follower.join(5)
    assert not follower.is_alive() and follower.error == ""
    assert follower.trained == ["sft", "grpo", "grpo"]


@pytest.mark.usefixtures("hasty")
def test_a_machine_is_told_why_the_first_stopped(tmp_path: Path) -> None:
    follower = Follower(RunDir(tmp_path))
    with pytest.raises(PosttrainError), leading(RunDir(tmp_path), spec_of()):
        time.sleep(0.2)
        raise PosttrainError("stage sft: thinking.accuracy is 0.1")
    follower.join(5)
    assert "machine 0 stopped the run" in follower.error and "thinking.accuracy is 0.1" in follower.error
    assert follower.trained == []


@pytest.mark.usefixtures("hasty")
def test_a_machine_started_after_the_end_ends_too(tmp_path: Path) -> None:
    with leading(RunDir(tmp_path), spec_of()):
        pass
    unfinished, finished = Follower(RunDir(tmp_path)), Follower(RunDir(tmp_path), finished=True)
    finished.join(5)
    assert not finished.is_alive() and finished.error == "" and finished.trained == []
    assert unfinished.is_alive()  # stages are to be redone: machine 0 will be there


def wait_for(condition: Any, seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)
