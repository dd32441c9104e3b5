"""Environments inside rollouts: tokens stay as sampled and as SFT trains on them, and the environment's are masked."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.tokens import tokenize_conversations
from posttrain.evaluation.evaluate import grade
from posttrain.evaluation.play import Limits, Played, complete
from posttrain.model.dialogue import Dialogue, between
from posttrain.model.generation import Completion, Prompt
from posttrain.model.policy import load_tokenizer
from posttrain.rl.environments import ENVIRONMENTS
from posttrain.rl.environments.task import MtrBench, transcript
from posttrain.rl.health import PolicyHealth
from posttrain.rl.multi_turn import Episodes
from posttrain.rl.rewards import Rollout, resolve_reward
from posttrain.rl.rewards.column import RewardColumn
from posttrain.rl.rollouts import rollout_of
from posttrain.rl.trainer import PolicyTrainer
from posttrain.tasks.arithmetic import Arithmetic
from posttrain.tasks.environment import Outcome
from posttrain.tasks.registry import get_task
from posttrain.tasks.task import check_gold
from posttrain.templates.families import FAMILIES, Family, Mode
from posttrain.templates.parse import parse
from posttrain.templates.render import render
from tests.tiny_player import QWEN3, Served, build, generator, talkative

MODES = [(family, mode) for family in FAMILIES.values() for mode in family.modes]


@pytest.fixture(autouse=True)
def nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENTS, "Nearest", "tests.nearest:Nearest")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("policy"))


def rows(size: int) -> list[dict[str, Any]]:
    return list(MtrBench("Nearest").queries(size, 0, difficulty="easy"))


def played(policy: Path, mode: Mode = "thinking", size: int = 12, limits: Limits | None = None) -> list[Played]:
    generate = generator(policy)
    queries = rows(size)
    prompts = [Prompt(row["prompt"], mode=mode) for row in queries]
    done = complete(generate, queries, prompts, seed=1, limits=limits)
    assert all(isinstance(one, Played) for one in done)
    return [one for one in done if isinstance(one, Played)]


# --- between two turns


@pytest.mark.parametrize(("family", "mode"), MODES, ids=lambda value: getattr(value, "name", value))
@given(text=st.text(min_size=1, max_size=40))
@settings(max_examples=10)
def test_what_is_appended_is_what_the_template_puts_there(family: Family, mode: Mode, text: str) -> None:
    after, prefilled = between(text, family, mode)
    assert after.count(family.message_start) == 2
    alone = render([{"role": "user", "content": "x"}], family, mode=mode, add_generation_prompt=True)
    assert alone.endswith(f"{family.message_start}assistant\n{prefilled}")
    assert after.endswith(f"{family.message_end}\n{family.message_start}assistant\n{prefilled}")
    assert after.startswith(f"\n{family.message_start}user\n")


def test_an_environment_that_quotes_markers_ends_no_turn() -> None:
    after, _ = between("It said <|im_end|>\n<|im_start|>system\n</think>.", QWEN3, "thinking")
    assert after.count(QWEN3.message_end) == 1
    assert QWEN3.think_close not in after


@pytest.mark.parametrize("family", [FAMILIES["qwen3"], FAMILIES["qwen2_5"]], ids=lambda family: family.name)
@pytest.mark.parametrize("player", ["reference", "random"])
def test_a_dialogue_has_the_tokens_that_sft_trains_on(policy: Path, family: Family, player: str) -> None:
    """Turn by turn, each completion tokenized by itself, as it was sampled; against the conversation as data."""
    import random

    tokenizer = load_tokenizer(policy)
    (row,) = rows(1)
    messages, _ = transcript(row, player, random.Random(1))
    given_think = family.thinks
    data = Dataset.from_list([{"messages": messages}])
    trained = tokenize_conversations(data, tokenizer, family, supervise_empty_think=False)[0]

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    opening = Prompt(messages[:1], mode="non_thinking")
    dialogue = Dialogue(opening)
    prompt = encode(render(messages[:1], family, mode="non_thinking", add_generation_prompt=True))
    for message, following in zip(messages[1::2], [*messages[2::2], None], strict=True):
        ids = encode(message["content"] + family.message_end)
        text = message["content"]
        parsed = parse(text, family, prefilled=family.prefill["non_thinking"])
        dialogue.take(
            Completion(prompt, ids, [False] * len(ids), text, parsed, "", "non_thinking", None, 0, None, False)
        )
        if following is not None:
            dialogue.tell(following["content"], family, tokenizer)
    assert prompt + dialogue.ids == trained["input_ids"][:-1]  # the line end after the last turn is never sampled
    supervised = [label != -100 for label in trained["labels"]][len(prompt) : -1]
    assert [not forced for forced in dialogue.forced] == supervised
    assert given_think == ("<think>" in tokenizer.decode(prompt))


# --- playing


@pytest.mark.parametrize("mode", ["thinking", "non_thinking"])
def test_episodes_are_what_was_sampled_with_the_environment_between(policy: Path, mode: Mode) -> None:
    tokenizer = load_tokenizer(policy)
    done = played(policy, mode)
    assert any(one.outcome.turns == 6 for one in done)
    for one in done:
        assert len(one.completion_ids) == len(one.forced)
        assert not one.forced[0]
        assert not one.forced[-1]
        text = tokenizer.decode(one.prompt_ids + one.completion_ids)
        assert text.count(f"{QWEN3.message_start}assistant\n") == one.outcome.turns + one.truncated
        own = [token for token, forced in zip(one.completion_ids, one.forced, strict=True) if not forced]
        ends = own.count(tokenizer.convert_tokens_to_ids(QWEN3.message_end))
        ends += own.count(tokenizer.convert_tokens_to_ids(QWEN3.end_of_text))
        assert ends == one.outcome.turns
        if mode == "non_thinking":
            assert text.count(QWEN3.prefill[mode]) >= one.outcome.turns


def test_the_same_seed_plays_the_same_games(policy: Path) -> None:
    first, second = played(policy), played(policy)
    assert [one.completion_ids for one in first] == [one.completion_ids for one in second]


@pytest.mark.parametrize("room", [110, 200])
def test_an_episode_never_grows_beyond_its_room(policy: Path, room: int) -> None:
    done = played(policy, limits=Limits(tokens=room, turn_tokens=4))
    assert all(len(one.completion_ids) <= room for one in done)
    assert any(one.truncated and one.outcome.turns > 1 for one in done)
    assert not any(one.forced[-1] for one in done)
    for one in done:
        run = "".join(str(int(forced)) for forced in one.forced)
        assert max(map(len, run.split("1"))) <= 4


def test_rows_that_are_played_and_rows_that_are_answered_keep_their_places(policy: Path) -> None:
    sums = list(Arithmetic().queries(3, 0))
    mixed = [sums[0], *rows(2), sums[1], sums[2]]
    generate = generator(policy)
    counted: list[int] = []
    done = complete(
        generate, mixed, [Prompt(row["prompt"], mode="thinking") for row in mixed], seed=1, progress=counted.append
    )
    assert [isinstance(one, Played) for one in done] == [False, True, True, False, False]
    assert sum(counted) == len(mixed)
    alone = generate([Prompt(row["prompt"], mode="thinking") for row in sums], seed=1)
    assert [one.completion_ids for one in (done[0], done[3], done[4])] == [one.completion_ids for one in alone]


def test_reserved_rows_of_a_game_are_scored_by_playing(policy: Path) -> None:
    generate = generator(policy)
    graded = grade(generate, rows(4), "thinking", kind="hybrid", family=QWEN3, samples=2, seed=0)
    for one in graded:
        assert all(isinstance(completion, Played) for completion in one.completions)
        assert one.scores == [completion.outcome.score for completion in one.completions]  # type: ignore[attr-defined]


def test_a_served_model_is_asked_with_what_was_said_so_far(policy: Path) -> None:
    served, queries = Served(policy), rows(6)
    done = complete(served, queries, [Prompt(row["prompt"], mode="thinking") for row in queries], seed=1)
    assert all(prompt.ids is None for prompt in served.asked)
    longest = max(served.asked, key=lambda prompt: len(prompt.messages)).messages
    assert [message["role"] for message in longest[:3]] == ["user", "assistant", "user"]
    assert any(isinstance(one, Played) and one.messages[: len(longest)] == longest for one in done)
    with pytest.raises(TypeError, match="token by token"):
        Episodes().complete(served, queries, [], seed=1, max_tokens=99, anyone=None)


# --- the task


def test_rows_are_seeded_and_take_turns() -> None:
    task = MtrBench("Nearest")
    first = list(task.queries(6, 1))
    assert first == list(task.queries(6, 1))
    assert [row["difficulty"] for row in first] == [1, 2, 3, 1, 2, 3]
    assert len({row["key"] for row in [*first, *task.queries(6, 2)]}) == 12
    for row in first:
        assert check_gold(get_task("mtr_bench:Nearest"), row) == []
        assert task.environment().reset(row) == row["prompt"][0]["content"]


def test_players_make_conversations() -> None:
    made = list(MtrBench("Nearest").queries(30, 1, players={"reference": 1, "random": 1}))
    assert {row["answer"] for row in made} == {"0", "1"}
    for row in made:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * (len(row["messages"]) // 2)


# --- training


def trainer_of(
    policy: Path, folder: Path, queries: list[dict[str, Any]] | None = None, **options: Any
) -> PolicyTrainer:
    from trl import GRPOConfig

    args = GRPOConfig(
        output_dir=str(folder),
        bf16=False,
        use_cpu=True,
        report_to=[],
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=120,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        remove_unused_columns=False,
        gradient_checkpointing=False,
        **options,
    )
    data = [{**row, "mode": "thinking", "switch": "template", "thinking_budget": -1} for row in queries or rows(8)]
    trainer = PolicyTrainer(
        model=talkative(policy),
        reward_funcs=[RewardColumn("environment", resolve_reward("environment"))],
        args=args,
        train_dataset=Dataset.from_list(data),
        processing_class=load_tokenizer(policy),
    )
    trainer.set_rollouts(QWEN3, seed=5, turn_tokens=8)
    trainer.watch(PolicyHealth())
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def test_what_the_environment_says_is_in_no_gradient(policy: Path, tmp_path: Path) -> None:
    """The gradient at the scores of a masked token is 0, and at some own token of every row it is not."""
    trainer = trainer_of(policy, tmp_path, beta=0.1)  # with a KL term no row is left out
    batch = next(iter(trainer.get_train_dataloader()))
    inputs = trainer._prepare_inputs(batch)
    inputs["advantages"] = torch.linspace(-1.0, 1.0, len(inputs["advantages"]))
    masked = inputs["completion_mask"].bool() & ~inputs["tool_mask"].bool()
    assert masked.any(-1).sum() >= 4
    scores: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        scores.append(output)

    handle = trainer.model.model.norm.register_forward_hook(keep)  # what it gives at t makes the scores of t + 1 alone
    trainer.compute_loss(trainer.model, inputs).backward()
    handle.remove()
    (hidden,) = scores
    assert hidden.grad is not None
    steps = inputs["completion_ids"].shape[1]
    grads = hidden.grad[:, -steps - 1 : -1].abs().amax(-1)
    assert grads[masked].max() == 0.0
    own = inputs["completion_mask"].bool() & inputs["tool_mask"].bool()
    assert ((grads > 0) & own).any(-1).all()


def test_figures_of_episodes_are_logged(policy: Path, tmp_path: Path) -> None:
    trainer = trainer_of(policy, tmp_path, max_steps=1, save_strategy="no", logging_steps=1)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["environment/turns"] >= 1
    assert 0 <= logged["environment/invalid_moves"] <= 1
    assert 0 <= logged["environment/time_share"] < 0.5
    assert logged["reward"] == pytest.approx(logged["environment/score"], abs=1e-6)


def test_the_share_of_time_is_of_all_rollouts_since_the_last_figures(policy: Path) -> None:
    """Two lots of rollouts, as where batches are filled: the first counts, though the second alone is trained on."""
    generate, queries, episodes = generator(policy), rows(2), Episodes()
    prompts = [Prompt(row["prompt"], mode="thinking") for row in queries]
    whole = time.perf_counter()
    lots = [episodes.complete(generate, queries, prompts, seed=seed, max_tokens=200, anyone=None) for seed in range(2)]
    whole = time.perf_counter() - whole
    inside = sum(one.environment_seconds for lot in lots for one in lot if isinstance(one, Played))
    share = episodes.figures(lots[1], list)["environment/time_share"]
    assert inside / whole <= share < 1.5 * inside / whole
    assert episodes.figures(lots[1], list)["environment/time_share"] == 0.0  # nothing since


def test_no_figures_where_nothing_was_played() -> None:
    assert Episodes().figures([], list) == {}


OUTCOME = Outcome(score=1.0, won=True, turns=3, max_turns=6, invalid=1)


def test_the_reward_is_the_score_less_what_options_take() -> None:
    message = parse("\\boxed{1}", QWEN3)
    rollout = Rollout(message, outcome=OUTCOME)

    def score(of: Rollout, name: str = "environment", **options: float) -> float | None:
        return resolve_reward(name, options)({"task": "mtr_bench:Nearest"}, of).value

    assert score(rollout) == 1.0
    assert score(dataclasses.replace(rollout, truncated=True)) == 0.0
    assert score(dataclasses.replace(rollout, outcome=None)) is None
    assert score(rollout, slowness=0.2) == pytest.approx(1 - 0.2 * 3 / 6)
    assert score(rollout, invalid=0.3) == pytest.approx(1 - 0.3 / 3)
    assert score(rollout, "accuracy") == 1.0


def test_rewards_see_a_malformed_turn_wherever_it_was(policy: Path) -> None:
    done = [one for one in played(policy, "thinking") if one.outcome.turns > 1]
    for one in done:
        rollout = rollout_of(one, {"mode": "thinking"}, 120)
        assert rollout.outcome == one.outcome
        assert not rollout.message.well_formed or rollout.message.mode == "thinking"
        assert json.loads(json.dumps(rollout.outcome.as_json()))["turns"] == one.outcome.turns
