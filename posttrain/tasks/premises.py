"""Counterfactual premises: a question takes for granted what is not so, and a good answer says that (CounterFactQA)."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

from posttrain.tasks.procedural import ANIMALS, COLORS, Drawn, Procedural, entry_of
from posttrain.tasks.task import Verdict, normalise, visible
from posttrain.templates.parsed import ParsedMessage

_DENIES = re.compile(
    r"\b(?:not|never|no|cannot|\w+n't|false|incorrect|inaccurate|wrong|untrue|mistaken|myth|misconception|actually)\b"
)
LONGEST = 4000  # characters that are read


class Premises(Procedural):
    """Whether a question's premise holds. `entry` has `holds` (true or false); where it does not, `facts`: an answer
    denies the premise and names one of these phrases. Where it holds, an answer names one and denies nothing.
    `exact: true` asks for the reference word by word.
    """

    name = "premises"
    domain = "counterfactual"

    def draw(self, rng: random.Random) -> Drawn:
        animals, colors = rng.sample(ANIMALS, 2), rng.sample(COLORS, 3)
        asked = rng.randrange(2)
        animal, color = animals[asked], colors[asked]
        holds = rng.random() < 0.5
        claim = color if holds else colors[rng.choice([1 - asked, 2])]
        facts = " and ".join(f"{a} is {c}" for a, c in zip(animals, colors, strict=False))
        yes, no = f"yes {color}", f"no it is {color}"
        entry = {"holds": holds, "facts": [color], "exact": True}
        slip = f"yes {claim}" if not holds else no
        return Drawn(f"{facts} why is {animal} {claim}", yes if holds else no, slip, entry=entry)

    def judge(self, message: ParsedMessage, query: Mapping[str, Any]) -> Verdict:
        entry, text = entry_of(query), normalise(visible(message.content)[:LONGEST])
        if entry.get("exact"):
            right = text == normalise(str(query["answer"]))
            return Verdict(float(right), "as wanted" if right else f"{text[:60]!r}, wanted {query['answer']!r:.60}")
        denies = _DENIES.search(text) is not None
        if denies == bool(entry["holds"]):
            return Verdict(0.0, "denies what holds" if denies else "takes the premise for granted")
        facts = entry.get("facts") or [query["answer"]]
        if not any(re.search(rf"(?<!\w){re.escape(normalise(fact))}(?!\w)", text) for fact in facts):
            return Verdict(0.0, f"does not say {facts[0]!r:.60}")
        return Verdict(1.0, "sees through the premise" if denies else "answers")

    def gold(self, query: Mapping[str, Any]) -> str:
        entry = entry_of(query)
        if "gold" in entry:
            return str(entry["gold"])
        fact = (entry.get("facts") or [query["answer"]])[0]
        return str(fact) if entry["holds"] else f"That is not so: {fact}"

    def entry_problem(self, entry: Mapping[str, Any]) -> str | None:
        """Why a row with this entry cannot be scored, or None."""
        return None if isinstance(entry.get("holds"), bool) else "its entry does not say whether the premise `holds`"

    def problem(self, answer: str) -> str | None:
        """Why a row without an entry cannot be scored."""
        return "it needs an `entry` with `holds` and `facts`"
