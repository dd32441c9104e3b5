"""A reward for answering in one language: the prompt's, or the one that the row names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.rl.rewards import Rollout, Score
from posttrain.rl.rewards.outcome import no_answer
from posttrain.sft.languages import latin_languages, prose, script_shares
from posttrain.tasks.procedural import entry_of

SCRIPTS: Mapping[str, str] = {
    "Chinese": "CJK",
    "Japanese": "JAPANESE",
    "Korean": "HANGUL",
    "Russian": "CYRILLIC",
    "Arabic": "ARABIC",
    "Hindi": "DEVANAGARI",
    "Thai": "THAI",
    "Hebrew": "HEBREW",
    "Greek": "GREEK",
}
"""Languages told by their script; others are told by their function words, and written in Latin letters."""


def language(query: Mapping[str, Any], rollout: Rollout, *, thinking: bool = False) -> Score | None:
    """The share of the answer's letters in the script asked for; 0 where its function words say another language.

    Asked for is `language` in the row's entry (as German), else what the prompt is written in. Code, formulas and
    addresses do not count. `thinking: true` looks at the thinking as well. None where nothing says what is asked for.
    """
    named = entry_of(query).get("language")
    prompt = prose(" ".join(str(turn["content"] or "") for turn in query.get("prompt") or []))
    script = SCRIPTS.get(str(named), "LATIN") if named else next(iter(script_shares(prompt)), None)
    if script is None:
        return None
    if (unanswered := no_answer(rollout)) is not None:
        return unanswered
    text = prose(rollout.message.content + ("\n" + (rollout.message.reasoning or "") if thinking else ""))
    shares = script_shares(text)
    if not shares:
        return Score(0.0, "no letters") if named else None
    share = shares.get(script, 0.0)
    if script == "LATIN":
        wanted = str(named) if named else next(iter(dict(latin_languages(prompt).most_common(1))), None)
        found = latin_languages(text)
        others = sum(count for name, count in found.items() if name != wanted)
        if wanted and others:
            share *= 1.0 - others / found.total()
    return Score(min(1.0, share), f"{share:.0%} in {named or script.lower()}")
