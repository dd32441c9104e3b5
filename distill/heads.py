"""A model's output layer as a divergence needs it: whole, with the factor that its architecture puts on logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from trl.trainer.utils import maybe_gather_lm_head_ctx

from posttrain.distill.tiles import Head
from posttrain.errors import PosttrainError, Problem


@contextmanager
def whole_head(model: Any, dtype: torch.dtype) -> Iterator[Head]:
    """The output layer, gathered where ZeRO-3 or FSDP2 shard it. To be entered by every process.

    Args:
        dtype: of the hidden states: a gathered copy is made in it.

    Raises:
        PosttrainError: the architecture bends its logits, and a divergence would be of others.
    """
    config = model.config.get_text_config()
    if getattr(config, "final_logit_softcapping", None) is not None:
        raise PosttrainError(
            Problem(
                f"{config.model_type} caps its logits (final_logit_softcapping)",
                why="the divergence is made from hidden states and output weights, and knows no cap",
                remedy="distil between models without one",
            )
        )
    layer = model.get_output_embeddings()
    weight, bias = layer.weight, getattr(layer, "bias", None)
    with maybe_gather_lm_head_ctx(weight, bias):
        if isinstance(weight, torch.distributed.tensor.DTensor):
            weight = weight.full_tensor().to(dtype)
            bias = None if bias is None else bias.full_tensor().to(dtype)
        yield Head(weight, bias, _factor(config))


def _factor(config: Any) -> float:
    """What an architecture multiplies its logits by, under the names that transformers has for it."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    divisor = getattr(config, "logits_scaling", None)
    if divisor is None:
        return 1.0
    return float(divisor) if config.model_type == "hyperclovax" else 1.0 / float(divisor)
