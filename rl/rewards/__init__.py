"""Rewards: one shape for all of them, and the registry by name.

A reward is a function of the query's row and of one rollout, to a score in [0, 1], or None where it does not apply:

    def politeness(query: Mapping[str, Any], rollout: Rollout) -> float | None: ...

A further reward is one such function and one line in `REWARDS`; a recipe may also name one of its own as
`package.module:function`. Options of a reward are its keyword-only parameters.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.templates.families import Mode
from posttrain.templates.parse import ParsedMessage

REWARDS: dict[str, str] = {
    "accuracy": "posttrain.rl.rewards.outcome:accuracy",
    "answer_format": "posttrain.rl.rewards.outcome:answer_format",
    "mode_following": "posttrain.rl.rewards.modes:mode_following",
    "format": "posttrain.rl.rewards.modes:think_format",
    "length": "posttrain.rl.rewards.length:soft_overlong",
}

GATES = ("mode_following", "format")
"""Rewards that, under `combine: product`, decide whether anything else counts."""


@dataclass(frozen=True)
class Rollout:
    """One completion with all that a reward may know of it.

    Attributes:
        message: the completion, parsed: reasoning, content, tool calls.
        mode: the mode asked for, or None where none was.
        text: the completion as sampled, without what was prefilled.
        prefilled: what the generation prompt had opened already, as "<think>\\n" or an empty block.
        truncated: it ran into the token limit without an end of sequence.
        closed_by: what closed the thinking: "natural", "budget", "eos", or None.
        thinking_budget: tokens allowed for thinking, or None.
        thinking_tokens: tokens of thinking, forced ones left out.
        tokens: completion tokens, forced ones left out.
        max_tokens: the limit on `tokens`.
    """

    message: ParsedMessage
    mode: Mode | None = None
    text: str = ""
    prefilled: str = ""
    truncated: bool = False
    closed_by: str | None = None
    thinking_budget: int | None = None
    thinking_tokens: int = 0
    tokens: int = 0
    max_tokens: int = 0


Reward = Callable[[Mapping[str, Any], Rollout], float | None]


def resolve_reward(name: str, options: Mapping[str, Any] | None = None) -> Reward:
    """The reward of that name, with its options bound.

    Args:
        name: a name in `REWARDS`, or `package.module:function`.
        options: the function's keyword-only parameters.

    Raises:
        PosttrainError: there is no such reward, it cannot be imported, or it has no such option.
    """
    function = _import(name)
    known = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    unknown = [key for key in options or {} if key not in known]
    if unknown:
        raise PosttrainError(
            Problem(
                f"reward {name!r} has no option {', '.join(map(repr, unknown))}",
                remedy=f"its options: {', '.join(known) or 'none'}",
            )
        )
    return functools.partial(function, **options) if options else function


def _import(name: str) -> Reward:
    path = REWARDS.get(name, name)
    module, _, attribute = path.partition(":")
    if not attribute:
        near = difflib.get_close_matches(name, REWARDS, n=1)
        raise PosttrainError(
            Problem(
                f"there is no reward {name!r}",
                remedy=(f"did you mean {near[0]!r}? " if near else "")
                + f"known: {', '.join(REWARDS)}, or package.module:function",
            )
        )
    try:
        function: Reward = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PosttrainError(
            Problem(f"the reward {name!r} cannot be imported: {error}", remedy="check the path package.module:function")
        ) from error
    return function
