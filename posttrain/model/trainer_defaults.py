"""The arguments of every trainer: the recipe's `train:` over defaults that fit the machine, and what the run owns.

TRL's own defaults suit one kind of GPU (bf16 and gradient checkpointing on, both slow on a CPU) and start their files
in the working directory. A key under `train:` beats every default here; output directory and preparation of the data
are the run's, and beat `train:`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from posttrain.errors import PosttrainError, Problem

if TYPE_CHECKING:
    from posttrain.recipe.stage import Optimizer, Stage, StageContext

SAVE_EVERY = 0.2  # of the steps: five checkpoints a stage, of which the last two are kept


def on_accelerator(context: StageContext) -> bool:
    """Whether training runs on an accelerator: there is one, and the recipe does not say `engine: {cpu: true}`."""
    import torch

    return bool(torch.accelerator.is_available()) and not context.recipe.engine.cpu


def machine_defaults(context: StageContext) -> dict[str, Any]:
    """Defaults that depend on the machine: a CPU trains in full precision, without recomputation, unpinned."""
    import torch

    if not on_accelerator(context):
        return {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False}
    bf16 = not torch.cuda.is_available() or torch.cuda.is_bf16_supported()
    return {"bf16": bf16}


def run_defaults(context: StageContext) -> dict[str, Any]:
    """Defaults that every trainer shares: seeds from the recipe, figures to TensorBoard, checkpoints along the way."""
    return {
        "seed": context.seed,
        "data_seed": context.seed,
        "logging_first_step": True,
        "disable_tqdm": True,
        "report_to": ["tensorboard"],
        "save_strategy": "steps",
        "save_steps": SAVE_EVERY,
        "save_total_limit": 2,
    }


def trainer_arguments(
    config_class: type, context: StageContext, stage: Stage, *, defaults: Mapping[str, Any] | None = None, **owned: Any
) -> Any:
    """The config of a trainer.

    Args:
        config_class: a dataclass below `transformers.TrainingArguments`.
        defaults: the stage kind's own; they beat those above and are beaten by `train:`.
        owned: what `train:` cannot change.

    Raises:
        PosttrainError: the config class refuses the values.
    """
    known = {field.name for field in dataclasses.fields(config_class)}
    chosen = {**machine_defaults(context), **run_defaults(context), **(defaults or {})}
    chosen = {name: value for name, value in chosen.items() if name in known}
    chosen |= stage.train
    if "fp16" in stage.train and "bf16" not in stage.train:
        chosen.pop("bf16", None)
    chosen |= {"output_dir": str(context.dir.checkpoints), **owned}
    # The callback takes its folder from the environment alone (transformers 5): one for the stage, kept on resume.
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(context.dir.path / "tensorboard")
    for left in ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DYNAMO_MODE"):  # by an earlier stage's `torch_compile`
        os.environ.pop(left, None)
    try:
        arguments = config_class(**chosen)
        shard_on_cpu()
        return arguments
    except (TypeError, ValueError) as error:
        raise PosttrainError(
            Problem(
                f"{config_class.__name__} refuses the options: {error}",
                where=f"stages.{context.name}.train",
                remedy="change the option it names",
            )
        ) from error


def shard_on_cpu() -> None:
    """Let processes on CPUs shard as asked. Called once the trainer's arguments have set up the processes.

    accelerate 1.15 takes FSDP for accelerators alone and, on CPUs, trains unsharded without a word; torch shards there
    as anywhere. So accelerate is told of accelerators; device and backend stay the CPU's. And it leaves it to DeepSpeed
    to find the processes, which must know their number before a reference or teacher is loaded (`zero.Init`).
    """
    from accelerate.state import DistributedType, PartialState

    state = PartialState._shared_state
    if state["distributed_type"] != DistributedType.MULTI_CPU:
        return
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        state["distributed_type"] = DistributedType.MULTI_GPU
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        import deepspeed

        deepspeed.init_distributed(dist_backend=state["backend"], auto_mpi_discovery=False, verbose=False)


def with_optimizer(trainer_class: type, spec: Optimizer | None) -> type:
    """The trainer class, making the recipe's `optimizer:` in place of its own.

    `create_optimizer` is overridden, not the optimizer handed in: it must be made after adapters are put on the model,
    and after FSDP has sharded it.
    """
    if spec is None:
        return trainer_class
    settings = spec

    class WithOptimizer(trainer_class):  # type: ignore[misc]
        optimizer: Any

        def create_optimizer(self, model: Any = None) -> Any:
            from posttrain.model.optimizer import muon_adamw

            if self.optimizer is None:
                self.optimizer = muon_adamw(self.model if model is None else model, self.args, settings)
            return self.optimizer

    WithOptimizer.__name__ = trainer_class.__name__
    WithOptimizer.__qualname__ = trainer_class.__qualname__
    return WithOptimizer
