"""A reward against texts that repeat themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.rl.rewards import Rollout, Score
from posttrain.sft.repetition import looped_tail, repeated_share


def repetition(
    query: Mapping[str, Any], rollout: Rollout, *, ngram: int = 8, allowed: float = 0.1, at_most: float = 0.4
) -> Score:
    """1 where at most `allowed` of the text lies in n-grams seen before, falling in a line to 0 at `at_most`.

    Thinking and answer are looked at together. A text that ends in a loop scores 0, and so does an empty one.
    """
    if ngram < 1 or not 0.0 <= allowed < at_most <= 1.0:
        raise ValueError(f"0 <= allowed < at_most <= 1 and ngram >= 1, not {allowed}, {at_most}, {ngram}")
    text = f"{rollout.message.reasoning or ''}\n{rollout.message.content}".strip()
    if not text:
        return Score(0.0, "empty")
    if loop := looped_tail(text, repeats=4, characters=40):
        return Score(0.0, f"ends in a loop of {loop[:40]!r}")
    share = repeated_share(text, ngram)
    return Score(min(1.0, max(0.0, (at_most - share) / (at_most - allowed))), f"{share:.0%} seen before")
