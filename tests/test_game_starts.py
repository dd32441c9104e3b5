"""How games begin: no reserved instance begins as one that is trained on, or it is said that it may."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk

from posttrain.data.prepare import prepare_data, reserved_rows
from posttrain.model.artifacts import RunDir
from posttrain.recipe.schema import DataSpec, ModelSpec, Recipe
from posttrain.report.funnels import data_table
from posttrain.rl.environments import ENVIRONMENTS, game_class
from posttrain.rl.environments.game import DIFFICULTIES, FEW_STARTS
from posttrain.rl.environments.task import monitor_of

EASY = {"difficulty": "easy"}
PLAYED = {**EASY, "players": {"reference": 1, "random": 1}}


def prepared(folder: Path, game: str, reserve: int) -> RunDir:
    """Queries and conversations of a game, as a recipe has them, some of the queries reserved."""
    task: dict[str, Any] = {"task": f"mtr_bench:{game}", "decontaminate": "key"}
    queries = DataSpec(**task, size=80, seed=1, options=EASY, reserve=reserve)
    data = {"games": queries, "plays": DataSpec(**task, size=120, seed=2, options=PLAYED)}
    run = RunDir(folder / "run")
    prepare_data(Recipe.model_construct(seed=0, data=data, model=ModelSpec(path="a/b"), stages={}), run, folder)
    return run


def beginning(row: Mapping[str, Any]) -> str:
    return monitor_of(row).game.beginning()


@pytest.mark.parametrize("game", ["TreasureHunt", "ZeroFinding"])  # 683 and 96 ways to begin
def test_no_reserved_instance_begins_as_a_trained_one(game: str, tmp_path: Path) -> None:
    run = prepared(tmp_path, game, reserve=20)
    held_out = {beginning(row) for row in reserved_rows(run, "games")}
    assert len(held_out) == 20  # each begins in its own way
    facts = {name: json.loads((run.data(name) / "funnel.json").read_text()) for name in ("games", "plays")}
    for name, told in facts.items():
        rows = load_from_disk(str(run.data(name)))
        assert 0 < len(rows) == told["for_training"]
        assert held_out.isdisjoint(map(beginning, rows))
        left_out = told["like_reserved"] + told["decontamination"]["dropped"].get("key", 0)
        assert told["rows_read"] == told["reserved"] + left_out + told["for_training"]
        assert left_out > 0 and told["not_held_out"] == []
    assert [row["close"] for row in data_table(facts)] == [
        told["rows_read"] - told["reserved"] - told["for_training"] for told in facts.values()
    ]


def test_a_game_with_too_few_starts_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "posttrain"):
        run = prepared(tmp_path, "TrainPursuit", reserve=20)
    told = "TrainPursuit, easy, has 8 different starts: 20 instances differ from others by later draws alone"
    assert f"data games: {told}" in caplog.text
    assert json.loads((run.data("games") / "funnel.json").read_text())["not_held_out"] == [told]
    reserved, trained = reserved_rows(run, "games"), load_from_disk(str(run.data("games")))
    assert len(reserved) == 20 and {row["key"] for row in reserved}.isdisjoint(trained["key"])


@pytest.mark.parametrize("name", sorted(ENVIRONMENTS))
def test_a_game_with_few_starts_says_how_many_there_are(name: str) -> None:
    """Of the others the easy instances are drawn, which have the fewest starts, until there are many."""
    kind = game_class(name)
    for difficulty in DIFFICULTIES:
        told = kind.starts.get(difficulty, 0)
        if told:
            assert len({kind(seed, difficulty).beginning() for seed in range(40 * told)}) == told < FEW_STARTS
        elif difficulty == "easy" or kind.starts:
            found = set()
            for seed in range(500):
                found.add(kind(seed, difficulty).beginning())
                if len(found) == FEW_STARTS:
                    break
            assert len(found) == FEW_STARTS
            assert kind(1, difficulty).beginning() == kind(1, difficulty).beginning()
