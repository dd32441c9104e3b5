"""Rewards for the modes: whether the mode asked for was obeyed, and whether the think block is in order.

Both know what the generation prompt had written already: a block that was prefilled is not the policy's doing, and its
absence from the completion is no fault (a format reward that looks for "<think>" in the completion sticks at 0 there).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain.rl.rewards import Rollout


HIDDEN_THINKING = frozenset({"missing_open", "nested_think", "repeated_think", "stray_close", "text_before_think"})
"""Problems of a parsed message behind which thinking may hide that the parser counts to the content."""


def mode_following(query: Mapping[str, Any], rollout: Rollout) -> float | None:
    """1 if the completion is in the mode asked for, else 0.

    Thinking must be there, not only its markers. A non-thinking answer must not think, nor behind a prefilled empty
    block ("thoughts </think> answer"); whether it repeats the empty block is a matter of format. None where no mode was
    asked, and where a budget left no room to think.
    """
    if rollout.mode is None:
        return None
    if rollout.mode == "thinking":
        if rollout.message.mode == "thinking":
            return 1.0
        return None if _budget_left_no_room(rollout) else 0.0
    return float(rollout.message.mode == "non_thinking" and not HIDDEN_THINKING & set(rollout.message.problems))


def think_format(query: Mapping[str, Any], rollout: Rollout) -> float | None:
    """1 for a closed, well-formed think block, an answer after it, and an end of sequence; else 0.

    An empty block where thinking was asked for is not well-formed; nor is thinking where none was asked for. A close
    that a budget forced is not held against the policy.
    """
    message = rollout.message
    if rollout.truncated or not message.well_formed or not message.closed:
        return 0.0
    if not message.content.strip() and not message.tool_calls:
        return 0.0
    if rollout.mode == "thinking":
        return float(message.mode == "thinking" or _budget_left_no_room(rollout))
    if rollout.mode == "non_thinking":
        return float(message.mode == "non_thinking")
    return 1.0


def _budget_left_no_room(rollout: Rollout) -> bool:
    return rollout.closed_by == "budget" and not (rollout.message.reasoning or "").strip()
