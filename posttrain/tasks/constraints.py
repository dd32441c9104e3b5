"""Constraints on the form of an answer: its length, words that must or must not be there, its case, its layout.

A row says what it demands in its `entry` (or `answer`): {"constraints": [{"kind": "words", "target": 4}, ...]}. All
must hold. `constraints:NAME` draws small problems of its own with one constraint each, and with demands on the content,
so that no rubbish in good form scores.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.tasks.procedural import (
    ANIMALS,
    CATEGORIES,
    COLORS,
    WORDS,
    Drawn,
    Procedural,
    entry_of,
    no_such_member,
    sample,
)
from posttrain.tasks.task import Query, Verdict, visible
from posttrain.templates.parsed import ParsedMessage

Demands = list[dict[str, Any]]  # constraints: each has its kind, and what that needs

_SENTENCE_END = re.compile(r"[.!?]+[\"')\]]*(?:\s+|$)|[。！？]+[\"')\]”’」』]*\s*")


def words_of(text: str) -> list[str]:
    """Words, without the punctuation around them. What holds no letter and no digit is none."""
    parts = (part.strip(".,;:!?\"'()[]*-") for part in text.split())
    return [word for word in parts if any(letter.isalnum() for letter in word)]


def sentences_of(text: str) -> list[str]:
    """Sentences: what ends in a full stop, a question or an exclamation mark, and what is left behind the last one."""
    return [part for part in _SENTENCE_END.split(text.strip()) if part.strip()]


LENGTHS: Mapping[str, Callable[[str], int]] = {
    "words": lambda text: len(words_of(text)),
    "sentences": lambda text: len(sentences_of(text)),
    "characters": lambda text: len(visible(text).strip()),
    "lines": lambda text: len([line for line in visible(text).splitlines() if line.strip()]),
}


def length_error(text: str, unit: str, target: int) -> int:
    """|length - target| in that unit (LengthCtrl, Qwen3 report, Table 22)."""
    return abs(LENGTHS[unit](text) - target)


def _length(unit: str) -> Callable[[str, Mapping[str, Any]], bool]:
    def holds(text: str, c: Mapping[str, Any]) -> bool:
        length = LENGTHS[unit](text)
        if "target" in c:
            return length_error(text, unit, int(c["target"])) <= int(c.get("tolerance", 0))
        return int(c.get("low", 0)) <= length <= int(c.get("high", length))

    return holds


def _has(text: str, phrase: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(visible(phrase))}(?!\w)", visible(text), re.IGNORECASE) is not None


def _bullets(text: str, c: Mapping[str, Any]) -> bool:
    lines = [line.strip() for line in text.strip().splitlines()]
    items = [line[1:].strip() for line in lines if re.match(r"[-*•]\s+\S", line)]
    wanted = c.get("items")
    return len(items) == len(lines) and (items == list(wanted) if wanted else len(items) == int(c["count"]))


CHECKS: Mapping[str, Callable[[str, Mapping[str, Any]], bool]] = {
    **{unit: _length(unit) for unit in LENGTHS},
    "include": lambda text, c: all(_has(text, phrase) for phrase in c["phrases"]),
    "exclude": lambda text, c: not any(_has(text, phrase) for phrase in c["phrases"]),
    "upper": lambda text, c: text == text.upper() and any(letter.isalpha() for letter in text),
    "lower": lambda text, c: text == text.lower() and any(letter.isalpha() for letter in text),
    "starts": lambda text, c: text.strip().startswith(str(c["text"])),
    "ends": lambda text, c: text.strip().endswith(str(c["text"])),
    "wrapped": lambda text, c: (
        len(text.strip()) > len(c["open"] + c["close"])
        and text.strip().startswith(c["open"])
        and text.strip().endswith(c["close"])
    ),
    "bullets": _bullets,
    "vocabulary": lambda text, c: bool(text.split()) and set(text.split()) <= set(c["words"]),
    "distinct": lambda text, c: len(set(text.split())) == len(text.split()),
    "equals": lambda text, c: text.strip() == c["text"],
    "matches": lambda text, c: any(text.strip() == form for form in c["forms"]),
}


_LENGTH = ("target", "low", "high")  # one of them, or several; with `target`, a `tolerance` as well
_NEEDS: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(LENGTHS, ()),
    **dict.fromkeys(("include", "exclude"), ("phrases",)),
    **dict.fromkeys(("starts", "ends", "equals"), ("text",)),
    **{"upper": (), "lower": (), "distinct": (), "bullets": ()},
    **{"wrapped": ("open", "close"), "vocabulary": ("words",), "matches": ("forms",)},
}
"""What a constraint of a kind must say. Lengths and bullets say one thing of several."""
_ONE_OF: Mapping[str, Sequence[str]] = {**dict.fromkeys(LENGTHS, _LENGTH), "bullets": ("count", "items")}
_TEXTS, _LISTS = ("text", "open", "close"), ("phrases", "words", "forms", "items")


def broken(text: str, constraints: Demands) -> list[str]:
    """The kinds of the constraints that a text does not keep."""
    return [str(c["kind"]) for c in constraints if not CHECKS[c["kind"]](text, c)]


def demands_of(query: Mapping[str, Any]) -> Demands:
    """A row's constraints, from its entry or its answer."""
    found = entry_of(query).get("constraints")
    return list(found if found is not None else json.loads(query["answer"]))


