"""What a stage's training holds in memory and leaves on disk, estimated from the recipe alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from posttrain.recipe.schema import EngineSpec, ModelSpec, Recipe
from posttrain.recipe.teacher import each_teacher
from posttrain.run.context import root_spec

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Memory:
    """Bytes over all processes: weights, gradients, optimizer state, teachers and reference, no activations.

    Attributes:
        with_teacher: whether a teacher comes on top, of a size that the recipe does not tell.
    """

    bytes: int
    with_teacher: bool = False


def trained_parameters(spec: ModelSpec, parameters: int) -> int:
    """Trained parameters: all, or an adapter's, estimated at its rank over the square root of the size."""
    if spec.adapter is None:
        return parameters
    rank = int(spec.adapter.lora.get("r", 8))
    # A block of hidden size h holds about 12 h^2 weights; rank r on all its matrices adds about 18 r h.
    hidden = spec.config.get("hidden_size") or max(256, int((parameters / 12 / 24) ** 0.5))
    return min(parameters, int(parameters * 1.5 * rank / hidden))


def _optimizer_bytes(engine: EngineSpec, width: int) -> int:
    """Bytes a trained parameter that the optimizer holds: AdamW's two moments, in the weights' type.

    DeepSpeed and FSDP2 train weights of half precision in full: moments and a copy of the weights take 4 bytes each.
    """
    in_full = engine.strategy != "ddp" and not engine.cpu and width < 4
    return 12 if in_full else 2 * width


def stage_memory(recipe: Recipe, name: str, parameters: int, trained: int, counts: Mapping[str, int | None]) -> Memory:
    """What the training of a stage holds.

    `ddp` has everything in each process, `zero2` the weights alone, `zero3` and `fsdp2` hold everything once.

    Args:
        counts: parameters of the models that stages leave, by stage name.
    """
    spec, engine, stage = root_spec(recipe, name), recipe.engine, recipe.stages[name]
    width = BYTES[spec.dtype]
    copies = engine.processes if engine.strategy in ("ddp", "zero2") else 1  # of weights that are not trained
    states = engine.processes if engine.strategy == "ddp" else 1
    total = parameters * width * copies + trained * (width + _optimizer_bytes(engine, width)) * states
    local = {one for _, one in each_teacher(stage.teacher) if isinstance(one, str)}
    total += sum(counts.get(one) or 0 for one in local) * width * copies
    referred = stage.kind == "dpo" or (stage.kind == "grpo" and float(stage.train.get("beta", 0.0)) > 0)
    if referred and spec.adapter is None:  # an adapter's reference is the model without it
        total += parameters * width * copies
    return Memory(total, any(counts.get(one) is None for one in local))


@dataclass(frozen=True)
class Disk:
    """Bytes of the model that a stage leaves, and of its two checkpoints, which go when it is finished."""

    model: int
    checkpoints: int

    @property
    def parts(self) -> tuple[int, int]:
        return self.model, self.checkpoints


def stage_disk(recipe: Recipe, name: str, parameters: int, trained: int) -> Disk:
    """What a stage has on disk while it trains."""
    width = BYTES[root_spec(recipe, name).dtype]
    return Disk(parameters * width, 2 * trained * (width + _optimizer_bytes(recipe.engine, width)))


def run_disk(stages: Mapping[str, Disk], starts: Mapping[int, int]) -> int:
    """The most that a run has on disk: the models it starts from and leaves, and one stage's checkpoints.

    Args:
        starts: bytes of each model that stages start from and that none of them leaves.
    """
    models = sum(disk.model for disk in stages.values()) + sum(starts.values())
    return models + max((disk.checkpoints for disk in stages.values()), default=0)
