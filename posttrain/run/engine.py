"""A stage's training in this process, or under `accelerate launch` on the processes and machines of the recipe."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from posttrain.recipe.schema import ModelSpec
    from posttrain.recipe.stage import StageContext


def train(context: StageContext, spec: ModelSpec) -> None:
    """Train a stage with the recipe's engine.

    Raises:
        PosttrainError: the launched processes failed, or fewer came up than the recipe asks for.
    """
    _let_go()
    if context.recipe.engine.launcher == "accelerate":
        from posttrain.run.launch import launch

        launch(context)
        return
    from posttrain.run.train import train_stage

    train_stage(context, spec)
    _let_go()


def _let_go() -> None:
    """Give back an accelerator's memory that models no longer in use held here: launched processes need it, too."""
    import torch

    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
