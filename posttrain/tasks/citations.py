"""Grounded answers: what the documents say, with the number of the one that says it, or that none does."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

from posttrain.tasks.procedural import ANIMALS, COLORS, Drawn, Procedural, entry_of
from posttrain.tasks.task import Verdict, normalise, visible
from posttrain.templates.parsed import ParsedMessage

NOT_THERE = "not in the documents"
_CITATION = re.compile(r"\[(\d{1,4}(?:\s*[,;]\s*\d{1,4})*)\]")
_PLACE = r"(?:documents?|texts?|sources?|passages?|articles?|context)"
_ABSTAINS = re.compile(
    rf"(?:\bnot|n't)(?: \w+ly)? (?:stated|mentioned|given|found|contained|specified|in (?:\w+ ){{1,3}}{_PLACE})\b"
    r"|\b(?:do|does|did)(?: not|n't)(?: \w+ly)? (?:say|mention|state|contain|specify)\b"
    rf"|\bno (?:information|mention)\b|\b(?:none|neither) of (?:\w+ ){{1,3}}{_PLACE}\b|\bno {_PLACE} \w+\b"
    r"|\b(?:cannot|can't|could not|couldn't) (?:be (?:answered|found)|find)\b|\bunknown\b",
    re.IGNORECASE,
)
LONGEST = 2000  # characters that are read


def cited(content: str) -> list[int]:
    """The numbers of the documents that an answer cites, in order, each once."""
    found = _CITATION.findall(content[:LONGEST])
    return list(dict.fromkeys(int(number) for inside in found for number in re.split(r"\s*[,;]\s*", inside)))


def _holds(text: str, phrase: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(normalise(phrase))}(?!\w)", normalise(text)) is not None


class Citations(Procedural):
    """Answers from numbered documents. `entry` has `answers` (any of these phrases is right), `cites` (the documents
    that say so), and `wrong` (phrases that stand in the documents and do not answer); no `answers` means that an answer
    has to say that the documents do not say.
    """

    name = "citations"
    domain = "rag"

    def draw(self, rng: random.Random) -> Drawn:
        names, colors = rng.sample(ANIMALS, 4), rng.sample(COLORS, 3)
        documents = " ".join(
            f"[{i}] {name} {color}" for i, (name, color) in enumerate(zip(names, colors, strict=False), 1)
        )
        if rng.random() < 0.25:
            entry: dict[str, Any] = {"answers": [], "cites": [], "wrong": colors}
            slip = f"{colors[0]} [1]"
            return Drawn(f"{documents} color of {names[3]}", NOT_THERE, slip, entry=entry)
        place = rng.randrange(3)
        other = (place + 1) % 3
        wrong = [color for color in colors if color != colors[place]]
        entry = {"answers": [colors[place]], "cites": [place + 1], "wrong": wrong}
        slip = rng.choice([f"{colors[other]} [{other + 1}]", f"{colors[place]} [{other + 1}]", colors[place]])
        return Drawn(f"{documents} color of {names[place]}", f"{colors[place]} [{place + 1}]", slip, entry=entry)

    def judge(self, message: ParsedMessage, query: Mapping[str, Any]) -> Verdict:
        entry, text = entry_of(query), visible(message.content)[:LONGEST]
        answers = entry.get("answers", [query["answer"]])
        wanted, given = list(entry.get("cites", [])), cited(text)
        claims = _CITATION.sub(" ", text)
        if hit := next((phrase for phrase in entry.get("wrong", []) if _holds(claims, phrase)), None):
            return Verdict(0.0, f"says {hit!r}, which is no answer")
        if not answers:
            said = _ABSTAINS.search(text) is not None
            return Verdict(float(said and not given), "says that it is not there" if said else "makes something up")
        if not any(_holds(claims, phrase) for phrase in answers):
            return Verdict(0.0, f"does not say {answers[0]!r:.60}")
        if sorted(given) != sorted(wanted):
            return Verdict(0.0, f"cites {given}, {wanted} say so")
        if _ABSTAINS.search(text):
            return Verdict(0.0, "says that it is not there, and answers")
        return Verdict(1.0, "grounded")

    def gold(self, query: Mapping[str, Any]) -> str:
        entry = entry_of(query)
        if "gold" in entry:
            return str(entry["gold"])
        answers = entry.get("answers", [query["answer"]])
        if not answers:
            return NOT_THERE
        return f"{answers[0]} {' '.join(f'[{number}]' for number in entry.get('cites', []))}".strip()

    def entry_problem(self, entry: Mapping[str, Any]) -> str | None:
        """Why a row with this entry cannot be scored, or None."""
        sound = isinstance(entry.get("answers"), list) and isinstance(entry.get("cites"), list)
        return None if sound else "its entry has no lists `answers` and `cites`"

    def problem(self, answer: str) -> str | None:
        """Why a row without an entry cannot be scored."""
        return "it needs an `entry` with `answers` and `cites`"
