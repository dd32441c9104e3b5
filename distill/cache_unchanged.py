"""Whether a teacher that is known by name alone still says what stands in a cache of its log-probabilities.

A server may have come back with other weights under the same name, a hub id with another revision: before a cache is
continued, one row that stands there is asked about again.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.distill.cache import ShardFile
from posttrain.distill.cache_shards import plan_shards
from posttrain.distill.cache_write import TeacherLogprobs, batches_of
from posttrain.errors import PosttrainError, Problem

if TYPE_CHECKING:
    from datasets import Dataset

MOST = 0.25
"""Nats a token between what stands and what is told, at the most probable entries: half precision comes to a tenth."""


def check_unchanged(directory: Path, dataset: Dataset, teacher: TeacherLogprobs, k: int) -> None:
    """Ask a teacher about a row of a shard that stands whole, if there is one.

    Args:
        k: entries that are kept a position.

    Raises:
        PosttrainError: it says something else.
    """
    import torch

    standing = next((shard for shard in plan_shards(dataset) if shard.tokens and shard.is_whole(directory)), None)
    if standing is None:
        return
    stored = ShardFile(directory / standing.file, standing.first, k)
    places = range(standing.first, standing.first + standing.rows)
    row, before = next((row, found) for row in places if len((found := stored.read(row))[2]))
    ((sequences, spans, _),) = batches_of(dataset, dataclasses.replace(standing, first=row, rows=1))
    told = teacher(sequences, spans)
    ids_N_K, logs_N_K = told.ids.cpu(), told.log_probs.float().cpu()
    # What was the most probable entry, as it is told now; if it is not, it is no more probable than the last that is.
    here_N_K = ids_N_K == torch.from_numpy(before[0][:, :1])
    now_N = torch.where(here_N_K.any(1), (logs_N_K * here_N_K).sum(1), logs_N_K.amin(1))
    apart = float((now_N - torch.from_numpy(before[1][:, 0])).abs().mean())
    if not apart <= MOST:
        raise PosttrainError(
            Problem(
                f"the teacher is not the one whose log-probabilities stand in {directory}",
                why=f"asked about row {row} again, it is {apart:.2g} nats a token from what stands there",
                remedy="serve the model that began, or name another place under `logits.cache`",
            )
        )
