"""MTR-Bench as a benchmark: instances, resume, served models, figures derived by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import PosttrainError
from posttrain.evaluation.environments import TRANSCRIPTS, Bench, compared, figures, play_bench, read_records, table
from posttrain.model.generation import Completion, Prompt
from posttrain.rl.environments import ENVIRONMENTS
from tests.tiny_player import Served, build, generator

BENCH = Bench(games=("Nearest",), difficulties=("easy", "hard"), instances=5, chunk=4)


@pytest.fixture(autouse=True)
def nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENTS, "Nearest", "tests.nearest:Nearest")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("policy"))


class Dying:
    """A model that fails after so many calls."""

    def __init__(self, policy: Path, calls: int) -> None:
        self._generate, self._left = generator(policy), calls
        self.family, self.tokenizer = self._generate.family, self._generate.tokenizer
        self.positions = self._generate.positions

    def __call__(
        self, prompts: Sequence[Prompt], *, seed: int, progress: Callable[[int], None] | None = None
    ) -> list[Completion]:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return self._generate(prompts, seed=seed)


def test_instances_are_the_same_for_everyone_and_each_once() -> None:
    rows = BENCH.rows()
    assert len(rows) == 10
    assert rows == BENCH.rows()
    assert len({row["key"] for row in Bench(games=("all", "MinMax"), instances=2).rows()}) == 2 * 3 * len(ENVIRONMENTS)
    with pytest.raises(PosttrainError, match="no game is called"):
        Bench(games=("Chess",)).rows()


def test_a_bench_that_was_stopped_goes_on_and_ends_the_same(policy: Path, tmp_path: Path) -> None:
    whole = play_bench(BENCH, generator(policy), tmp_path / "whole", model="tiny", quiet=True)
    assert [record["key"] for record in whole] == [row["key"] for row in BENCH.rows()]
    with pytest.raises(KeyboardInterrupt):
        play_bench(BENCH, Dying(policy, 8), tmp_path / "stopped", model="tiny", quiet=True)
    kept = len(read_records(tmp_path / "stopped"))
    assert 0 < kept < len(whole)
    with (tmp_path / "stopped" / TRANSCRIPTS).open("a") as file:
        file.write(json.dumps(whole[kept])[:40])  # a kill in the middle of a line
    assert play_bench(BENCH, generator(policy), tmp_path / "stopped", model="tiny", quiet=True) == whole
    assert read_records(tmp_path / "stopped") == whole


def test_a_finished_bench_asks_nothing_more(policy: Path, tmp_path: Path) -> None:
    first = play_bench(BENCH, generator(policy), tmp_path, model="tiny", quiet=True)
    assert play_bench(BENCH, Dying(policy, 0), tmp_path, model="tiny", quiet=True) == first


def test_results_of_another_model_are_not_mixed_in(policy: Path, tmp_path: Path) -> None:
    play_bench(BENCH, generator(policy), tmp_path, model="tiny", quiet=True)
    with pytest.raises(PosttrainError, match="another model"):
        play_bench(BENCH, generator(policy), tmp_path, model="other", quiet=True)


def test_a_served_model_is_asked_with_what_was_said_so_far(policy: Path, tmp_path: Path) -> None:
    served = Served(policy)
    records = play_bench(BENCH, served, tmp_path, model="served", quiet=True)
    assert len(records) == 10
    assert all(prompt.ids is None for prompt in served.asked)
    longest = max(served.asked, key=lambda prompt: len(prompt.messages))
    assert [message["role"] for message in longest.messages[:3]] == ["user", "assistant", "user"]
    assert any(longest.messages == record["messages"][: len(longest.messages)] for record in records)


def record(key: str, won: bool, turns: int, invalid: int = 0, **other: Any) -> dict[str, Any]:
    rest = {"cut_off": False, "faults": 0, "class": "c", "difficulty": "easy", "game": "g", "score": float(won)}
    return rest | {"key": key, "won": won, "turns": turns, "invalid": invalid, "patterns": {"plan": 1}} | other


def test_figures_are_what_they_are_called() -> None:
    records = [record("a", True, 2), record("b", True, 6, 3), record("c", False, 8, 5)]
    made = figures(records)
    assert made["accuracy"]["value"] == pytest.approx(2 / 3)
    assert made["turns_when_solved"] == pytest.approx((2 + 6) / 2)
    assert made["invalid_rate"] == pytest.approx(8 / 16)
    assert made["patterns"] == {"plan": pytest.approx(3 / 16)}


def test_efficiency_is_measured_on_what_all_solved() -> None:
    results = {
        "quick": [record("a", True, 2), record("b", True, 9)],
        "slow": [record("a", True, 6), record("b", False, 15)],
    }
    made = compared(results)
    assert made["quick"]["all"]["turns_when_solved"] == 2
    assert made["slow"]["all"]["turns_when_solved"] == 6
    assert "| quick | c | easy | 1.000 |" in table(made)
    nothing = compared({"one": [record("a", False, 3)]})
    assert nothing["one"]["all"]["turns_when_solved"] is None
    assert "| - |" in table(nothing)
