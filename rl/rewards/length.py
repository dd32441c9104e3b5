"""Rewards for length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.rl.rewards import Rollout, Score
from posttrain.rl.rewards.outcome import no_answer
from posttrain.tasks.constraints import LENGTHS, length_error
from posttrain.tasks.procedural import entry_of


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


def length_control(query: Mapping[str, Any], rollout: Rollout) -> Score | None:
    """How near the answer's length is to the row's target: 1 - |length - target| / target, not below 0.

    The row's entry has `length: {unit: words, target: 50}`, in words, sentences, characters or lines (LengthCtrl, Qwen3
    report, Table 22), or a constraint of such a kind. None where it has neither.
    """
    entry = entry_of(query)
    spec = entry.get("length")
    if spec is None:
        given = [c for c in entry.get("constraints", []) if c.get("kind") in LENGTHS and "target" in c]
        spec = {"unit": given[0]["kind"], "target": given[0]["target"]} if given else None
    if spec is None:
        return None
    if (unanswered := no_answer(rollout)) is not None:
        return unanswered
    unit, target = str(spec["unit"]), int(spec["target"])
    error = length_error(rollout.message.content, unit, target)
    return Score(max(0.0, 1.0 - error / max(1, target)), f"{error} {unit} off {target}")
