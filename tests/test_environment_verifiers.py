"""Environments of the verifiers library, played by our rollouts: the library's own loop, rubric, stops and clean-up."""

from __future__ import annotations

import asyncio
import gc
import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verifiers")

from posttrain.errors import PosttrainError
from posttrain.evaluation.play import Played, complete
from posttrain.model.generation import Prompt
from posttrain.rl.environments import verifiers as adapter
from posttrain.rl.environments.verifiers_library import load
from posttrain.tasks.environment import Environment
from posttrain.tasks.registry import get_task
from posttrain.templates.families import get_family
from posttrain.templates.parse import parse
from tests.test_environment_adapters import begun, say
from tests.test_multi_turn import trainer_of
from tests.tiny_player import build, generator

QWEN3 = get_family("qwen3")
HERE = "verifiers:tests.verifiers_environment"


def rows(size: int = 9, *, split: str = "train", **arguments: Any) -> list[dict[str, Any]]:
    return list(get_task(HERE).queries(size, 1, arguments=arguments, split=split))


def halved(environment: Environment) -> Any:
    low, high = 1, 9
    while True:
        guess = (low + high) // 2
        reply = say(environment, f"<think>\n{guess + 1}\n</think>\n\n{guess}")
        if reply.done:
            return reply
        low, high = (guess + 1, high) if reply.text == "higher" else (low, guess - 1)


def test_rows_are_the_environments_own_in_an_order_of_the_seed() -> None:
    made = rows(kind="guess")
    assert made == rows(kind="guess")
    assert [message["role"] for message in made[0]["prompt"]] == ["system", "user"]
    assert {row["answer"] for row in made} == set("123456789")
    assert len({row["key"] for row in made}) == 9
    assert [row["id"] for row in made] != [
        row["id"] for row in get_task(HERE).queries(9, 2, arguments={"kind": "guess"})
    ]
    assert len(rows(3, split="eval", kind="single")) == 3


def test_an_environment_is_won_by_its_replies_and_scored_by_its_rubric() -> None:
    for row in rows(kind="guess"):
        environment = begun(row)
        assert halved(environment).done
        turns = environment.outcome.turns
        # right weighs 1, short 0.25: full marks are 1.25.
        assert environment.outcome.score == pytest.approx((1.0 + 0.25 * (turns <= 2)) / 1.25)
        assert environment.outcome.won == (turns <= 2)


def test_one_message_decides_where_the_environment_says_nothing() -> None:
    row = rows(1, kind="single")[0]
    assert say(begun(row), row["answer"]) == (reply := say(begun(row), f"<think>\n0\n</think>\n\n{row['answer']}"))
    assert (reply.done, reply.score) == (True, 1.0)
    assert say(begun(row), f"<think>\n{row['answer']}\n</think>\n\n0").score == 0.0
    assert get_task(HERE).score(row["answer"], row) == 1.0


def test_turns_run_out_a_stop_of_its_own_ends_it_and_empty_messages_are_invalid() -> None:
    row = rows(1, kind="guess", max_turns=3)[0]
    environment = begun(row)
    assert say(environment, "").valid is False
    assert say(environment, "twelve").text == "That is no number."
    last = say(environment, "0")
    assert (last.done, last.score) == (True, 0.0)
    assert (environment.outcome.turns, environment.outcome.max_turns, environment.outcome.ended) == (3, 3, True)
    environment = begun(row)
    assert say(environment, "give up").text == f"It was {row['answer']}."
    assert environment.outcome.score == pytest.approx(0.25 / 1.25)
    assert say(environment, row["answer"]).done


def test_an_environment_without_a_limit_gets_one() -> None:
    environment = begun(rows(1, kind="guess", max_turns=-1)[0])
    turns = next(turn for turn in range(1, 99) if say(environment, "0").done)
    assert turns == environment.outcome.max_turns == 30


def test_a_fault_of_the_environment_is_counted_and_the_episode_over() -> None:
    environment = begun(rows(1, kind="guess")[0])
    assert not say(environment, "crash").valid
    assert say(environment, "5").done
    assert (environment.outcome.faults, environment.outcome.score) == (1, 0.0)


