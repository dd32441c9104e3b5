"""Verifiers for rows from files: each compares the final answer of a response with the row's `answer`."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from posttrain.errors import PosttrainError, Problem
from posttrain.tasks import isolated
from posttrain.tasks.answers import final_answer, last_line, parse_choice, parse_number
from posttrain.tasks.task import Query

log = logging.getLogger("posttrain")

LONGEST_MATH = 2000  # characters
_OPERATES = re.compile(r"[-+*/^!=]|\\(?:d?frac|sqrt|int|sum|prod|lim|cdot|times|div|binom|log|ln|sin|cos|tan)(?![a-z])")
MATH_DEADLINE = 5.0  # CPU-seconds


class Verifier:
    """Scores 1 for the right final answer, else 0. Makes no queries of its own."""

    name: ClassVar[str]
    reads_answer = True

    def queries(self, size: int, seed: int, **options: Any) -> Iterator[Query]:
        raise PosttrainError(
            Problem(
                f"{self.name!r} verifies answers and makes no queries",
                remedy=f"give the rows by `path` or `dataset`, with `verifier: {self.name}`",
            )
        )

    def score(self, content: str, query: Mapping[str, Any]) -> float:
        reference = final_answer(query["answer"]) or query["answer"].strip()
        return float(bool(reference) and bool(content) and self._right(content, reference))

    def gold(self, query: Mapping[str, Any]) -> str:
        return f"\\boxed{{{final_answer(query['answer']) or query['answer'].strip()}}}"

    def problem(self, answer: str) -> str | None:
        """Why a reference answer cannot be verified, or None. A loader asks this of every row."""
        reference = final_answer(answer) or answer.strip()
        return self._unreadable(reference) if reference else "the answer is empty"

    def _right(self, content: str, reference: str) -> bool:
        raise NotImplementedError

    def _unreadable(self, reference: str) -> str | None:
        return None


class Exact(Verifier):
    """The same text, case included; runs of white space count as one space."""

    name = "exact"

    def _right(self, content: str, reference: str) -> bool:
        wanted = reference.split()
        return wanted in ((final_answer(content) or content).split(), content.split())


class Number(Verifier):
    """The same number, exactly: 0.5 is 1/2, and 1,000 is 1e3."""

    name = "number"

    def _right(self, content: str, reference: str) -> bool:
        number = parse_number(final_answer(content) or last_line(content))
        return number is not None and number == parse_number(reference)

    def _unreadable(self, reference: str) -> str | None:
        return None if parse_number(reference) is not None else f"the answer {reference[:80]!r} is not one number"


class Choice(Verifier):
    """The same letter of a multiple choice."""

    name = "choice"

    def _right(self, content: str, reference: str) -> bool:
        letter = parse_choice(final_answer(content) or last_line(content))
        return letter is not None and letter == parse_choice(reference)

    def _unreadable(self, reference: str) -> str | None:
        return None if parse_choice(reference) else f"the answer {reference[:80]!r} is not the letter of a choice"


class Math(Verifier):
    """An equivalent expression, by math-verify.

    It runs in a child process under a deadline: math-verify's own time limits work in a main thread only, and without
    one `9^{9^{9}}` never ends. A reference of plain words is compared as text, since to math-verify "cat" is the
    product of c, a and t, and so equal to "act". To math-verify 3*4+5 is 17, and a quadratic its factors; so an
    expression that is the prompt's own, and no number, is no answer to it, unless the reference stands there as well.

    Attributes:
        faults: answers that could not be compared and scored 0, counted by kind.
    """

    name = "math"

    def __init__(self) -> None:
        self.faults: Counter[str] = Counter()

    def score(self, content: str, query: Mapping[str, Any]) -> float:
        value = super().score(content, query)
        turns = query.get("prompt")
        return 0.0 if value and turns and _copied(content, query["answer"], str(turns[-1]["content"])) else value

    def _right(self, content: str, reference: str) -> bool:
        answer = final_answer(content) or last_line(content)
        if answer.split() == reference.split():
            return True
        if not answer or len(answer) > LONGEST_MATH or _is_words(reference):
            return False
        try:
            return bool(isolated.call("posttrain.tasks.math_worker:equal", reference, answer, deadline=MATH_DEADLINE))
        except isolated.Fault as fault:
            self.faults[fault.kind] += 1
            if self.faults[fault.kind] == 1:
                log.warning("math: %r could not be compared (%s); such answers score 0", answer[:80], fault)
            return False


def _copied(content: str, answer: str, prompt: str) -> bool:
    """Whether an answer is an expression that the prompt asks about, and not worked out."""
    given, reference = final_answer(content) or last_line(content), final_answer(answer) or answer.strip()
    if given.split() == reference.split() or parse_number(given) is not None:
        return False
    asked, own = _squeezed(prompt), _squeezed(reference)
    chosen = _OPERATES.search(own) and own in asked  # one of those that the prompt lists is asked for
    return bool(_OPERATES.search(given)) and _squeezed(given) in asked and not chosen


def _squeezed(text: str) -> str:
    """An expression without what its writers may leave out."""
    return re.sub(r"\\left|\\right|\\displaystyle|\\[,;!: ]|[\s${}]", "", text).replace("dfrac", "frac")


def _is_words(text: str) -> bool:
    plain = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    return bool(re.fullmatch(r"[A-Za-z][A-Za-z '-]{2,}", plain)) and not re.fullmatch(r"[a-z]\s*-\s*[a-z]", plain)
