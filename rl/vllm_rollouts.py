"""Rollouts by vLLM: the engine of a stage, and the policy's weights on their way into it.

TRL's own colocated vLLM passes no logits processor and one set of sampling parameters a batch, so modes and budgets of
single samples would be ignored; and on a CPU its weights do not arrive. Here `train.use_vllm` makes an engine of ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from posttrain.recipe.stage import Fault

if TYPE_CHECKING:
    import torch

    from posttrain.model.vllm_generation import VllmEngine
    from posttrain.recipe.schema import EngineSpec
    from posttrain.recipe.stage import StageContext

KNOWN = (
    "vllm_mode",
    "vllm_gpu_memory_utilization",
    "vllm_max_model_length",
    "vllm_importance_sampling_correction",
    "vllm_importance_sampling_mode",
    "vllm_importance_sampling_clip_max",
    "vllm_importance_sampling_clip_min",
)
"""Options of TRL that mean here what they mean there."""


def vllm_faults(train: Mapping[str, Any], engine: EngineSpec) -> Iterator[Fault]:
    """What a recipe asks of vLLM and does not get."""
    asked = [key for key in train if key.startswith("vllm_")]
    if not train.get("use_vllm"):
        for key in asked:
            yield Fault(("train", key), f"{key} without use_vllm", "rollouts come from transformers", "use_vllm: true")
        return
    for key in asked:
        if key not in KNOWN:
            yield Fault(
                ("train", key),
                f"{key} has no effect",
                "the engine is this project's own, so that modes and budgets of single samples are kept",
                f"it knows {', '.join(KNOWN)}",
            )
    if train.get("vllm_mode", "colocate") != "colocate":
        yield Fault(("train", "vllm_mode"), "only colocate is supported", remedy="leave it out")
    if engine.processes > 1:
        yield Fault(
            ("train", "use_vllm"),
            "rollouts by vLLM with several training processes are not supported",
            "sharded weights would have to be gathered for it",
            "engine: {processes: 1}, or rollouts by transformers",
        )


class SyncedEngine:
    """vLLM with the policy's weights as they are at this optimizer step."""

    def __init__(self, engine: VllmEngine) -> None:
        self._engine = engine
        self._step: int | None = None

    def at_step(self, step: int, policy: Any) -> VllmEngine:
        """The engine, the policy's weights loaded if it has those of another step."""
        if step != self._step:
            with policy_weights(policy) as weights:
                self._engine.load(weights)
            self._step = step
        return self._engine


def open_engine(context: StageContext, args: Any) -> SyncedEngine:
    """The engine of a stage, as its `train:` says.

    Raises:
        PosttrainError: vLLM is not installed, or cannot run the model.
    """
    from posttrain.model.trainer_defaults import on_accelerator
    from posttrain.model.vllm_generation import VllmEngine

    given = context.recipe.stages[context.name].train
    memory = args.vllm_gpu_memory_utilization if on_accelerator(context) else None
    engine = VllmEngine(
        context.start,
        dtype=context.recipe.model.dtype,
        max_length=given.get("vllm_max_model_length"),
        as_it_is=args.temperature == 1.0 and args.top_p == 1.0 and not args.top_k,
        memory=memory,
        seed=context.seed,
    )
    return SyncedEngine(engine)


@contextmanager
def policy_weights(policy: Any) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """The weights of a policy under the names of its checkpoint; an adapter merged into them while they are read."""
    if not hasattr(policy, "merge_adapter"):
        yield list(policy.named_parameters())
        return
    policy.merge_adapter()
    try:
        yield list(_merged(policy))
    finally:
        policy.unmerge_adapter()


def _merged(policy: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in policy.named_parameters():
        if policy.prefix in name or "original_module" in name:
            continue
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        yield plain.replace("modules_to_save.default.", ""), parameter