def test_one_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = begun(rows(1, kind="guess")[0])
    monkeypatch.setattr(adapter, "SECONDS", 0.0)
    assert not say(environment, "0").valid
    assert environment.outcome.faults == 1
    assert say(environment, "0").done


def test_an_episode_that_is_left_is_cleaned_up() -> None:
    from tests.verifiers_environment import cleaned

    row = rows(1, kind="guess")[0]
    environment = begun(row)
    say(environment, "0")
    cleaned.clear()
    del environment
    gc.collect()
    until = time.monotonic() + 10
    while cleaned != [row["answer"]]:
        assert time.monotonic() < until, "nobody cleaned up"
        time.sleep(0.01)


def test_a_group_is_played_and_scored_by_the_environment_of_each_row() -> None:
    by_kind = {row["prompt"][-1]["content"].startswith("Guess"): row for row in rows(18, kind="group")}
    assert say(begun(by_kind[False]), by_kind[False]["answer"]).score == 1.0
    environment = begun(by_kind[True])
    halved(environment)
    assert environment.outcome.score >= 0.8


def test_a_parser_that_wants_to_see_the_thinking_sees_it() -> None:
    plain, thinking = (load(HERE.partition(":")[2], {"kind": "guess", **more}) for more in ({}, {"parser": "think"}))
    message = parse("<think>\nhm\n</think>\n\n5", QWEN3)
    assert adapter._answer_of(message, thinking) == "<think>\nhm\n</think>\n\n5"
    assert thinking.parser.parse(adapter._answer_of(message, thinking)) == adapter._answer_of(message, plain) == "5"


def test_it_plays_inside_a_running_loop_and_leaves_the_interrupts_alone() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    async def notebook() -> Any:
        return halved(begun(rows(1, kind="guess", max_turns=7)[0]))

    assert asyncio.run(notebook()).score >= 0.8
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"arguments": {"kind": "ranked"}}, "compares the rollouts of a group"),
        ({"arguments": {"kind": "tools"}}, "gives the model tools"),
        ({"arguments": {}}, "cannot be loaded"),
        ({"arguments": [1]}, "arguments are names"),
        ({"arguments": {"kind": "guess"}, "split": "all"}, "split is train or eval"),
        ({"arguments": {"kind": "guess"}, "size": 10}, "has 9 train rows, not 10"),
    ],
)
def test_what_cannot_be_played_is_refused_with_the_reason(options: dict[str, Any], match: str) -> None:
    with pytest.raises(PosttrainError, match=match):
        get_task(HERE).queries(options.pop("size", 1), 0, **options)


def test_an_environment_that_is_not_there_is_named() -> None:
    with pytest.raises(PosttrainError, match="cannot be loaded"):
        get_task("verifiers:no-such-thing").queries(1, 0)


def test_rollouts_play_them_side_by_side(tmp_path: Path) -> None:
    queries = [*rows(6, kind="guess"), *rows(3, kind="single")]
    prompts = [Prompt(row["prompt"], mode="thinking") for row in queries]
    done = complete(generator(build(tmp_path / "policy")), queries, prompts, seed=1)
    played = [one for one in done if isinstance(one, Played)]
    assert len(played) == 9
    assert max(one.outcome.turns for one in played[:6]) > 1
    assert all(one.outcome.turns == 1 for one in played[6:])
    assert not any(one.outcome.faults for one in played)
    assert any("That is no number." in message["content"] for message in played[0].messages)


def test_a_policy_is_trained_on_them(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 2, "save_strategy": "no", "logging_steps": 1, "learning_rate": 1e-2}
    trainer = trainer_of(build(tmp_path / "policy"), tmp_path / "run", rows(8, kind="guess"), **options)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    for line in trainer.state.log_history[:2]:
        assert line["environment/turns"] > 1 and line["environment/faults"] == 0
        assert line["reward"] == pytest.approx(line["environment/score"], abs=1e-6)
    # Whoever says nothing of use in two turns at most is paid for that: rewards differ, and something is learnt.
    assert any(not before[name].equal(value) for name, value in trainer.model.state_dict().items())
