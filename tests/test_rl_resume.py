"""A run of rollouts that was stopped and resumed ends with the weights of one that was not: bit by bit.

Each variant is trained once without a stop. Its checkpoints up to a step are all that a kill behind that step leaves.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from posttrain.errors import PosttrainError
from posttrain.model.artifacts import RunDir
from posttrain.model.policy import build_policy, load_model, load_tokenizer
from posttrain.recipe.kinds import stage_class
from posttrain.recipe.schema import DataSpec, EngineSpec, EvaluationSpec, ModelSpec, Recipe, TrainedTokenizer
from posttrain.recipe.stage import Stage, StageContext
from posttrain.rl.rewards import Rollout
from posttrain.tasks.arithmetic import Arithmetic, corpus
from posttrain.templates.families import get_family

from . import warm

Stage.model_rebuild(_types_namespace={"ModelSpec": ModelSpec})
Recipe.model_rebuild()
# Its prompts end inside an open think block, so that budgets strike in an untrained model too.
FAMILY = dataclasses.replace(get_family("qwen3_thinking_2507"), stop_thinking=".</think>\n\n")
STEPS = 7
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
}
COMMON: dict[str, Any] = {
    "max_steps": STEPS,
    "save_steps": 1,
    "save_total_limit": None,
    "logging_steps": 2,
    "learning_rate": 1e-2,
    "max_completion_length": 10,
    "per_device_train_batch_size": 8,
    "report_to": "none",
}
BUDGETS = {"thinking_budgets": {"share": 0.5, "choices": [2]}, "queries": {"from": "sums"}}
GRPO: dict[str, Any] = {"kind": "grpo", "rewards": {f"{__name__}:checksum": 1.0}, **BUDGETS}
# Twelve queries at two a step: an epoch has six steps, so step 7 is in the second one.
VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {**GRPO, "train": {**COMMON, "num_generations": 4}},
    # One generation serves eight micro-steps, that is four steps: every checkpoint but the fourth is in mid-buffer.
    "filled": {
        **GRPO,
        "dynamic_sampling": {"tries": 3},
        "rewards": {f"{__name__}:checksum": 1.0},
        "train": {**COMMON, "num_generations": 2, "per_device_train_batch_size": 4, "steps_per_generation": 2},
    },
    "buffer": {
        **GRPO,
        "train": {
            **COMMON,
            "num_generations": 4,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "steps_per_generation": 4,
            "num_iterations": 2,
            "use_adaptive_entropy": True,
            "entropy_coef": 0.01,
            "entropy_target": 5.0,
        },
    },
    "muon": {
        **GRPO,
        "optimizer": {"learning_rate": 0.02},
        "train": {**COMMON, "num_generations": 4, "beta": 0.05, "lr_scheduler_type": "cosine"},
    },
    "distillation": {
        "kind": "on_policy_distillation",
        "teacher": "teacher",
        **BUDGETS,
        "train": {**COMMON, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": STEPS},
    },
}


def prepared(root: Path, variant: str) -> StageContext:
    """A run directory with its base model, its teacher and its data, and the context of its one stage."""
    options = VARIANTS[variant]
    stage = stage_class(options["kind"]).model_validate(options)
    run = RunDir(root)
    if not run.base.exists():
        spec = ModelSpec(
            architecture="Qwen3ForCausalLM",
            config={**SIZES, "initializer_range": 0.2},
            tokenizer=TrainedTokenizer(train_on=["sums"], vocab_size=330),
        )
        build_policy(spec, FAMILY, run.base, seed=1, texts=list(corpus(300, 0)))
        copied = spec.model_copy(update={"tokenizer": str(run.base)})
        build_policy(copied, FAMILY, run.stage("teacher").model, seed=2)
        Dataset.from_list(list(Arithmetic().queries(12, 0))).save_to_disk(str(run.data("sums")))
    recipe = Recipe(
        name="test",
        model=ModelSpec(path=str(run.base)),
        data={"sums": DataSpec(task="arithmetic", size=12)},
        evaluation=EvaluationSpec(data=["sums"]),
        engine=EngineSpec(cpu=True),
        stages={variant: stage},
    )
    context = StageContext(
        recipe=recipe,
        name=variant,
        run=run,
        dir=run.stage(variant),
        start=run.base,
        teacher=run.stage("teacher").model,
        family=FAMILY,
        kind="thinking",
        quiet=True,
    )
    if not context.dir.data.exists():
        context.dir.data.mkdir(parents=True)
        stage.build_data(context)
    return context


def checksum(query: Mapping[str, Any], rollout: Rollout) -> float:
    """A reward that differs between rollouts of an untrained model."""
    return sum(map(ord, rollout.text)) % 7 / 6


class Stop(TrainerCallback):  # type: ignore[misc]
    """Ends a run when checkpoint `step` is written: by a signal, or politely."""

    def __init__(self, step: int, *, kill: bool) -> None:
        self.step, self.kill = step, kill

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            control.should_training_stop = True


def train(context: StageContext, *, stop: int = 0, kill: bool = False, resume: bool = False) -> Any:
    """Train the context's stage. Whatever ran before in this process leaves no trace in it."""
    torch.manual_seed(torch.seed() % 2**31)
    stage = context.recipe.stages[context.name]
    trainer = stage.make_trainer(context, load_model(context.start), load_tokenizer(context.start), None)
    trainer.add_callback(Stop(stop, kill=kill))
    found = sorted(context.dir.checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    trainer.train(resume_from_checkpoint=str(found[-1]) if resume else None)
    return trainer


def killed_at(root: str, variant: str, step: int) -> None:
    """In a process of its own: train, and end by SIGKILL as soon as a checkpoint is written."""
    train(prepared(Path(root), variant), stop=step, kill=True)


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_same(trainer: Any, expected: dict[str, torch.Tensor]) -> None:
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


@dataclasses.dataclass
class Whole:
    """A run that nothing stopped."""

    context: StageContext
    weights: dict[str, torch.Tensor]
    figures: list[dict[str, float]]
    counters: dict[str, int]
    entropy_coef: float | None

    @property
    def checkpoints(self) -> Path:
        return self.context.dir.path / "whole"

    def left_at(self, step: int) -> StageContext:
        """The stage as a kill behind a checkpoint leaves it: with this one as the newest."""
        shutil.rmtree(self.context.dir.checkpoints, ignore_errors=True)
        name = f"checkpoint-{step}"
        shutil.copytree(self.checkpoints / name, self.context.dir.checkpoints / name)
        return self.context


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def whole(root: Path) -> Callable[[str], Whole]:
    """A variant's whole run, made when it is first asked for."""

    @cache
    def made(variant: str) -> Whole:
        context = prepared(root, variant)
        trainer = train(context)
        coefficient = getattr(trainer, "entropy_coef", None)
        run = Whole(context, weights(trainer), trainer.state.log_history, dict(trainer.counters), coefficient)
        context.dir.checkpoints.rename(run.checkpoints)
        return run

    return made


@pytest.mark.parametrize(
    ("variant", "stops"),
    [("grpo", [3, 6]), ("filled", [3, 6]), ("buffer", [3, 5]), ("muon", [2]), ("distillation", [4])],
)
def test_a_stopped_run_ends_as_an_uninterrupted_one(
    whole: Callable[[str], Whole], variant: str, stops: list[int]
) -> None:
    run = whole(variant)
    begun = load_model(run.context.start).state_dict()
    assert any(not torch.equal(value, begun[name]) for name, value in run.weights.items())
    for stop in stops:
        resumed = train(run.left_at(stop), resume=True)
        assert resumed.state.global_step == STEPS
        assert_same(resumed, run.weights)
        assert resumed.counters == run.counters
        if variant == "buffer":
            assert resumed.entropy_coef == run.entropy_coef
        # The figures too, where a checkpoint fell between two lines of the log.
        for key in ("tokens/rollout", "completions/mean_length", "rollouts/forced_tokens", "entropy"):
            line = [entry[key] for entry in run.figures if key in entry]
            assert line == [entry[key] for entry in resumed.state.log_history if key in entry], key


@pytest.mark.parametrize(("variant", "stop"), [("grpo", 6), ("buffer", 5)])
def test_without_what_is_kept_it_would_end_otherwise(
    whole: Callable[[str], Whole], variant: str, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: TRL alone resumes in mid-buffer or in the second epoch as another run."""
    from posttrain.model.trl_trainers import GRPOTrainer
    from posttrain.rl.resume import ResumableRollouts

    run = whole(variant)
    monkeypatch.setattr(ResumableRollouts, "_load_optimizer_and_scheduler", GRPOTrainer._load_optimizer_and_scheduler)
    monkeypatch.setattr(ResumableRollouts, "_get_train_sampler", GRPOTrainer._get_train_sampler)
    resumed = train(run.left_at(stop), resume=True)
    with pytest.raises(AssertionError):
        assert_same(resumed, run.weights)


def test_kill_9_in_mid_buffer_of_another_process(whole: Callable[[str], Whole], root: Path) -> None:
    run = whole("buffer")
    shutil.rmtree(run.context.dir.checkpoints, ignore_errors=True)
    assert warm.call(killed_at, str(root), "buffer", 3) == -signal.SIGKILL
    assert_same(train(run.context, resume=True), run.weights)


def test_a_polite_stop_is_resumed_as_a_kill_is(whole: Callable[[str], Whole]) -> None:
    run = whole("muon")
    shutil.rmtree(run.context.dir.checkpoints, ignore_errors=True)
    train(run.context, stop=4)
    assert_same(train(run.context, resume=True), run.weights)


def test_a_checkpoint_without_its_rollouts_is_refused(whole: Callable[[str], Whole]) -> None:
    context = whole("grpo").left_at(1)
    (context.dir.checkpoints / "checkpoint-1" / "rollouts_0.pt").unlink()
    with pytest.raises(PosttrainError, match=r"rollouts_0\.pt is missing"):
        train(context, resume=True)
