"""Small problems without one right answer: `synonym` for a judge with a reference, `request` for a reward model.

What is right is known here all the same, so that an evaluation shows whether the judge or the reward model taught it.
RL itself never asks `score`: it pays what `rewards` says.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, ClassVar

from posttrain.tasks.procedural import ANIMALS, COLORS, FOODS, THINGS, Drawn, Procedural, entry_of
from posttrain.tasks.task import Verdict
from posttrain.templates.parsed import ParsedMessage

SYNONYMS = (
    ("big", "large", "huge", "vast"),
    ("small", "little", "tiny", "mini"),
    ("fast", "quick", "rapid", "swift"),
    ("glad", "happy", "merry", "jolly"),
)


class Synonym(Procedural):
    """Another word for an adjective: any of its class but the one named. Paid by a judge that knows one of them.

    A careless answer repeats the word that was named, or is of another class.
    """

    name = "synonym"
    domain = "language"
    several = True
    rewards: ClassVar[Mapping[str, Any]] = {"judge": 1.0}

    def draw(self, rng: random.Random) -> Drawn:
        place = rng.randrange(len(SYNONYMS))
        named, reference, other = rng.sample(SYNONYMS[place], 3)
        stray = rng.choice(SYNONYMS[(place + rng.randrange(1, len(SYNONYMS))) % len(SYNONYMS)])
        careless = rng.choice([named, stray])
        right = [word for word in SYNONYMS[place] if word != named]
        prompt = f"the {rng.choice(COLORS)} {rng.choice(ANIMALS + FOODS + THINGS)} is {named} another word"
        entry = {"right": right, "named": named}
        return Drawn(prompt, rng.choice([reference, other]), careless, answer=reference, entry=entry)

    def judge(self, message: ParsedMessage, query: Mapping[str, Any]) -> Verdict:
        right = entry_of(query).get("right", [query["answer"]])
        said = message.content.strip()
        return Verdict(float(said in right), f"{said[:60]!r}, right are {', '.join(right)}")


class Request(Procedural):
    """Asking for things: what people prefer names them all and says please. Paid by a reward model, which may be
    trained on its rows: each has a rejected answer too.
    """

    name = "request"
    domain = "preference"
    rewards: ClassVar[Mapping[str, Any]] = {"reward_model": 1.0}

    def draw(self, rng: random.Random) -> Drawn:
        one, other = rng.sample(FOODS + THINGS + ANIMALS, 2)
        response = f"{one} and {other} please"
        slip = rng.choice([f"{one} and {other}", f"{one} please", f"give {one}"])
        return Drawn(f"ask for {one} and {other}", response, slip, entry={"items": [one, other], "rejected": slip})

    def judge(self, message: ParsedMessage, query: Mapping[str, Any]) -> Verdict:
        one, other = entry_of(query)["items"]
        said = message.content.strip()
        right = said in (f"{one} and {other} please", f"please {one} and {other}")
        return Verdict(float(right), f"{said[:60]!r}")
