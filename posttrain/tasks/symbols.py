"""Tasks on short lists of words and digits, as `symbols:NAME`: copying, reversing, sorting, counting, looking up.

Each has one right answer, and it is the whole content.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from posttrain.tasks.procedural import CATEGORIES, WORDS, Drawn, Procedural, exactly, no_such_member, sample
from posttrain.tasks.task import Verdict
from posttrain.templates.parsed import ParsedMessage

PLACES = ("first", "second", "third")


def _digits(rng: random.Random, low: int, high: int) -> list[str]:
    return [str(digit) for digit in rng.sample(range(10), rng.randint(low, high))]


def _other(rng: random.Random, words: list[str], but: str) -> str:
    return rng.choice([word for word in words if word != but])


def copy(rng: random.Random) -> Drawn:
    """The words again: nothing left out, nothing put in."""
    words = sample(rng, WORDS, 2, 4)
    text = " ".join(words)
    return Drawn(f"copy {text}", text, " ".join(words[:-1]), difficulty=len(words))


def reverse(rng: random.Random) -> Drawn:
    """The digits from back to front."""
    digits = _digits(rng, 2, 4)
    answer = " ".join(reversed(digits))
    return Drawn(f"reverse {' '.join(digits)}", answer, " ".join(digits), difficulty=len(digits))


def sort(rng: random.Random) -> Drawn:
    """The digits from the smallest up."""
    digits = _digits(rng, 2, 4)
    ordered = sorted(digits)
    slip = ordered[::-1]
    return Drawn(f"sort {' '.join(digits)}", " ".join(ordered), " ".join(slip), difficulty=len(digits))


def count(rng: random.Random) -> Drawn:
    """How often a word occurs."""
    word, other = rng.sample(list(WORDS), 2)
    places = [rng.random() < 0.5 for _ in range(rng.randint(3, 5))]
    text = " ".join(word if here else other for here in places)
    number = sum(places)
    return Drawn(f"count {word} in {text}", str(number), str((number + 1) % 10), difficulty=len(places))


def largest(rng: random.Random) -> Drawn:
    """The largest digit."""
    digits = _digits(rng, 2, 4)
    top = max(digits)
    return Drawn(f"largest of {' '.join(digits)}", top, _other(rng, digits, top), difficulty=len(digits))


def recall(rng: random.Random) -> Drawn:
    """The digit that stands behind a word."""
    words, digits = rng.sample(list(WORDS), 3), _digits(rng, 3, 3)
    wanted = rng.randrange(3)
    pairs = " ".join(f"{word} {digit}" for word, digit in zip(words, digits, strict=True))
    return Drawn(f"recall {words[wanted]} from {pairs}", digits[wanted], _other(rng, digits, digits[wanted]))


def odd_one(rng: random.Random) -> Drawn:
    """The word that is of another category."""
    same, other = rng.sample(list(CATEGORIES), 2)
    words = rng.sample(list(CATEGORIES[same]), 2)
    odd = rng.choice(CATEGORIES[other])
    mixed = [*words, odd]
    rng.shuffle(mixed)
    return Drawn(f"odd one of {' '.join(mixed)}", odd, rng.choice(words))


def position(rng: random.Random) -> Drawn:
    """The word at a place."""
    words = rng.sample(list(WORDS), 3)
    place = rng.randrange(3)
    return Drawn(f"{PLACES[place]} of {' '.join(words)}", words[place], _other(rng, words, words[place]))


def unique(rng: random.Random) -> Drawn:
    """The words, each once, in the order in which they first come."""
    words = rng.sample(list(WORDS), 2)
    twice = [*words, rng.choice(words)]
    if rng.random() < 0.5:
        twice.append(rng.choice(words))
    return Drawn(f"unique {' '.join(twice)}", " ".join(words), " ".join(twice), difficulty=len(twice))


DRAWS: Mapping[str, Callable[[random.Random], Drawn]] = {
    draw.__name__: draw for draw in (copy, count, largest, odd_one, position, recall, reverse, sort, unique)
}


class Symbols(Procedural):
    """Short lists of words and digits: copy, count, largest, odd_one, position, recall, reverse, sort, unique."""

    domain = "symbols"
    reads_answer = True

    def __init__(self, member: str) -> None:
        if member not in DRAWS:
            raise no_such_member("symbols", member, list(DRAWS))
        self.name = f"symbols:{member}"
        self._draw = DRAWS[member]

    def draw(self, rng: random.Random) -> Drawn:
        return self._draw(rng)

    def judge(self, message: ParsedMessage, query: Mapping[str, Any]) -> Verdict:
        return exactly(message.content, str(query["answer"]))

    def problem(self, answer: str) -> str | None:
        """Why a row of a file with this answer cannot be scored, or None."""
        return None if answer.strip() else "the answer is empty"
