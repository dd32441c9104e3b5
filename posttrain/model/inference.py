"""What decoding needs of a transformers model: evaluation mode, attention fit for a CPU, and a cache to append to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

GROUPED = "posttrain_grouped_sdpa"


class _GrowingLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed
    """Keys and values with room to append, where `DynamicLayer` copies all of them at every step."""

    def __init__(self) -> None:
        super().__init__()
        self._length = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (B, heads, new, head_dim); what is returned is all of it."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            self._length = key_states.shape[-2]
            return key_states, value_states
        end = self._length + key_states.shape[-2]
        if end > self.keys.shape[-2]:
            self.keys, self.values = self._grown(self.keys, end), self._grown(self.values, end)
        self.keys[:, :, self._length : end] = key_states
        self.values[:, :, self._length : end] = value_states
        self._length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _grown(self, states: torch.Tensor, needed: int) -> torch.Tensor:
        rows, heads, _, size = states.shape
        grown = states.new_empty(rows, heads, needed + max(64, needed // 2), size)
        grown[:, :, : self._length] = states[:, :, : self._length]
        return grown

    def get_seq_length(self) -> int:
        return self._length

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, in this order. Where rows only leave, those that keep their place are not copied."""
        indices = indices.to(self.keys.device)  # layers may lie on several devices
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero()[:, 0]
        sources = indices[moved]
        if len(indices) > len(self.keys) or (sources < len(indices)).any():  # a row is wanted at a second place
            self.keys, self.values = self.keys[indices], self.values[indices]
            return
        for states in (self.keys, self.values):
            states[moved, :, : self._length] = states[sources, :, : self._length]
        self.keys, self.values = self.keys[: len(indices)], self.values[: len(indices)]


def growing_cache(config: Any) -> DynamicCache:
    """An empty cache for a model of this configuration; its layers of full attention append in place."""
    cache = DynamicCache(config=config)
    cache.layers = [_GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _grouped_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Torch's attention as it is: with a mask, too, its CPU kernel takes fewer key heads than query heads."""
    attended = torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        is_causal=attention_mask is None and query.shape[2] > 1,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended.transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED, _grouped_sdpa)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


@contextmanager
def decoding_mode(model: Any) -> Iterator[None]:
    """Evaluation mode, and on a CPU attention that does not copy grouped heads; all as before afterwards."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    training = [module for module in model.modules() if module.training]
    attention = base.config._attn_implementation
    grouped = attention == "sdpa" and next(model.parameters()).device.type == "cpu"
    model.eval()
    if grouped:
        base.set_attn_implementation(GROUPED)
    try:
        yield
    finally:
        if grouped:
            base.set_attn_implementation(attention)
        for module in training:
            module.training = True


@contextmanager
def lockstep(model: Any) -> Iterator[None]:
    """Every process calls the model's forward equally often: those that are done early go along until all are.

    Needed while the parameters are sharded (ZeRO-3, FSDP), because each forward gathers them from all processes. All
    processes have to enter.
    """
    device = next(model.parameters()).device

    def anyone_works(mine: bool) -> bool:
        flag = torch.tensor(int(mine), device=device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag)

    def announce(*_: Any) -> None:
        anyone_works(True)

    hook = model.register_forward_pre_hook(announce, prepend=True)  # before the gathering, as on those who go along
    try:
        yield
    finally:
        hook.remove()
    with torch.no_grad():
        while anyone_works(False):
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
