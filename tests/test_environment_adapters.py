"""Environments from elsewhere: tasks with further tries, textarena's games, and TRL's own environment interface."""

from __future__ import annotations

import random
from typing import Any

import pytest

from posttrain.errors import PosttrainError
from posttrain.rl.environments.tool_use import ToolEnvironment
from posttrain.tasks.environment import Environment, environment_for
from posttrain.tasks.registry import get_task
from posttrain.tasks.task import check_gold
from posttrain.templates.families import get_family
from posttrain.templates.parse import parse

QWEN3 = get_family("qwen3")


def begun(row: dict[str, Any]) -> Environment:
    environment = environment_for(row)
    assert environment is not None
    assert environment.reset(row) == row["prompt"][-1]["content"]
    return environment


def say(environment: Environment, text: str) -> Any:
    return environment.step(parse(text, QWEN3))


# --- further tries


@pytest.mark.parametrize("name", ["retry:arithmetic", "retry:reasoning_gym:chain_sum"])
def test_a_wrong_answer_is_told_and_may_be_mended(name: str) -> None:
    task = get_task(name)
    (row,) = task.queries(1, 0, turns=3)
    assert check_gold(task, row) == []
    environment = begun(row)
    assert not say(environment, "\\boxed{no number}").done
    assert not say(environment, "").valid
    reply = say(environment, task.gold(row))
    assert (reply.done, reply.score) == (True, 1.0)
    assert (environment.outcome.turns, environment.outcome.invalid, environment.outcome.won) == (3, 1, True)


def test_tries_are_used_up_and_an_answer_in_the_thinking_is_none() -> None:
    task = get_task("retry:arithmetic")
    (row,) = task.queries(1, 0, turns=2)
    environment = begun(row)
    assert not say(environment, f"<think>\n{task.gold(row)}\n</think>\n\n").valid
    assert say(environment, "\\boxed{x}").done
    assert say(environment, task.gold(row)).score == 0.0
    assert (environment.outcome.score, environment.outcome.turns) == (0.0, 2)


def test_what_cannot_be_tried_again_is_refused() -> None:
    with pytest.raises(PosttrainError, match="interactive already"):
        get_task("retry:mtr_bench:MinMax")
    with pytest.raises(PosttrainError, match="turns is a whole number"):
        get_task("retry:arithmetic").queries(1, 0, turns=0)


# --- textarena


@pytest.fixture(scope="module")
def guessing() -> list[dict[str, Any]]:
    pytest.importorskip("textarena")
    return list(get_task("textarena:GuessTheNumber-v0").queries(6, 1))


def halving(environment: Environment) -> Any:
    """Win at guessing from 1 to 20 by halves."""
    low, high = 1, 20
    while True:
        guess = (low + high) // 2
        reply = say(environment, f"[{guess}]")
        if reply.done:
            return reply
        low, high = (guess + 1, high) if "higher" in reply.text else (low, guess - 1)


def test_a_game_of_textarena_is_won_by_its_replies(guessing: list[dict[str, Any]]) -> None:
    for row in guessing:
        environment = begun(row)
        assert halving(environment).score == 1.0
        assert environment.outcome.won
        assert environment.outcome.turns <= 5


def test_games_side_by_side_do_not_disturb_each_other_nor_the_global_state(guessing: list[dict[str, Any]]) -> None:
    alone = []
    for row in guessing[:2]:
        environment = begun(row)
        alone.append([say(environment, f"[{guess}]").text for guess in (3, 11, 17)])
    random.seed(5)
    before = random.getstate()
    first, second = begun(guessing[0]), begun(guessing[1])
    together = [(say(first, f"[{guess}]").text, say(second, f"[{guess}]").text) for guess in (3, 11, 17)]
    assert [list(texts) for texts in zip(*together, strict=True)] == alone
    assert random.getstate() == before


def test_rubbish_is_counted_and_the_game_ends(guessing: list[dict[str, Any]]) -> None:
    environment = begun(guessing[0])
    for text in ("", "no move", "[999]", "<|im_end|>", "[[[", "\\boxed{1}") * 10:
        if say(environment, text).done:
            break
    else:
        pytest.fail("the game goes on for ever")
    assert environment.outcome.score < 1.0
    assert environment.outcome.invalid > 0


def test_games_that_cannot_be_played_are_refused_with_the_reason() -> None:
    pytest.importorskip("textarena")
    with pytest.raises(PosttrainError, match="textarena has no game 'Gues'"):
        get_task("textarena:Gues")
    with pytest.raises(PosttrainError, match="cannot be played here"):
        get_task("textarena:Chess-v0").queries(1, 0)  # for two


# --- TRL's interface


def test_an_interactive_row_is_an_environment_of_trl() -> None:
    task = get_task("mtr_bench:MinMax")
    (row,) = task.queries(1, 0, difficulty="easy")
    environment = ToolEnvironment()
    assert "move" in environment.reset(**row)
    for line in task.gold(row).splitlines():
        assert environment.get_reward() == 0.0
        environment.move(line.removeprefix("\\boxed{").removesuffix("}"))
    assert environment.get_reward() == 1.0
    with pytest.raises(ValueError, match="not interactive"):
        environment.reset(**next(get_task("arithmetic").queries(1, 0)))
