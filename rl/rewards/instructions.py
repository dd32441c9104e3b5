"""A reward for following verifiable instructions (IFEval, IFBench), in part or altogether."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.rl.rewards import Rollout, Score
from posttrain.rl.rewards.outcome import no_answer
from posttrain.tasks.instructions import followed
from posttrain.tasks.procedural import entry_of


def instructions(
    query: Mapping[str, Any], rollout: Rollout, *, partial: bool = False, loose: bool = False
) -> Score | None:
    """1 if every instruction of the row is followed; `partial`: the share of them; `loose`: as the benchmarks read it.

    None where the row's entry has no `instructions`.
    """
    entry = entry_of(query)
    if not entry.get("instructions"):
        return None
    if (unanswered := no_answer(rollout)) is not None:
        return unanswered
    prompt = query["prompt"][-1]["content"] if query.get("prompt") else ""
    found = followed(entry, prompt, rollout.message.content)
    kept = [one.loose if loose else one.strict for one in found]
    lost = [one.name for one, holds in zip(found, kept, strict=True) if not holds]
    value = sum(kept) / len(kept) if partial else float(all(kept))
    return Score(value, f"does not follow {', '.join(lost)}" if lost else "follows all")
