"""Whether what a recipe asks a model to write fits in the positions that the model has."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain.recipe.schema import ModelSpec, Recipe
from posttrain.recipe.stage import Fault
from posttrain.recipe.trainer_options import option_names
from posttrain.recipe.words import Loc

DEFAULT_COMPLETION = 256  # TRL's max_completion_length


def position_faults(recipe: Recipe, models: Mapping[str, ModelSpec]) -> Iterator[Fault]:
    """Answers as long as the positions of the model that writes them: no prompt would fit before them.

    Args:
        models: the model at the root of each stage's chain, by stage.
    """
    seen: set[int] = set()
    for name, spec in models.items():
        room = positions(spec)
        if room is None:
            continue
        stage = recipe.stages[name]
        if "max_completion_length" in option_names(stage.trainer_config):
            length = stage.train.get("max_completion_length", DEFAULT_COMPLETION)
            loc: Loc = ("stages", name, "train", "max_completion_length")
            if isinstance(length, int) and length >= room:
                yield _fault(length, room, loc if "max_completion_length" in stage.train else loc[:2])
        if recipe.evaluation.max_new_tokens >= room and room not in seen:
            seen.add(room)
            yield _fault(recipe.evaluation.max_new_tokens, room, ("evaluation", "max_new_tokens"))


def positions(spec: ModelSpec) -> int | None:
    """The positions of a model, stretched ones included; None where neither the recipe nor a local file tells."""
    shape: Mapping[str, Any] = spec.config
    if spec.path is not None and os.path.isabs(spec.path):
        try:
            shape = json.loads((Path(spec.path) / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(shape, Mapping):
            return None
    room = shape.get("max_position_embeddings")
    stretch = shape.get("rope_parameters") or shape.get("rope_scaling") or {}
    factor = stretch.get("factor", 1.0) if isinstance(stretch, Mapping) else 1.0
    if not isinstance(room, int) or not isinstance(factor, int | float):
        return None
    return int(room * max(1.0, factor))


def _fault(length: int, room: int, loc: Loc) -> Fault:
    return Fault(
        loc,
        f"{length} new tokens leave no room for a prompt: the model has {room} positions (max_position_embeddings)",
        "past its positions a model was never trained",
        f"ask for fewer than {room}, prompt included, or give the model more",
    )
