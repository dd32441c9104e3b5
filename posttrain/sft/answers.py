"""Which answer a text arrives at, and whether two stated answers are the same one.

Used by filters alone: scoring belongs to a task's verifier, whose own readers (`tasks.answers`) are used here too.
Everything errs towards "cannot tell": a good sample wrongly dropped costs more than a doubtful one kept, since the
verifier has looked at it already.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from posttrain.tasks.answers import final_answer, parse_choice, parse_number

__all__ = ["Statement", "concluded_answer", "final_answer", "mentions", "number", "same_answer", "statements"]

_BOXED = re.compile(r"\\f?box(?:ed)?\s*\{")
_STATEMENT = re.compile(
    r"(?:\banswer\b(?:\s+\w+){0,3}?\s*(?:is|are|was|be|:|=)|\bresult\s*(?:is|:|=)|####|(?:答案|结果)\s*(?:是|为|:|：|=))"
    r"\s*(?P<answer>[^\n]+)",
    re.IGNORECASE,
)
_LAST_EQUATION = re.compile(r"=\s*(?P<answer>[^\s=]+)$")
_RETRACTION = re.compile(
    r"\b(?:wait|hmm|actually|but|no|mistake|wrong|incorrect|recheck|recompute)\b|不对|等等|错", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"[.!?;](?=\s|$)|[。！？；]")
_NUMBER = re.compile(r"\\[dt]?frac\s*\{[^{}]*\}\s*\{[^{}]*\}|\d[\d,]*(?:\.\d+)?(?:\s?/\s?\d+)?")
_WRAPPER = re.compile(r"\\(?:text|mathrm|mathbf|textbf|operatorname)\s*\{([^{}]*)\}")
_NOISE = re.compile(r"\\(?:left|right|,|;|!|quad|displaystyle)|[$*`\"“”'’\s{}]|\\[()\[\]]")

_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_TENS = ("thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_WORDS = {word: Fraction(value) for value, word in enumerate(_ONES)} | {
    word: Fraction(10 * value) for value, word in enumerate(_TENS, 3)
}


@dataclass(frozen=True)
class Statement:
    """An answer that a text states, and where the statement begins and ends (characters).

    `explicit`: stated in so many words, not read off an equation.
    """

    answer: str
    start: int
    end: int
    explicit: bool = True


def _boxed(text: str) -> list[Statement]:
    found = []
    for match in _BOXED.finditer(text):
        depth, position = 1, match.end()
        while position < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            position += 1
        if depth == 0:
            found.append(Statement(text[match.end() : position - 1].strip(), match.start(), position))
    return found


def statements(text: str) -> list[Statement]:
    """The answers a text states in so many words (boxed, "the answer is ..."), in order, each with its place."""
    found = _boxed(text)
    boxes = [(s.start, s.end) for s in found]
    for match in _STATEMENT.finditer(text):
        start, end = match.span("answer")
        stop = _SENTENCE_END.search(text, start, end)
        end = stop.start() if stop else end
        answer = text[start:end].strip(" \t:：,.*")
        if answer and not any(start < box_end and end > box_start for box_start, box_end in boxes):
            found.append(Statement(answer, match.start(), end))
    return sorted(found, key=lambda s: s.start)


def concluded_answer(thinking: str) -> Statement | None:
    """The answer at which a thinking text arrives: its last statement, or the right side of an equation ending it.

    None where it takes the statement back afterwards ("wait", "but", ...), or makes none.
    """
    stated = statements(thinking)
    last = stated[-1] if stated else None
    equation = _LAST_EQUATION.search(thinking.rstrip(" \n\t.。"))
    if equation is not None and (last is None or equation.start() >= last.end):
        last = Statement(equation["answer"], equation.start(), equation.end(), explicit=False)
    if last is None or _RETRACTION.search(thinking, last.end):
        return None
    return last


@lru_cache(maxsize=100_000)
def number(text: str) -> Fraction | None:
    """The one number that a stated answer is, in digits or as a word; units and `x =` around it are passed over."""
    word = _WORDS.get(_NOISE.sub("", _WRAPPER.sub(r"\1", text)).strip(".。").lower())
    return word if word is not None else parse_number(text.rsplit("=", 1)[-1])


def normalised(text: str) -> str:
    """A stated answer without typesetting, quotes, spaces and case."""
    return _NOISE.sub("", _WRAPPER.sub(r"\1", text)).strip(".,:;。").lower()


def _rounds_to(exact: Fraction, rounded: Fraction) -> bool:
    """Whether `rounded` is `exact` rounded to the decimals that `rounded` has (3.14 and 3.14159)."""
    places = next((p for p in range(1, 7) if (rounded * 10**p).denominator == 1), None)
    return places is not None and rounded.denominator != 1 and round(exact, places) == rounded


def same_answer(one: str, other: str) -> bool | None:
    """Whether two stated answers are the same; None where that cannot be told from their text."""
    a, b = number(one), number(other)
    if a is not None and b is not None:
        percent = ("%" in one) != ("%" in other) and (a == b * 100 or a * 100 == b)
        return a == b or percent or _rounds_to(a, b) or _rounds_to(b, a)
    x, y = normalised(one), normalised(other)
    if a is not None or b is not None or not x or not y:
        return None
    choices = parse_choice(one), parse_choice(other)
    if choices[0] and choices[1]:
        return choices[0] == choices[1]
    if x in y or y in x:
        return True
    words = all(len(t.split()) <= 3 and n.isalnum() for t, n in ((one, x), (other, y)))
    return False if words else None


def mentions(text: str, answer: str) -> bool:
    """Whether a text contains an answer anywhere, in any form this module can read; signs are left aside."""
    value = number(answer)
    if value is None:
        return normalised(answer) in normalised(text)
    value = abs(value)
    for match in _NUMBER.finditer(text):
        found = number(match[0])
        if found is not None and (found == value or _rounds_to(found, value) or _rounds_to(value, found)):
            return True
    return any(_WORDS.get(word) == value for word in re.findall(r"[a-z]+", text.lower()))
