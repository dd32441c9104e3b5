"""The padding of a vocabulary, left out of a divergence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

FAR_BELOW = -1e9
"""Added to the logits of padding: their probability becomes exactly 0, and 0 times any finite difference is 0."""


@dataclass
class Head:
    """An output head as TRL's divergence reads it: its weight as it is, and a bias that shuts the padding out."""

    weight: torch.Tensor
    bias: torch.Tensor


@contextmanager
def without_padding(model: Any, entries: int) -> Iterator[None]:
    """Within it, `model.get_output_embeddings()` gives a head under which only the first `entries` are probable.

    A bias and not a shorter weight: the weight stays the parameter that DeepSpeed and FSDP know how to gather, and no
    second gradient of its size is made.
    """
    head = model.get_output_embeddings()
    rows = model.config.get_text_config().vocab_size
    if rows <= entries:
        yield
        return
    bias = torch.zeros(rows, device=head.weight.device)
    bias[entries:] = FAR_BELOW
    if getattr(head, "bias", None) is not None:
        bias = bias + head.bias
    elif hasattr(head.weight, "ds_status"):
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        bias.ds_status = ZeroParamStatus.AVAILABLE  # type: ignore[attr-defined]  # whole already: nothing to gather
    model.get_output_embeddings = lambda: Head(head.weight, bias)
    try:
        yield
    finally:
        del model.get_output_embeddings
