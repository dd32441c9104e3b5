"""Rewards for what was answered: the task's own verifier on the final content. Thinking never counts."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from posttrain.rl.rewards import Rollout, Score
from posttrain.tasks.environment import Outcome


def accuracy(query: Mapping[str, Any], rollout: Rollout) -> Score | None:
    """The task's score of the content or the episode; 0 for a truncated one. None where the query has no task."""
    if query.get("task") and rollout.outcome is not None:
        return of_episode(rollout.outcome, rollout.truncated)
    return verifier(query, rollout, by=str(query.get("task") or ""))


def verifier(query: Mapping[str, Any], rollout: Rollout, *, by: str = "") -> Score | None:
    """The score of a verifier that the option `by` names, whatever the row's task: json, tool_calls, constraints, ...

    None where the option names none.
    """
    if not by:
        return None
    if (unanswered := no_answer(rollout)) is not None:
        return unanswered
    from posttrain.tasks.registry import get_task
    from posttrain.tasks.task import verdict_of

    verdict = verdict_of(get_task(by), rollout.message, query)
    return Score(float(verdict.value), verdict.reason)


def of_episode(outcome: Outcome, cut: bool) -> Score:
    """The score of an episode in an environment; 0 where the player was cut off."""
    told = f"{outcome.turns} turns, {outcome.invalid} invalid"
    return Score(0.0, f"cut off after {told}") if cut else Score(outcome.score, told)


def no_answer(rollout: Rollout) -> Score | None:
    """Score 0 for a completion that was cut off, or holds no answer; None for any other."""
    if rollout.truncated:
        return Score(0.0, "cut off")
    if not rollout.message.content.strip() and not rollout.message.tool_calls:
        return Score(0.0, "no answer")
    return None


def answer_format(query: Mapping[str, Any], rollout: Rollout) -> float | None:
    """The task's score of the answer's form alone. None where neither the task nor its module has a `format_score`."""
    if not query.get("task"):
        return None
    from posttrain.tasks.registry import get_task

    task = get_task(query["task"])
    scorer = getattr(task, "format_score", None) or getattr(sys.modules[type(task).__module__], "format_score", None)
    if scorer is None:
        return None
    if rollout.truncated or not rollout.message.content.strip():
        return 0.0
    return float(scorer(rollout.message.content, query))
