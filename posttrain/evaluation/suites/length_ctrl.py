"""LengthCtrl: texts of a length that is asked for, scored by |length - target| (after the Qwen3 report, Table 22).

The report's data are not public; these are our own: every topic with every kind of demand.
"""

from __future__ import annotations

import re

from posttrain.evaluation.suites.suite import Item, Marks, SingleTurn
from posttrain.model.generation import Completion

TOPICS = """\
a walk through a market
how bread is made
why the sky is blue
a letter to a neighbour who moved away
the uses of salt
a day in the life of a ferry captain
how to repair a bicycle tyre
the history of paper
advice for a first job interview
what makes a good map
a storm at sea
the rules of chess
why people keep diaries
a speech at a school's anniversary
how vaccines work
a recipe for lentil soup
the moons of Jupiter
a complaint about a late train
how cities get their water
a poem's place in daily life
""".splitlines()
DEMANDS: dict[str, tuple[str, int, int]] = {
    "exactly 30 words": ("in exactly 30 words", 30, 30),
    "exactly 100 words": ("in exactly 100 words", 100, 100),
    "50 to 60 words": ("in 50 to 60 words", 50, 60),
    "150 to 200 words": ("in 150 to 200 words", 150, 200),
    "20 to 40 words": ("in at least 20 and at most 40 words", 20, 40),
    "at least 250 words": ("in at least 250 words", 250, 10**9),
    "about 400 words": ("in about 400 words", 400, 400),
}
TOLERANCE = 0.1  # of the target, for `within`
REPEATED = 0.25  # of the words, at least, differ; else the text is filler


class LengthCtrl(SingleTurn):
    """`closeness`: 1 less the distance to the range of allowed lengths, as a share of its nearer end, 0 at least.
    `within`: whether the length is off by a tenth at most. Filler and empty texts score 0.
    """

    name = "length-ctrl"
    about = "LengthCtrl, 140 texts of a given length"
    headline = "closeness"

    def items(self) -> list[Item]:
        return [
            Item(
                f"{kind} {number}".replace(" ", "-"),
                [{"role": "user", "content": f"Write about {topic} {words}. Give the text only."}],
                group=kind,
                facts={"low": low, "high": high},
            )
            for kind, (words, low, high) in DEMANDS.items()
            for number, topic in enumerate(TOPICS)
        ]

    def mark(self, item: Item, completion: Completion) -> Marks:
        words = re.findall(r"\w+(?:['’\-]\w+)*", completion.message.content)
        low, high = item.facts["low"], item.facts["high"]
        different = len({word.casefold() for word in words})
        if different < max(1.0, REPEATED * min(len(words), 100)):
            return Marks({"closeness": 0.0, "within": 0.0}, f"{len(words)} words, {different} of them different")
        off, end = (low - len(words), low) if len(words) < low else (max(0, len(words) - high), high)
        reason = f"{len(words)} words, wanted {item.group}"
        return Marks({"closeness": max(0.0, 1.0 - off / end), "within": float(off <= TOLERANCE * end)}, reason)
