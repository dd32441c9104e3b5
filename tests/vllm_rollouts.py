"""Program of test_rl_vllm: a stage of RL whose rollouts come from a real vLLM; prints one line of figures.

python tests/vllm_rollouts.py ROOT
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FAMILY = "qwen3_thinking_2507"  # its prompts end inside an open block, so that budgets strike in an untrained model


def shouting(query: Mapping[str, Any], rollout: Any) -> float:
    """A reward that differs between rollouts of an untrained model."""
    return sum(map(ord, rollout.text)) % 7 / 6


def context_of(root: Path) -> Any:
    from datasets import Dataset

    from posttrain.model.artifacts import RunDir
    from posttrain.recipe.kinds import stage_class
    from posttrain.recipe.schema import DataSpec, EngineSpec, EvaluationSpec, ModelSpec, Recipe
    from posttrain.recipe.stage import Stage, StageContext
    from posttrain.tasks.arithmetic import Arithmetic
    from posttrain.templates.families import get_family
    from tests.vllm_model import write_tiny_model

    Stage.model_rebuild(_types_namespace={"ModelSpec": ModelSpec})
    Recipe.model_rebuild()
    run = RunDir(root)
    write_tiny_model(run.base, family=FAMILY, spread=0.3)
    Dataset.from_list(list(Arithmetic().queries(12, 0))).save_to_disk(str(run.data("sums")))
    stage = stage_class("grpo").model_validate(
        {
            "queries": {"from": "sums"},
            "thinking_budgets": {"share": 0.7, "choices": [0, 3, 6]},
            "rewards": {"tests.vllm_rollouts:shouting": 1.0},
            "train": {
                "use_vllm": True,
                "vllm_max_model_length": 256,
                "max_steps": 3,
                "save_strategy": "no",
                "logging_steps": 1,
                "learning_rate": 1e-2,
                "lr_scheduler_type": "constant",
                "max_completion_length": 16,
                "per_device_train_batch_size": 16,
                "num_generations": 4,
                "report_to": "none",
            },
        }
    )
    recipe = Recipe(
        name="test",
        model=ModelSpec(path=str(run.base)),
        data={"sums": DataSpec(task="arithmetic", size=12)},
        evaluation=EvaluationSpec(data=["sums"]),
        engine=EngineSpec(cpu=True),
        stages={"rl": stage},
    )
    context = StageContext(
        recipe=recipe, name="rl", run=run, dir=run.stage("rl"), start=run.base, teacher=None,
        family=get_family(FAMILY), kind="thinking", quiet=True,
    )  # fmt: skip
    context.dir.data.mkdir(parents=True)
    stage.build_data(context)
    return context


def main(root: Path) -> dict[str, Any]:
    from posttrain.errors import PosttrainError
    from posttrain.model.generation import Generator, Prompt
    from posttrain.model.policy import load_model, load_tokenizer
    from posttrain.model.vllm_generation import VllmGenerator
    from posttrain.sft.sampler import open_sampler
    from posttrain.templates.families import Sampling

    context = context_of(root)
    tokenizer = load_tokenizer(context.start)
    trainer = context.recipe.stages["rl"].make_trainer(context, load_model(context.start), tokenizer, None)
    seen: list[Any] = []
    log = trainer._log_rollouts

    def kept() -> None:
        seen.extend(trainer._completions)
        log()

    trainer._log_rollouts = kept
    trainer.train()
    rollouts = [
        {
            "budget": done.thinking_budget,
            "thinking": done.thinking_tokens,
            "closed_by": done.closed_by,
            "forced": tokenizer.decode([i for i, put in zip(done.completion_ids, done.forced, strict=True) if put]),
            "own": len(done.forced) - sum(done.forced),
            "scored": len(done.log_probs or []) == len(done.completion_ids),
        }
        for done in seen
    ]
    # The trained weights, greedily, by either engine.
    settings: dict[str, Any] = {"max_new_tokens": 12, "sampling": {"thinking": Sampling(temperature=0.0)}}
    asked = [Prompt([{"role": "user", "content": f"{n} a+5 =?"}], thinking_budget=b) for n in range(3) for b in (-1, 4)]
    engine = trainer._engine.at_step(3, trainer.model)
    by_vllm = VllmGenerator(engine, tokenizer, context.family, **settings)(asked, seed=1)
    by_us = Generator(trainer.model, tokenizer, context.family, **settings)(asked, seed=1)
    # The fault: weights that do not arrive.
    engine.load = lambda weights: None
    try:
        trainer.state.global_step = 4
        with_noise(trainer.model)
        trainer.model.train()
        trainer._generate_and_score_completions(list(trainer.train_dataset)[:4] * 4)
        refused = ""
    except PosttrainError as error:
        refused = str(error)
    engine.close()
    # Whatever else samples, by one line of the recipe.
    answers = []
    for sampler in ("vllm", "transformers"):
        of_recipe = context.recipe.engine.model_copy(update={"sampler": sampler})
        where = dataclasses.replace(context, recipe=context.recipe.model_copy(update={"engine": of_recipe}))
        answers.append(open_sampler(where, "start", batch_size=8, **settings)(asked, seed=1))
    lines = [line for line in trainer.state.log_history if "probe/difference" in line]
    return {
        "rollouts": rollouts,
        "differences": [line["probe/difference"] for line in lines],
        "ratios": [line["probe/ratio"] for line in lines],
        "corrections": [line["sampling/importance_sampling_ratio/mean"] for line in lines],
        "greedy": [[done.completion_ids for done in answers] for answers in (by_vllm, by_us)],
        "sampled": [[done.completion_ids for done in some] for some in answers],
        "moved": float((trainer.model.lm_head.weight - load_model(context.start).lm_head.weight).abs().max()),
        "stop_text": context.family.stop_thinking,
        "refused": refused,
    }


def with_noise(model: Any) -> None:
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


if __name__ == "__main__":
    print("RESULT" + json.dumps(main(Path(sys.argv[1]))))
