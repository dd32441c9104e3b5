"""The task `judging`: what a judge is asked, with the grade that is right. A small judge is trained on it.

Its problems are those of `synonym` with an answer to each, right, near or rubbish, in the words of a judge's own prompt
(`judge.py`), fences and all; what it has to say is one of the prompt's verdicts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.rl.rewards.judge import PROMPT, prompt_of
from posttrain.tasks.open_answers import SYNONYMS, Synonym
from posttrain.tasks.procedural import WORDS, Drawn, Procedural, exactly
from posttrain.tasks.task import Query, Verdict
from posttrain.templates.parsed import ParsedMessage

VERDICTS = ("yes", "no")
ADJECTIVES = tuple(word for words in SYNONYMS for word in words)


class Judging(Procedural):
    """Answers to `synonym` to be graded yes or no. Options of `queries`: `prompt`, the judge's Jinja file; `slips`."""

    name = "judging"
    domain = "judging"

    def __init__(self) -> None:
        self._template = PROMPT.read_text(encoding="utf-8")

    def queries(self, size: int, seed: int, *, slips: float = 0.0, prompt: str = "") -> Iterator[Query]:
        path = Path(prompt).expanduser() if prompt else PROMPT
        if not path.is_file():
            raise PosttrainError(Problem(f"there is no prompt {path}", "judging: options", remedy="a Jinja file"))
        made = Judging()
        made._template = path.read_text(encoding="utf-8")
        return Procedural.queries(made, size, seed, slips=slips)

    def draw(self, rng: random.Random) -> Drawn:
        problem = Synonym().draw(rng)
        right = list(problem.entry["right"])
        good = rng.random() < 0.5
        answer = rng.choice(right) if good else self._wrong(rng, right, problem.entry["named"])
        texts = {"question": problem.prompt, "reference": problem.answer, "answer": answer}
        verdict, other = VERDICTS if good else VERDICTS[::-1]
        return Drawn(prompt_of(self._template, texts, verdicts=VERDICTS)[0], verdict, other)

    def _wrong(self, rng: random.Random, right: list[str], named: str) -> str:
        """An answer that is none: another adjective, the one that was named, several, or any words."""
        kind = rng.randrange(6)
        if kind < 3:
            return rng.choice([word for word in ADJECTIVES if word not in right])
        if kind == 3:
            return named
        if kind == 4:
            return " ".join(rng.sample([*right, *rng.sample(ADJECTIVES, 3)], rng.randint(2, 3)))
        return " ".join(rng.sample(WORDS, rng.randint(1, 3)))

    def judge(self, message: ParsedMessage, query: Mapping[str, Any]) -> Verdict:
        return exactly(message.content, str(query["answer"]))
