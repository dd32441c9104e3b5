"""Verifiable instructions: the 83 checkers of IFEval and IFBench, on rows that name them."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from posttrain.errors import PosttrainError, Problem
from posttrain.tasks import isolated
from posttrain.tasks.procedural import WORDS, Drawn, Procedural, entry_of
from posttrain.tasks.task import Verdict
from posttrain.templates.parsed import ParsedMessage

log = logging.getLogger("posttrain")

DEADLINE = 10.0  # CPU-seconds
_WORKER = "posttrain.tasks.if_worker:"


class Followed(NamedTuple):
    """Whether one instruction was followed, strictly and loosely (the benchmarks' two readings)."""

    name: str
    strict: bool
    loose: bool


@cache
def checkers() -> tuple[frozenset[str], Mapping[str, str]]:
    """Ids of the checkers, and those that cannot work here with the reason (NLTK's data are not there).

    Raises:
        PosttrainError: the package is not installed.
    """
    try:
        names, left_out = isolated.call(_WORKER + "names", deadline=120.0)
    except isolated.Fault as fault:
        what = f"the checkers of IFEval and IFBench do not load: {fault}"
        raise PosttrainError(Problem(what, remedy="pip install 'posttrain[rewards]'")) from fault
    return frozenset(names), left_out


def followed(entry: Mapping[str, Any], prompt: str, content: str) -> list[Followed]:
    """Which instructions of a row an answer follows. An empty answer follows none.

    Args:
        entry: `instructions` (ids) and `arguments` (one mapping for each, nulls left out).

    Raises:
        isolated.Fault: a checker raised, or ran past its deadline.
    """
    ids = list(entry["instructions"])
    arguments = [{key: value for key, value in given.items() if value is not None} for given in entry["arguments"]]
    if not content.strip():
        return [Followed(name, False, False) for name in ids]
    found = isolated.call(_WORKER + "check", ids, arguments, prompt, content, deadline=DEADLINE)
    return [Followed(name, *pair) for name, pair in zip(ids, found, strict=True)]


class Instructions(Procedural):
    """Instructions of IFEval and IFBench. `entry` has `instructions`, a list of ids, and `arguments`, a mapping for
    each; all must be followed strictly. Checkers that lack NLTK's data are refused. Its own problems combine three of
    IFEval's.

    Attributes:
        faults: answers that could not be checked and score 0, counted by kind.
    """

    name = "instructions"
    domain = "instruction_following"

    def __init__(self) -> None:
        self.faults: Counter[str] = Counter()

    def draw(self, rng: random.Random) -> Drawn:
        words = rng.sample(WORDS, 2)
        text = f"the {words[0]} and the {words[1]}"
        count = rng.randint(2, 4)
        items = "\n".join(f"* {text}" for _ in range(count))
        kinds: list[tuple[str, str, dict[str, Any], str]] = [
            ("in double quotes", "startend:quotation", {}, f'"{text}"'),
            ("end with yes", "startend:end_checker", {"end_phrase": "yes"}, f"{text} yes"),
            (f"as {count} bullets", "detectable_format:number_bullet_lists", {"num_bullets": count}, items),
            ("with a title in marks", "detectable_format:title", {}, f"<<{words[0]}>>\n{text}"),
        ]
        phrase, name, arguments, response = rng.choice(kinds)
        short = {"num_words": 30, "relation": "less than"}
        entry = {
            "instructions": ["keywords:existence", "length_constraints:number_words", name],
            "arguments": [{"keywords": words}, short, arguments],
        }
        prompt = f"{phrase} write shortly about {words[0]} and {words[1]}"
        slip = text if "end" not in phrase else f"{text} no"
        return Drawn(prompt, response, slip, entry=entry)

    def judge(self, message: ParsedMessage, query: Mapping[str, Any]) -> Verdict:
        prompt = query["prompt"][-1]["content"] if query.get("prompt") else ""
        try:
            found = followed(entry_of(query), prompt, message.content)
        except isolated.Fault as fault:
            self.faults[fault.kind] += 1
            if self.faults[fault.kind] == 1:
                log.warning("instructions: an answer could not be checked (%s); such answers score 0", fault)
            return Verdict(0.0, f"could not be checked: {fault}"[:200])
        lost = [one.name for one in found if not one.strict]
        return Verdict(float(not lost), f"does not follow {', '.join(lost)}" if lost else "follows all")

    def gold(self, query: Mapping[str, Any]) -> str:
        return str(entry_of(query).get("gold", ""))

    def entry_problem(self, entry: Mapping[str, Any]) -> str | None:
        """Why a row with this entry cannot be scored, or None."""
        ids, arguments = entry.get("instructions"), entry.get("arguments")
        if not isinstance(ids, list) or not ids or not isinstance(arguments, list) or len(arguments) != len(ids):
            return "its entry has no `instructions` with as many `arguments`"
        names, left_out = checkers()
        for name in ids:
            if name not in names:
                return f"no checker is called {name!r:.60}"
            if name in left_out:
                return f"the checker {name!r} cannot work here: it {left_out[name]}"
        return None

    def problem(self, answer: str) -> str | None:
        """Why a row without an entry cannot be scored."""
        return "it needs an `entry` with `instructions` and `arguments`"
