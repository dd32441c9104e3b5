"""Environments from elsewhere: tasks with further tries, textarena's games, and TRL's own environment interface."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import PosttrainError
from posttrain.rl.environments.tool_use import HOW_TO_CALL, ToolEnvironment
from posttrain.tasks.environment import Environment, environment_for
from posttrain.tasks.registry import get_task
from posttrain.tasks.task import check_gold
from posttrain.templates.families import get_family
from posttrain.templates.parse import parse
from tests.tiny_player import build

QWEN3 = get_family("qwen3")


def begun(row: dict[str, Any]) -> Environment:
    environment = environment_for(row)
    assert environment is not None
    assert environment.reset(row) == row["prompt"][-1]["content"]
    return environment


def say(environment: Environment, text: str) -> Any:
    return environment.step(parse(text, QWEN3))


# --- further tries


@pytest.mark.parametrize("name", ["retry:arithmetic", "retry:reasoning_gym:chain_sum", "retry:tool_calls"])
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


def calling_policy(folder: Path, row: dict[str, Any]) -> tuple[Any, Any]:
    """A model that was taught one thing: to call `move`, whatever is replied."""
    import torch
    import trl

    from posttrain.model.policy import load_model, load_tokenizer

    template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text(encoding="utf-8")
    options: dict[str, Any] = {"tools": [ToolEnvironment().move], "add_generation_prompt": True, "tokenize": False}
    asked = [{"role": "user", "content": row["prompt"][0]["content"] + HOW_TO_CALL}]
    prompt = load_tokenizer(build(folder / "first")).apply_chat_template(asked, chat_template=template, **options)
    call = '<tool_call>\n{"name": "move", "arguments": {"move": "? 1 2"}}\n</tool_call><|im_end|>'
    replied = "\n<|im_start|>user\n<tool_response>\n{}\n</tool_response><|im_end|>\n<|im_start|>assistant\n"

    policy = build(folder / "second", [prompt + call + replied] * 20, vocabulary=700)
    model, tokenizer = load_model(policy), load_tokenizer(policy)
    tokenizer.chat_template = template  # one whose tool calls TRL can read
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(90):
        given = [prompt, replied.format("<>="[step % 3]), replied.format("<>="[step % 2])]
        ids: list[int] = []
        labels: list[int] = []
        for context in given:
            outside, said = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (context, call))
            ids += outside + said
            labels += [-100] * len(outside) + said
        loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.05
    return model, tokenizer


def test_stock_trl_plays_our_environments(tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    rows = list(get_task("mtr_bench:MinMax").queries(2, 0, difficulty="easy", max_turns=4))
    model, tokenizer = calling_policy(tmp_path / "policy", rows[0])
    trainer = GRPOTrainer(
        model=model,
        args=GRPOConfig(
            output_dir=str(tmp_path / "run"),
            max_steps=1,
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=160,
            max_tool_calling_iterations=3,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
            temperature=0.05,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        environment_factory=ToolEnvironment,
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["tools/call_frequency"] > 1
    assert logged["tools/failure_frequency"] == 0
    assert "rewards/ToolEnvironment/mean" in logged
    assert any(environment._environment.outcome.turns > 1 for environment in trainer.environments)
