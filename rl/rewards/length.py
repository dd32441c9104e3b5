"""Rewards for length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain.rl.rewards import Rollout


def soft_overlong(query: Mapping[str, Any], rollout: Rollout, *, buffer: float = 0.2) -> float | None:
    """Soft overlong punishment (DAPO, arXiv 2503.14476, equation 13), moved from [-1, 0] to [0, 1].

    1 up to (1 - buffer) of the token limit, then falling in a straight line to 0 at the limit. DAPO's buffer is 4,096
    of 20,480 tokens. None where the limit is unknown.
    """
    if rollout.max_tokens <= 0:
        return None
    if not 0.0 < buffer <= 1.0:
        raise ValueError(f"buffer must lie in (0, 1], not {buffer}")
    left = (rollout.max_tokens - rollout.tokens) / (buffer * rollout.max_tokens)
    return min(1.0, max(0.0, left))
