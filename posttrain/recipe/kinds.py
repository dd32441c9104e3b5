"""The one registry of stage kinds. A further kind is one file with one class, and one line here."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Annotated, Any, Union

from pydantic import Field, Tag, create_model
from pydantic.types import Discriminator

from posttrain.recipe.schema import Recipe
from posttrain.recipe.stage import Stage

STAGE_KINDS = {
    "sft": "posttrain.sft.stage:SftStage",
    "grpo": "posttrain.rl.grpo:GrpoStage",
    "dpo": "posttrain.rl.dpo:DpoStage",
    "reward_model": "posttrain.rl.reward_model:RewardModelStage",
    "off_policy_distillation": "posttrain.distill.off_policy:OffPolicyDistillationStage",
    "on_policy_distillation": "posttrain.distill.on_policy:OnPolicyDistillationStage",
    "gold_distillation": "posttrain.distill.gold:GoldDistillationStage",
}


def stage_class(kind: str) -> type[Stage]:
    """The class of a registered kind."""
    module, _, name = STAGE_KINDS[kind].partition(":")
    cls: type[Stage] = getattr(import_module(module), name)
    return cls


def recipe_model() -> type[Recipe]:
    """The schema of a recipe with the stages of every registered kind, chosen by their `kind`."""
    return _model_of(tuple(STAGE_KINDS.items()))


@cache
def _model_of(kinds: tuple[tuple[str, str], ...]) -> type[Recipe]:
    tagged = tuple(Annotated[stage_class(kind), Tag(kind)] for kind, _ in kinds)
    union: Any = Annotated[Union[tagged], Discriminator(_kind_of)]  # noqa: UP007  built from the registry
    return create_model("Recipe", __base__=Recipe, stages=(dict[str, union], Field(min_length=1)))


def _kind_of(stage: Any) -> str | None:
    kind = stage.get("kind") if isinstance(stage, dict) else getattr(stage, "kind", None)
    return kind if isinstance(kind, str) else None
