"""The order of training samples, drawn anew each epoch from seed and epoch alone, so that a resumed run keeps it.

transformers draws the length-grouped order from the global random state at the start of an epoch. A run resumed within
its second epoch has another state there than the uninterrupted one had, and goes on with other batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """Indices of a data set, shuffled or grouped by length.

    Args:
        lengths: tokens of each sample; batches are then of samples of roughly one length.
        batch_size: samples of an optimizer step, of all processes together.
        epoch: asked at the start of each pass.
    """

    def __init__(self, size: int, lengths: Sequence[int] | None, batch_size: int, seed: int, epoch: Any) -> None:
        self._size, self._lengths, self._batch_size, self._seed, self._epoch = size, lengths, batch_size, seed, epoch

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        from transformers.trainer_pt_utils import get_length_grouped_indices

        generator = torch.Generator().manual_seed(self._seed * 100_003 + self._epoch())
        if self._lengths is None:
            return iter(torch.randperm(self._size, generator=generator).tolist())
        return iter(get_length_grouped_indices(list(self._lengths), self._batch_size, generator=generator))


def with_epoch_sampler(trainer_class: type) -> type:
    """The trainer class, taking its training samples in an order that depends on seed and epoch alone."""

    class WithEpochSampler(trainer_class):  # type: ignore[misc]
        def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
            rows = self.train_dataset if train_dataset is None else train_dataset
            grouped = self.args.train_sampling_strategy == "group_by_length"
            lengths = [len(ids) for ids in rows["input_ids"]] if grouped else None
            accumulated = self.args.gradient_accumulation_steps
            batches = math.ceil(len(rows) / (self.args.train_batch_size * self.args.world_size))
            steps = max(1, math.ceil(batches / accumulated))
            # Of all processes: the order is then the same on one process and on many of smaller batches.
            batch = self.args.train_batch_size * self.args.world_size * accumulated
            return EpochSampler(len(rows), lengths, batch, self.args.seed, lambda: self.state.global_step // steps)

    WithEpochSampler.__name__ = trainer_class.__name__
    WithEpochSampler.__qualname__ = trainer_class.__qualname__
    return WithEpochSampler
