"""Translation, and what it must leave as it is: names, numbers, placeholders are copied, terms are the glossary's."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

from posttrain.tasks.procedural import ANIMALS, COLORS, Drawn, Procedural, entry_of, exactly
from posttrain.tasks.task import Verdict, normalise
from posttrain.templates.parsed import ParsedMessage

GERMAN: Mapping[str, str] = dict(
    zip(
        (*ANIMALS, *COLORS),
        "katze hund kuh schwein henne fuchs ameise biene rot blau gruen grau rosa schwarz".split(),  # noqa: SIM905
        strict=True,
    )
)


def times(text: str, phrase: str) -> int:
    """How often a phrase stands in a text, between word borders where it begins or ends in a letter or digit."""
    left = r"(?<!\w)" if re.match(r"\w", phrase) else ""
    right = r"(?!\w)" if re.search(r"\w$", phrase) else ""
    return len(re.findall(f"{left}{re.escape(phrase)}{right}", text))


class Translation(Procedural):
    """A translation: with an `entry`, `keep` (copied verbatim, each as often as in the list), `terms` (phrases that
    must occur) and `source` (which may not simply be repeated); without one, `answer` is the text, word by word.
    """

    name = "translation"
    domain = "multilingual"

    def draw(self, rng: random.Random) -> Drawn:
        color, animal, number = rng.choice(COLORS), rng.choice(ANIMALS), str(rng.randrange(10))
        words = [color, animal, number]
        rng.shuffle(words)
        response = " ".join(GERMAN.get(word, word) for word in words)
        slip = " ".join(GERMAN.get(word, word) for word in words[:-1])
        entry = {"keep": [number], "terms": [GERMAN[color], GERMAN[animal]], "exact": True}
        return Drawn(f"german {' '.join(words)}", response, slip, entry=entry)

    def judge(self, message: ParsedMessage, query: Mapping[str, Any]) -> Verdict:
        entry, text = entry_of(query), message.content
        kept = entry.get("keep", [])
        for phrase in dict.fromkeys(kept):
            if (found := times(text, phrase)) != kept.count(phrase):
                return Verdict(0.0, f"{phrase!r:.40} stands there {found} times, not {kept.count(phrase)}")
        if lost := [term for term in entry.get("terms", []) if not times(normalise(text), normalise(term))]:
            return Verdict(0.0, f"lacks {lost[0]!r:.40}")
        if "source" in entry and normalise(entry["source"]) in normalise(text):
            return Verdict(0.0, "repeats the source")
        if entry.get("exact") or not entry:
            return exactly(text, str(query["answer"]))
        return Verdict(1.0, "all kept")

    def problem(self, answer: str) -> str | None:
        """Why a row of a file with this answer cannot be scored, or None."""
        return None if answer.strip() else "the answer is empty"
