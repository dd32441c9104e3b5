"""Useful samples a second: a stage of RL here against stock TRL's GRPO, on the same work, in one run.

    python benchmarks/rollouts.py [--steps 30] [--output build/rollouts] [--results docs/results/rollouts.json]

Both start from the cold start of recipes/tiny_cpu.yaml (trained first, and kept under --output), with the same queries,
reward, group and batch size, loss and optimizer. A sample is useful when its advantage is not 0: any other has no
gradient. The two take turns step by step, so that a noisy machine is noisy for both; the unit is CPU seconds of one
thread. Stock generates with transformers, as TRL does by default; ours is `kind: grpo` with `dynamic_sampling`.

The last line is JSON: `ours` and `theirs` are useful samples a second over all steps, `ratio` their quotient, and
`ratio_last_third` the same over the last third of the steps, where stock's groups are mostly all right. Exit code 1
below 1.5.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent
TARGET = 1.5
ZERO = 1e-3  # stock's advantage of equal rewards is the rounding of their mean over 1e-4
TRAIN: dict[str, Any] = {
    "per_device_train_batch_size": 128,
    "num_generations": 8,
    "max_completion_length": 64,
    "learning_rate": 5e-4,
    "warmup_steps": 5,
    "adam_beta2": 0.98,
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


@dataclass
class Turns:
    """One step of the one, one step of the other."""

    names: Sequence[str]
    condition: threading.Condition = field(default_factory=threading.Condition)
    done: set[str] = field(default_factory=set)
    at: int = 0

    def wait(self, name: str) -> None:
        with self.condition:
            self.condition.wait_for(lambda: self.names[self.at] == name)

    def give(self, name: str, *, last: bool = False) -> None:
        with self.condition:
            if last:
                self.done.add(name)
            other = (self.at + 1) % len(self.names)
            if self.names[other] not in self.done:
                self.at = other
            self.condition.notify_all()


@dataclass
class Step:
    """What one optimizer step cost and brought."""

    seconds: float = 0.0
    rollouts: int = 0
    useful: int = 0
    reward: float = 0.0


def cold_start(output: Path) -> Any:
    """The context of a stage of RL behind the recipe's cold start."""
    from posttrain.model.artifacts import RunDir
    from posttrain.recipe.kinds import stage_class
    from posttrain.recipe.load import load_recipe
    from posttrain.recipe.stage import StageContext
    from posttrain.run.pipeline import run_recipe
    from posttrain.templates.families import get_family

    output.mkdir(parents=True, exist_ok=True)
    recipe, _, _ = (ROOT / "recipes" / "tiny_cpu.yaml").read_text(encoding="utf-8").partition("\n  reasoning_rl:")
    path = output / "cold_start.yaml"
    path.write_text(recipe + "\n", encoding="utf-8")
    overrides = ["evaluation.samples=1", "evaluation.budgets=[]", "evaluation.think_follow.dialogues=1"]
    loaded = load_recipe(path, overrides)
    run_recipe(loaded, output / "run", quiet=True)
    run = RunDir(output / "run")
    stage = stage_class("grpo").model_validate(
        {
            "queries": {"from": "problems", "exclude_queries_of": ["cold_start"], "limit": 2000},
            "rewards": {"accuracy": 1.0},
            "dynamic_sampling": {},
            "train": TRAIN,
        }
    )
    context = StageContext(
        recipe=loaded.recipe.model_copy(update={"stages": {**loaded.recipe.stages, "rl": stage}}),
        name="rl",
        run=run,
        dir=run.stage("rl"),
        start=run.stage("cold_start").model,
        teacher=None,
        family=get_family("qwen3"),
        kind="hybrid",
        quiet=True,
    )
    if not context.dir.data.exists():
        context.dir.data.mkdir(parents=True)
        stage.build_data(context)
    return context


def our_trainer(context: Any, steps: int) -> Any:
    """The trainer of the stage as a recipe makes it."""
    from posttrain.model.policy import load_model, load_tokenizer

    stage = context.recipe.stages["rl"]
    stage = stage.model_copy(update={"train": {**TRAIN, "max_steps": steps}})
    return stage.make_trainer(context, load_model(context.start), load_tokenizer(context.start), None)


def stock_trainer(context: Any, steps: int) -> Any:
    """TRL's own, on the same rows, with the same reward."""
    from datasets import load_from_disk
    from trl import GRPOConfig, GRPOTrainer

    from posttrain.model.policy import load_model, load_tokenizer
    from posttrain.tasks.registry import get_task
    from posttrain.templates.parse import parse

    tokenizer = load_tokenizer(context.start)
    task, end = get_task("arithmetic"), context.family.message_end.strip()

    def accuracy(completion_ids: list[list[int]], answer: list[str], entry: list[str], **_: Any) -> list[float]:
        scores = []
        for text, *given in zip(tokenizer.batch_decode(completion_ids), answer, entry, strict=True):
            row = dict(zip(("answer", "entry"), given, strict=True))
            content = parse(text.removesuffix(end), context.family).content
            scores.append(task.score(content, row) if text.endswith(end) else 0.0)
        return scores

    options = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False}
    return GRPOTrainer(
        model=load_model(context.start),
        reward_funcs=accuracy,
        args=GRPOConfig(
            output_dir=str(context.dir.path / "stock"),
            seed=context.seed,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            max_steps=steps,
            **{**TRAIN, **options},
        ),
        train_dataset=load_from_disk(str(context.dir.data / "train")).select_columns(["prompt", "answer", "entry"]),
        processing_class=tokenizer,
    )


