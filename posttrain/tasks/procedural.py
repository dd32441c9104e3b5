"""Small procedural tasks for a mixture: a few dozen words and ten digits, so that a model of 300,000 parameters learns.

A task says how one problem is drawn and how an answer is judged. The words are shared by all of them, prompts are one
line, and the seeds make the same rows on every machine.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from posttrain.errors import PosttrainError, Problem
from posttrain.tasks.task import Query, Verdict, derive_seed, make_query, plain_message, text_key
from posttrain.templates.parsed import ParsedMessage

ANIMALS = ("cat", "dog", "cow", "pig", "hen", "fox", "ant", "bee")
COLORS = ("red", "blue", "green", "gray", "pink", "black")
FOODS = ("tea", "milk", "rice", "bread", "soup", "cake")
THINGS = ("cup", "pen", "box", "key")
CATEGORIES: Mapping[str, tuple[str, ...]] = {"animals": ANIMALS, "colors": COLORS, "foods": FOODS}
WORDS = (*ANIMALS, *COLORS, *FOODS, *THINGS)


@dataclass(frozen=True)
class Drawn:
    """One problem.

    Attributes:
        prompt: what is asked.
        response: an answer that scores 1.
        slip: a typical wrong answer.
        answer: the reference; default: the response.
        reasoning: a short worked solution; default: a draft of the answer.
        entry: what the verifier needs beside the reference.
        difficulty: a small whole number.
    """

    prompt: str
    response: str
    slip: str
    answer: str = ""
    reasoning: str = ""
    entry: Mapping[str, Any] = field(default_factory=dict)
    difficulty: int = 0


class Procedural:
    """A source of drawn problems. Options of `queries`: `slips`, the share of demonstrations (`response`) that are
    wrong.

    What RL unlearns has to be there first: as people's demonstrations are, some of these are careless.
    """

    name: str
    domain: ClassVar[str] = "general"
    rewards: ClassVar[Mapping[str, Any]] = {"accuracy": 1.0}
    several: bool = False
    """Whether a problem may have several right answers."""

    def draw(self, rng: random.Random) -> Drawn:
        """One problem."""
        raise NotImplementedError

    def judge(self, message: ParsedMessage, query: Mapping[str, Any]) -> Verdict:
        """The verdict on an answer that is not empty."""
        raise NotImplementedError

    def queries(self, size: int, seed: int, *, slips: float = 0.0) -> Iterator[Query]:
        if isinstance(slips, bool) or not isinstance(slips, int | float) or not 0.0 <= slips <= 1.0:
            raise PosttrainError(Problem(f"slips is a share from 0 to 1, not {slips!r}", f"{self.name}: options"))
        return self._rows(size, seed, float(slips))

    def _rows(self, size: int, seed: int, slips: float) -> Iterator[Query]:
        rng = random.Random(derive_seed(self.name, seed))
        for number in range(size):
            drawn = self.draw(rng)
            written = drawn.slip if rng.random() < slips else drawn.response
            yield make_query(
                id=f"{self.name}-{seed}-{number}",
                prompt=drawn.prompt,
                answer=drawn.answer or drawn.response,
                task=self.name,
                domain=self.domain,
                difficulty=drawn.difficulty,
                key=text_key(drawn.prompt),
                reasoning=drawn.reasoning or written,
                response=written,
                entry=json.dumps({**drawn.entry, "gold": drawn.response}, ensure_ascii=False),
            )

    def verdict(self, message: ParsedMessage, query: Mapping[str, Any]) -> Verdict:
        if not message.content.strip() and not message.tool_calls:
            return Verdict(0.0, "no answer")
        return self.judge(message, query)

    def score(self, content: str, query: Mapping[str, Any]) -> float:
        return self.verdict(plain_message(content or ""), query).value

    def gold(self, query: Mapping[str, Any]) -> str:
        return str(entry_of(query).get("gold") or query["answer"])


def entry_of(query: Mapping[str, Any]) -> dict[str, Any]:
    """A query's entry; {} where it has none."""
    entry = query.get("entry")
    value = json.loads(entry) if entry else {}
    return value if isinstance(value, dict) else {}


def exactly(content: str, wanted: str) -> Verdict:
    """1 for the wanted text, white space around it aside."""
    text = content.strip()
    return Verdict(float(text == wanted), "as wanted" if text == wanted else f"{text[:60]!r}, wanted {wanted[:60]!r}")


def sample(rng: random.Random, words: Sequence[str], low: int, high: int) -> list[str]:
    """Between `low` and `high` different words."""
    return rng.sample(list(words), rng.randint(low, high))


def no_such_member(library: str, member: str, members: Sequence[str]) -> PosttrainError:
    return PosttrainError(Problem(f"{library} has no {member!r}", remedy=f"it has {', '.join(members)}"))