def demands_problem(constraints: Any) -> str | None:
    """What is wrong with a list of constraints, or None."""
    if not isinstance(constraints, list) or not constraints:
        return "its constraints are no list"
    return next((problem for c in constraints if (problem := _demand_problem(c))), None)


def _demand_problem(c: Any) -> str | None:
    kind = c.get("kind") if isinstance(c, dict) else None
    if not isinstance(kind, str) or kind not in CHECKS:
        return f"{c!r:.80} is no constraint; kinds are {', '.join(CHECKS)}"
    choice = _ONE_OF.get(kind, ())
    known = {"kind", *_NEEDS[kind], *choice, *(["tolerance"] if "target" in choice and "target" in c else [])}
    if unknown := [key for key in c if key not in known]:
        return f"the constraint {c!r:.80} has {unknown[0]!r:.40}; one of {kind} has {', '.join(sorted(known))}"
    lacking = [key for key in _NEEDS[kind] if key not in c]
    if choice and not any(key in c for key in choice):
        lacking.append(" or ".join(choice))
    if lacking:
        return f"the constraint {c!r:.80} lacks {', '.join(lacking)}"
    wrong = next((key for key in c if key != "kind" and not _fits(key, c[key])), None)
    return wrong and f"in the constraint {c!r:.80}, {wrong} is {_form(wrong)}, not {c[wrong]!r:.40}"


def _fits(key: str, value: Any) -> bool:
    if key in _TEXTS:
        return isinstance(value, str)
    if key in _LISTS:
        return isinstance(value, list) and bool(value) and all(isinstance(text, str) and text for text in value)
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _form(key: str) -> str:
    return "a text" if key in _TEXTS else "a list of texts" if key in _LISTS else "a whole number, 0 or above"


# --- the small problems


def words(rng: random.Random) -> Drawn:
    """So many words of a category, none of the two that are left out."""
    category = rng.choice(list(CATEGORIES))
    out = rng.sample(list(CATEGORIES[category]), 2)
    target = rng.randint(1, 3)
    fit = [word for word in CATEGORIES[category] if word not in out]
    chosen = rng.sample(fit, target + 1)
    demands: Demands = [{"kind": "vocabulary", "words": fit}, {"kind": "distinct"}, {"kind": "words", "target": target}]
    prompt = f"{target} {category} not {' '.join(out)}"
    return _drawn(prompt, " ".join(chosen[:-1]), " ".join(chosen), demands, difficulty=target)


def keywords(rng: random.Random) -> Drawn:
    """A sentence with both words in it."""
    one, other = rng.choice(ANIMALS), rng.choice(COLORS)
    if rng.random() < 0.5:
        other = rng.choice([animal for animal in ANIMALS if animal != one])
        forms = [f"the {one} sees the {other}", f"the {other} sees the {one}"]
    else:
        forms = [f"the {one} is {other}"]
    pair = [one, other]
    rng.shuffle(pair)
    demands: Demands = [{"kind": "include", "phrases": pair}, {"kind": "matches", "forms": forms}]
    return _drawn(f"sentence with {' '.join(pair)}", forms[0], f"the {one} is here", demands)


def avoid(rng: random.Random) -> Drawn:
    """A word of a category that is none of those named."""
    category = rng.choice(list(CATEGORIES))
    out = sample(rng, CATEGORIES[category], 2, 3)
    fit = [word for word in CATEGORIES[category] if word not in out]
    demands: Demands = [
        {"kind": "exclude", "phrases": out},
        {"kind": "vocabulary", "words": fit},
        {"kind": "words", "target": 1},
    ]
    return _drawn(f"one of {category} but {' '.join(out)}", rng.choice(fit), rng.choice(out), demands)