def measured(name: str, trainer: Any, turns: Turns) -> list[Step]:
    """The steps of a trainer, filled while it trains in turns with the other."""
    from transformers import TrainerCallback

    steps: list[Step] = []
    generate = trainer._generate_and_score_completions
    groups = 0

    def counted(inputs: Any) -> Any:
        nonlocal groups
        output = generate(inputs)
        steps[-1].useful += int((output["advantages"].abs() > ZERO).sum())
        drawn = getattr(trainer, "counters", {}).get("groups")
        steps[-1].rollouts += len(inputs) if drawn is None else (drawn - groups) * TRAIN["num_generations"]
        groups = drawn or 0
        figures = trainer._metrics["train"]
        steps[-1].reward = figures.get("dynamic_sampling/reward", figures["reward"])[-1]
        return output

    trainer._generate_and_score_completions = counted

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turns.wait(name)
            steps.append(Step(seconds=-time.process_time()))

        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps[-1].seconds += time.process_time()
            turns.give(name)

    trainer.add_callback(Clock())
    return steps


def side_by_side(trainers: Mapping[str, Any]) -> dict[str, list[Step]]:
    """Train them all, a step each in turns."""
    turns = Turns(list(trainers))
    steps = {name: measured(name, trainer, turns) for name, trainer in trainers.items()}
    failed: list[BaseException] = []

    def train(name: str) -> None:
        try:
            trainers[name].train()
        except BaseException as error:
            failed.append(error)
        finally:
            turns.give(name, last=True)

    threads = [threading.Thread(target=train, args=(name,)) for name in trainers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return steps


def figures(steps: Sequence[Step]) -> dict[str, float]:
    """Rates over some steps."""
    seconds = sum(step.seconds for step in steps)
    rollouts, useful = sum(step.rollouts for step in steps), sum(step.useful for step in steps)
    return {
        "seconds": round(seconds, 2),
        "rollouts_a_second": round(rollouts / seconds, 1),
        "useful_a_second": round(useful / seconds, 1),
        "useful_share_of_rollouts": round(useful / rollouts, 3),
    }


def accuracy(context: Any, trainer: Any) -> float:
    """Greedy accuracy on the reserved problems, thinking."""
    from datasets import Dataset

    from posttrain.evaluation.evaluate import score_completion
    from posttrain.model.generation import Generator, Prompt
    from posttrain.templates.families import Sampling

    rows = list(Dataset.from_parquet(str(context.run.reserved("problems"))))
    greedy = dict.fromkeys(context.family.modes, Sampling(temperature=0.0))
    generate = Generator(
        trainer.model, trainer.processing_class, context.family, max_new_tokens=80, batch_size=512, sampling=greedy
    )
    answers = generate([Prompt(row["prompt"], mode="thinking") for row in rows], seed=1)
    return sum(score_completion(row, answer) >= 1.0 for row, answer in zip(rows, answers, strict=True)) / len(rows)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", type=int, default=30)
    arguments.add_argument("--output", type=Path, default=ROOT / "build" / "rollouts")
    arguments.add_argument("--results", type=Path, default=None, help="where the result is written")
    chosen = arguments.parse_args()
    import torch

    torch.set_num_threads(1)
    context = cold_start(chosen.output)
    trainers = {"stock": stock_trainer(context, chosen.steps), "ours": our_trainer(context, chosen.steps)}
    steps = side_by_side(trainers)
    last = -(-chosen.steps // 3)
    result: dict[str, Any] = {"command": "python benchmarks/rollouts.py", "steps": chosen.steps}
    for name, own in steps.items():
        result[name] = {"all": figures(own), "last_third": figures(own[-last:])}
        result[name]["accuracy_after"] = round(accuracy(context, trainers[name]), 3)
        result[name]["rewards"] = [round(step.reward, 3) for step in own]
    ours, theirs = (result[name]["all"]["useful_a_second"] for name in ("ours", "stock"))
    late = [result[name]["last_third"]["useful_a_second"] for name in ("ours", "stock")]
    result |= {"ratio": round(ours / theirs, 2), "ratio_last_third": round(late[0] / late[1], 2), "target": TARGET}
    if chosen.results:
        chosen.results.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    line = {"name": "rollouts", "ours": ours, "theirs": theirs, "unit": "useful samples a CPU-second"}
    line |= {key: result[key] for key in ("ratio", "ratio_last_third", "target")}
    print(json.dumps({**line, "met": result["ratio"] >= TARGET}))
    return int(result["ratio"] < TARGET)


if __name__ == "__main__":
    sys.exit(main())
