"""MTR-Bench as a suite: played by reference and by rubbish, its figures, and its own table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain.evaluation.suites import mtr_bench
from posttrain.evaluation.suites.mtr_bench import MtrBench
from posttrain.evaluation.suites.play import figures_of, play_suite
from posttrain.evaluation.suites.suite import Item, Setting, Tabulated
from posttrain.evaluation.suites.table import finished
from posttrain.model.generation import Completion, Prompt
from posttrain.rl.environments import ENVIRONMENTS, game_class
from posttrain.rl.environments.game import CATEGORIES, DIFFICULTIES
from posttrain.templates.families import get_family
from posttrain.templates.parse import parse

QWEN3 = get_family("qwen3")
SETTING = Setting("non_thinking", None, QWEN3)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mtr_bench, "INSTANCES", 1)
    monkeypatch.setattr(mtr_bench, "SEED", 1)


def answer(text: str, *, truncated: bool = False) -> Completion:
    message = parse(text, QWEN3, prefilled=QWEN3.prefill["non_thinking"])
    return Completion([], [0], [False], text, message, "", "non_thinking", None, 0, None, truncated)


class Reference:
    """Answers each conversation as the game's reference player does, which sees what a model would see."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._games = {item.prompt[-1]["content"]: json.loads(item.facts["entry"])["game"] for item in items}

    def __call__(self, prompts: Sequence[Prompt], *, seed: int = 0, progress: Any = None) -> list[Completion]:
        return [answer(f"My plan is this: \\boxed{{{self._move(prompt)}}}") for prompt in prompts]

    def _move(self, prompt: Prompt) -> str:
        said = [message["content"] for message in prompt.messages if message["role"] == "user"]
        player = game_class(self._games[said[0]]).reference()
        return [player(text) for text in said][-1]


def test_every_class_and_difficulty_is_there() -> None:
    items = MtrBench().items()
    assert len(items) == 3 * len(ENVIRONMENTS)
    assert {item.group for item in items} == {f"{kind}/{level}" for kind in CATEGORIES for level in DIFFICULTIES}


def test_reference_players_win_turn_by_turn_and_their_words_are_read() -> None:
    suite = MtrBench()
    easy = [item for item in suite.items() if item.group.endswith("/easy")]
    played = suite.play(Reference(easy), easy, SETTING)
    won = [one.marks.scores["accuracy"] for one in played]
    assert sum(map(float, won)) >= 0.9 * len(won)  # type: ignore[arg-type]  # luck decides a few
    for one in played:
        flags = one.marks.scores["invalid_moves"]
        assert isinstance(flags, list)
        assert sum(flags) == 0
        assert one.marks.scores["pattern_plan"] == [1.0] * len(one.completions)
        assert len(one.messages) == 2 * len(one.completions) + 1


def test_a_suite_that_was_stopped_goes_on_and_has_its_table(tmp_path: Path) -> None:
    suite = MtrBench()
    items = [item for item in suite.items() if item.facts["task"] in ("mtr_bench:MinMax", "mtr_bench:PaperNumber")]
    reference = Reference(items)
    calls = 0

    def dying(prompts: Sequence[Prompt], *, seed: int) -> list[Completion]:
        nonlocal calls
        calls += 1
        if calls > 12:
            raise KeyboardInterrupt
        return reference(prompts)

    def run(generate: Any, label: str) -> dict[str, Any]:
        where = tmp_path / label / suite.name / SETTING.name
        return play_suite(
            suite, items, SETTING, generate, where, depends_on={}, seed=0, chunk=2, advance=lambda count: None
        )

    with pytest.raises(KeyboardInterrupt):
        run(dying, "good")
    figures = run(reference, "good")
    assert figures["metrics"]["accuracy"]["value"] == 1.0
    run(lambda prompts, *, seed: [answer("no move") for _ in prompts], "bad")
    assert isinstance(suite, Tabulated)
    results = finished(tmp_path, ["good", "bad"], suite.name)
    assert set(results) == {"good non_thinking", "bad non_thinking"}
    table = suite.table(results)
    assert "| good non_thinking | all | all | 1.000 " in table
    assert "| bad non_thinking | strategic gaming | easy | 0.000 " in table
    assert table.count("| - |") == 2 * (1 + 2 + 3 + 6)  # nothing was solved by both
    alone = suite.table({"good": results["good non_thinking"]})
    turns = [len(record["turns"]) for record in results["good non_thinking"]]
    assert f"| {sum(turns) / len(turns):.1f} (n={len(turns)}) | 0.000 |" in alone


def test_what_is_cut_off_is_lost_whatever_came_before() -> None:
    suite = MtrBench()
    items = suite.items()[:2]
    played = suite.play(lambda prompts: [answer("\\boxed{1}", truncated=True) for _ in prompts], items, SETTING)
    assert [one.marks.scores for one in played] == [{"accuracy": 0.0, "score": 0.0}] * 2
    records = [{"id": one.item.id, "group": "c/easy", "scores": one.marks.scores, "turns": []} for one in played]
    assert figures_of(suite, records)["metrics"]["accuracy"]["value"] == 0.0
    assert "| 0.000 |" in suite.table({"cut": records})