def upper(rng: random.Random) -> Drawn:
    """The words in capitals."""
    text = " ".join(sample(rng, WORDS, 2, 3))
    demands: Demands = [{"kind": "upper"}, {"kind": "equals", "text": text.upper()}]
    return _drawn(f"shout {text}", text.upper(), text, demands)


def bullets(rng: random.Random) -> Drawn:
    """The words as a list, one a line."""
    items = sample(rng, WORDS, 2, 3)
    listed = "\n".join(f"- {item}" for item in items)
    return _drawn(f"list {' '.join(items)}", listed, " ".join(items), [{"kind": "bullets", "items": items}])


def wrapped(rng: random.Random) -> Drawn:
    """The words between two marks."""
    text = " ".join(sample(rng, WORDS, 2, 3))
    name, left, right = rng.choice([("quote", '"', '"'), ("bracket", "[", "]"), ("brace", "{", "}")])
    response = f"{left}{text}{right}"
    demands: Demands = [{"kind": "wrapped", "open": left, "close": right}, {"kind": "equals", "text": response}]
    return _drawn(f"{name} {text}", response, text, demands)


def template(rng: random.Random) -> Drawn:
    """A form filled in, a field a line."""
    animal, color = rng.choice(ANIMALS), rng.choice(COLORS)
    number = rng.randrange(10)
    response = f"name: {animal}\ncolor: {color}\nage: {number}"
    slip = f"name: {animal}\ncolor: {color}"
    demands: Demands = [{"kind": "lines", "target": 3}, {"kind": "equals", "text": response}]
    return _drawn(f"form {animal} {color} {number}", response, slip, demands)


def repeat(rng: random.Random) -> Drawn:
    """The words so many times."""
    text, times = " ".join(sample(rng, WORDS, 1, 2)), rng.randint(2, 3)
    response = " ".join([text] * times)
    slip = " ".join([text] * (times - 1))
    demands: Demands = [{"kind": "words", "target": len(response.split())}, {"kind": "equals", "text": response}]
    return _drawn(f"say {times} times {text}", response, slip, demands, difficulty=times)


def _drawn(prompt: str, response: str, slip: str, demands: Demands, *, difficulty: int = 0) -> Drawn:
    return Drawn(prompt, response, slip, entry={"constraints": demands}, difficulty=difficulty)


DRAWS: Mapping[str, Callable[[random.Random], Drawn]] = {
    draw.__name__: draw for draw in (avoid, bullets, keywords, repeat, template, upper, words, wrapped)
}


class Constraints(Procedural):
    """Constraints that a row lists: words, sentences, characters, lines, include, exclude, upper, lower, starts, ends,
    wrapped, bullets, vocabulary, distinct, equals, matches. As `constraints:NAME`: avoid, bullets, keywords, repeat,
    template, upper, words, wrapped, with problems of their own.
    """

    domain = "instruction_following"

    def __init__(self, member: str = "") -> None:
        if member and member not in DRAWS:
            raise no_such_member("constraints", member, list(DRAWS))
        self.name = f"constraints:{member}" if member else "constraints"
        self.several = member in ("avoid", "words")
        self._draw = DRAWS.get(member)

    def queries(self, size: int, seed: int, *, slips: float = 0.0) -> Iterator[Query]:
        if self._draw is None:
            remedy = f"give rows with `verifier: constraints`, or take {', '.join(f'constraints:{d}' for d in DRAWS)}"
            raise PosttrainError(Problem("'constraints' verifies answers and makes no queries", remedy=remedy))
        return super().queries(size, seed, slips=slips)

    def draw(self, rng: random.Random) -> Drawn:
        assert self._draw is not None
        return self._draw(rng)

    def judge(self, message: ParsedMessage, query: Mapping[str, Any]) -> Verdict:
        failed = broken(message.content, demands_of(query))
        return Verdict(float(not failed), f"breaks {', '.join(failed)}" if failed else "keeps all")

    def gold(self, query: Mapping[str, Any]) -> str:
        return str(entry_of(query).get("gold", ""))

    def entry_problem(self, entry: Mapping[str, Any]) -> str | None:
        """Why a row with this entry cannot be scored, or None."""
        return demands_problem(entry.get("constraints"))

    def problem(self, answer: str) -> str | None:
        """Why a row without an entry cannot be scored, or None."""
        try:
            return demands_problem(json.loads(answer))
        except ValueError:
            return "its answer is no JSON list of constraints"
