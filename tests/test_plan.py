"""The plan's estimates, each derived in sight."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.recipe.load import load_recipe
from posttrain.run.estimates import Disk, Memory, run_disk, stage_disk, stage_memory
from posttrain.run.plan import short, stage_plan

FLAGSHIP = Path(__file__).parent.parent / "recipes" / "qwen3_32b_flagship.yaml"
FAMILY = FLAGSHIP.with_name("strong_to_weak_family.yaml")
TINY = FLAGSHIP.with_name("tiny_cpu.yaml")
N = 1000  # parameters


@pytest.mark.parametrize(
    ("strategy", "dtype", "memory"),
    [
        # weights, gradients, two moments: 2 bytes each, in every one of 32 processes
        ("ddp", "bfloat16", 32 * 8 * N),
        ("ddp", "float32", 32 * 16 * N),
        # weights of 2 bytes in every process; once: gradients of 2 bytes, weights and two moments of 4
        ("zero2", "bfloat16", 32 * 2 * N + 14 * N),
        ("zero3", "bfloat16", 16 * N),
        ("fsdp2", "bfloat16", 16 * N),
        ("fsdp2", "float32", 16 * N),
    ],
)
def test_memory_follows_the_strategy(strategy: str, dtype: str, memory: int) -> None:
    changes = [f"engine.strategy={strategy}", f"model.dtype={dtype}"]
    recipe = load_recipe(FLAGSHIP, changes).recipe
    assert recipe.engine.processes == 32
    assert stage_memory(recipe, "cold_start", N, N, {}) == Memory(memory)


def test_a_reference_and_a_teacher_come_on_top() -> None:
    recipe = load_recipe(FLAGSHIP, ["stages.reasoning_rl.train.beta=0.01"]).recipe
    assert stage_memory(recipe, "reasoning_rl", N, N, {}) == Memory(16 * N + 2 * N)
    recipe = load_recipe(TINY).recipe
    counts = {"general_rl": 7 * N}
    assert stage_memory(recipe, "student_on_policy", N, N, counts) == Memory(16 * N + 4 * 7 * N)
    recipe = load_recipe(FAMILY).recipe  # its teacher is a hub's model, whose size the recipe does not tell
    assert stage_memory(recipe, "on_policy_4b", N, N, {}).with_teacher


def test_disk_holds_the_model_and_two_checkpoints() -> None:
    assert stage_disk(load_recipe(FLAGSHIP).recipe, "fusion", N, N) == Disk(2 * N, 2 * 14 * N)
    assert stage_disk(load_recipe(TINY).recipe, "fusion", N, N) == Disk(4 * N, 2 * 12 * N)


def test_a_run_holds_all_models_and_one_stage_s_checkpoints() -> None:
    stages = {"first": Disk(10, 60), "second": Disk(10, 60), "student": Disk(5, 30)}
    assert run_disk(stages, {1: 10, 2: 5}) == 10 + 10 + 5 + 10 + 5 + 60


def test_steps_samples_and_tokens_of_a_stage() -> None:
    changes = ["stages.fusion.train.max_steps=-1", "stages.fusion.train.num_train_epochs=2"]
    recipe = load_recipe(TINY, changes).recipe
    plan = stage_plan(recipe, "fusion", dict.fromkeys(recipe.stages, N))
    # 14,000 samples twice, 32 a step, at most 1,024 tokens each (TRL's default)
    assert (plan.steps, plan.samples, plan.tokens) == (875, 28_000, 28_000 * 1024)
    assert (plan.start, plan.model_kind) == ("reasoning_rl", "hybrid")


def test_counts_in_short() -> None:
    assert [short(n) for n in (None, 999, 1200, 32.8e9)] == ["?", "999", "1.2k", "32.8B"]
    assert short(262.1e9, "B") == "262.1 GB"
