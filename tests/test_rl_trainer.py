"""The policy trainer on a real tiny model: modes by sample, figures, alarms, rewards, and that it learns."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from posttrain.errors import PosttrainError
from posttrain.model.artifacts import RunDir
from posttrain.model.policy import build_policy, load_model, load_tokenizer
from posttrain.recipe.kinds import stage_class
from posttrain.recipe.schema import DataSpec, EngineSpec, EvaluationSpec, ModelSpec, Recipe, TrainedTokenizer
from posttrain.recipe.stage import Stage, StageContext
from posttrain.rl.pass_rate import NAME, measure_pass_rates
from posttrain.rl.queries import PassRate
from posttrain.rl.rewards import Rollout
from posttrain.rl.rollouts import rollout_seed
from posttrain.tasks.arithmetic import Arithmetic, corpus
from posttrain.templates.families import get_family

Stage.model_rebuild(_types_namespace={"ModelSpec": ModelSpec})
Recipe.model_rebuild()
QWEN3 = get_family("qwen3")
TRAIN: dict[str, Any] = {
    "max_steps": 3,
    "save_strategy": "no",
    "logging_steps": 1,
    "learning_rate": 1e-2,
    "max_completion_length": 8,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "report_to": "none",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = RunDir(tmp_path_factory.mktemp("run"))
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 64,
    }
    spec = ModelSpec(
        architecture="Qwen3ForCausalLM",
        config=sizes,
        tokenizer=TrainedTokenizer(train_on=["sums"], vocab_size=330),
    )
    build_policy(spec, QWEN3, run.base, seed=1, texts=list(corpus(300, 0)))
    Dataset.from_list(list(Arithmetic().queries(12, 0))).save_to_disk(str(run.data("sums")))
    return run.path


def prepared(root: Path, name: str, **options: Any) -> StageContext:
    stage = stage_class("grpo").model_validate({"queries": {"from": "sums"}, "train": TRAIN, **options})
    run = RunDir(root)
    recipe = Recipe(
        name="test",
        model=ModelSpec(path=str(run.base)),
        data={"sums": DataSpec(task="arithmetic", size=12)},
        evaluation=EvaluationSpec(data=["sums"]),
        engine=EngineSpec(cpu=True),
        stages={name: stage},
    )
    where = StageContext(
        recipe=recipe,
        name=name,
        run=run,
        dir=run.stage(name),
        start=run.base,
        teacher=None,
        family=QWEN3,
        kind="hybrid",
        quiet=True,
    )
    where.dir.data.mkdir(parents=True)
    stage.build_data(where)
    return where


def trainer_of(where: StageContext) -> Any:
    stage = where.recipe.stages[where.name]
    return stage.make_trainer(where, load_model(where.start), load_tokenizer(where.start), None)


def letters(query: Mapping[str, Any], rollout: Rollout) -> float:
    """The share of completion characters that are letters: something an untrained policy soon learns."""
    return sum(sign.isalpha() for sign in rollout.text) / max(1, len(rollout.text))


def test_every_sample_is_asked_in_its_own_mode(root: Path) -> None:
    where = prepared(root, "modes", modes={"thinking": 0.5, "non_thinking": 0.5}, rewards={"format": 1.0})
    trainer = trainer_of(where)
    seen: list[Rollout] = []

    def keep(query: Mapping[str, Any], rollout: Rollout) -> float:
        seen.append(rollout)
        return float(rollout.mode == query["mode"])

    trainer.reward_funcs[0].reward = keep
    trainer.train()
    modes = {rollout.mode for rollout in seen}
    assert modes == {"thinking", "non_thinking"}
    for rollout in seen:
        assert rollout.prefilled == QWEN3.prefill[rollout.mode or "thinking"]
        assert 0 < rollout.tokens <= rollout.max_tokens == 8
    assert trainer.state.log_history[0]["rewards/format/mean"] == 1.0


def test_flags_ask_in_the_text_and_leave_the_template_alone(root: Path) -> None:
    where = prepared(root, "flags", modes={"non_thinking": 1.0}, flags=True)
    trainer = trainer_of(where)
    output = trainer._generate_and_score_completions(list(trainer.train_dataset)[:8])
    text = trainer._tokenizer.batch_decode(output["prompt_ids"])
    assert all("/no_think" in prompt and "<think>" not in prompt for prompt in text)


def test_counters_add_up_and_are_logged(root: Path) -> None:
    # One generation of 2 x 8 rollouts serves 2 x 2 micro-steps, so each token is trained on twice.
    options = {**TRAIN, "steps_per_generation": 2, "num_iterations": 2, "max_steps": 4}
    trainer = trainer_of(prepared(root, "counters", train=options))
    signs = itertools.count()
    trainer.reward_funcs[0].reward = lambda query, rollout: next(signs) % 4 / 3  # no advantage is 0
    trainer.train()
    assert trainer.train_tokens == 2 * trainer.rollout_tokens > 0
    # Padding of the generation batch is never counted: prompts and completions are.
    lines = [entry for entry in trainer.state.log_history if "tokens/rollout" in entry]
    assert [entry["tokens/rollout"] for entry in lines[:4]] == [trainer.rollout_tokens] * 4
    assert lines[3]["tokens/train"] == trainer.train_tokens
    size = trainer.model.num_parameters(exclude_embeddings=True)
    # Generation, one more forward for the old log-probabilities, and forward and backward of every use.
    assert trainer.flops() == size * (
        2 * trainer.rollout_tokens + 2 * trainer.rollout_tokens + 6 * trainer.train_tokens
    )


def test_equal_rewards_and_truncation_are_said_aloud(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = trainer_of(prepared(root, "alarms"))
    trainer.reward_funcs[0].reward = lambda query, rollout: 0.0
    with caplog.at_level(logging.WARNING, "posttrain"):
        trainer.train()
    assert "every reward in this batch is equal" in caplog.text
    assert [entry["alarm/equal_rewards"] for entry in trainer.state.log_history[:3]] == [1.0, 1.0, 1.0]
    assert "every completion of this batch is truncated (1 in a row)" in caplog.text


def test_a_run_of_equal_rewards_is_stopped_where_the_recipe_says_so(root: Path) -> None:
    trainer = trainer_of(prepared(root, "stopped", health={"stop_if_equal": 2}))
    trainer.reward_funcs[0].reward = lambda query, rollout: 1.0
    with pytest.raises(PosttrainError, match=r"equal within its group .* 2 batches in a row"):
        trainer.train()
    assert trainer.state.global_step == 1


def test_too_few_queries_for_a_batch_are_refused(root: Path) -> None:
    where = prepared(root, "few", queries={"from": "sums", "limit": 1})
    with pytest.raises(PosttrainError, match="1 queries do not fill one generation batch of 2"):
        trainer_of(where)


def test_the_reference_is_the_policy_that_the_stage_starts_from(root: Path) -> None:
    import torch

    trainer = trainer_of(prepared(root, "reference", train={**TRAIN, "beta": 0.1}, rewards={f"{__name__}:letters": 1}))
    trainer.train()
    start = load_model(RunDir(root).base).state_dict()
    for name, value in trainer.ref_model.state_dict().items():
        assert torch.equal(value, start[name])
    assert trainer.state.log_history[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert trainer.state.log_history[2]["kl"] > 0


def test_an_adapter_is_sampled_and_trained_alone(root: Path) -> None:
    import torch
    from peft import LoraConfig

    where = prepared(root, "lora", rewards={f"{__name__}:letters": 1})
    adapter = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False)
    model = load_model(where.start)
    trainer = where.recipe.stages["lora"].make_trainer(where, model, load_tokenizer(where.start), adapter)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    # The rollouts are the adapted policy's: the weights below it alone sample others.
    adapted = trainer._generate_and_score_completions(list(trainer.train_dataset)[:8])["completion_ids"]
    with trainer.model.disable_adapter():
        below = trainer._generate_and_score_completions(list(trainer.train_dataset)[:8])["completion_ids"]
    assert adapted.shape != below.shape or not torch.equal(adapted, below)
    trainer.train()
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all("lora" in name for name in changed)


def test_it_learns(root: Path) -> None:
    options = {**TRAIN, "max_steps": 20, "per_device_train_batch_size": 32, "num_generations": 8}
    options |= {"learning_rate": 3e-2, "lr_scheduler_type": "constant"}
    trainer = trainer_of(prepared(root, "learns", train=options, rewards={f"{__name__}:letters": 1.0}))
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert sum(rewards[-3:]) / 3 > rewards[0] + 0.3, rewards


def test_seeds_differ_wherever_rollouts_must() -> None:
    places = [(s, g, m, p) for s in (0, 1) for g in range(3) for m in range(3) for p in range(2)]
    seeds = {rollout_seed(*place) for place in places}
    assert len(seeds) == len(places)
    assert rollout_seed(1, 2, 3, 0) == rollout_seed(1, 2, 3, 0) < 2**31


def test_pass_rates_go_on_after_the_last_whole_chunk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain.rl.rewards import outcome

    def letter_first(query: Mapping[str, Any], rollout: Rollout) -> float:
        return float(rollout.text[:1].isalpha())

    monkeypatch.setattr(outcome, "accuracy", letter_first)
    spec = PassRate(samples=4, chunk=5, batch_size=16)
    rows = list(Arithmetic().queries(12, 3))
    where = prepared(root, "rates")
    whole = measure_pass_rates(spec, where, rows, "thinking", 3)
    assert 0 < sum(whole) < 12 and all(rate in (0, 0.25, 0.5, 0.75, 1.0) for rate in whole)
    path = where.dir.data / NAME
    lines = path.read_text().splitlines(keepends=True)
    # Killed in the middle of its second chunk's lines.
    path.write_text("".join(lines[:8]) + lines[8][:10])
    assert measure_pass_rates(spec, where, rows, "thinking", 3) == whole
    assert path.read_text().splitlines(keepends=True) == lines
    # Measured otherwise: nothing of it is taken over.
    other = measure_pass_rates(spec.model_copy(update={"samples": 2}), where, rows, "thinking", 3)
    assert all(rate in (0, 0.5, 1.0) for rate in other)
