"""Reward for what an episode in an environment came to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.rl.rewards import Rollout, Score
from posttrain.rl.rewards.outcome import of_episode


def environment(
    query: Mapping[str, Any], rollout: Rollout, *, slowness: float = 0.0, invalid: float = 0.0
) -> Score | None:
    """The environment's score of the episode; 0 where the player was cut off. None for what was not played.

    Options take a share of the score away: `slowness` for an episode that used every turn it might (in proportion for
    one that used fewer), `invalid` for one in which every move was invalid (in proportion).
    """
    outcome = rollout.outcome
    if outcome is None:
        return None
    whole = of_episode(outcome, rollout.truncated)
    kept = 1.0 - slowness * outcome.turns / outcome.max_turns - invalid * outcome.invalid / max(1, outcome.turns)
    return Score(max(0.0, (whole.value or 0.0) * kept), whole.reason)
