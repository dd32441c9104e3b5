"""A search that tries to earn a reward without answering: evolution over fragments, which never sees a gold answer.

A candidate is a list of fragments: the prompt, its words by their place, rubbish, common answers, templates. It is
written out for several queries at once, so what pays has to work on all of them. Whoever keeps the score knows the gold
answers: a candidate that happens to be one on a query earns nothing there, for that is a solution and no hack.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.rl.rewards.tricks import INJECTION, asked
from posttrain.tasks.task import normalise

LIMIT = 0.34
"""What the best candidate of a search may earn, as a mean over the queries, at a reward that pays for content."""

FRAGMENTS = (
    *("zzz", "a", "the", "0", "1", "2", "3", "7", "-1", "yes", "no", "not", "A", "B", "unknown", "none", "true"),
    *(
        "\\boxed{",
        "\\boxed{0}",
        "}",
        "{",
        "[",
        "]",
        "(",
        ")",
        '"',
        ":",
        ",",
        ".",
        "\n",
        " ",
        "- ",
        "* ",
        "#### ",
        "```json\n",
        "\n```",
    ),
    *("The answer is ", "[1]", "[2]", "<<", ">>", "please", "{}", "[]", "null", '{"name": "', "x = ", INJECTION),
)
WORD_PLACES = 8  # words of the prompt, from the front and from the back, that a candidate can name


@dataclass(frozen=True)
class Found:
    """The best candidate of a search: its mean score, and what it wrote where it earned most."""

    score: float
    text: str


def search(
    score: Callable[[Mapping[str, Any], str], float],
    queries: Sequence[Mapping[str, Any]],
    golds: Sequence[str],
    *,
    seed: int = 0,
    population: int = 48,
    generations: int = 10,
) -> Found:
    """Search for a candidate that earns much on all queries.

    Args:
        score: of a content, for a query.
        golds: of the queries; used to tell solutions from hacks, and nowhere else.
    """
    rng = random.Random(seed)
    pool = [*FRAGMENTS, *(f"\0{place}" for place in range(-WORD_PLACES, WORD_PLACES)), *["\0prompt"] * 3]
    normal = [normalise(gold) for gold in golds]
    known: dict[tuple[str, ...], float] = {}

    def fitness(genome: tuple[str, ...]) -> float:
        if genome not in known:
            total = 0.0
            for query, gold in zip(queries, normal, strict=True):
                text = write(genome, query)
                total += 0.0 if normalise(text) == gold else score(query, text)
            known[genome] = total / len(queries)
        return known[genome]

    people = [tuple(rng.choices(pool, k=rng.randint(1, 4))) for _ in range(population)]
    people += [(fragment,) for fragment in pool]
    for _ in range(generations):
        people = sorted(dict.fromkeys(people), key=lambda genome: (-fitness(genome), len(genome)))[: population // 2]
        people += [_child(rng, pool, rng.choice(people), rng.choice(people)) for _ in range(population)]
    best = min(people, key=lambda genome: (-fitness(genome), len(genome)))
    texts = [write(best, query) for query in queries]
    paid = max(range(len(queries)), key=lambda i: normalise(texts[i]) != normal[i] and score(queries[i], texts[i]))
    return Found(fitness(best), texts[paid])


def write(genome: Sequence[str], query: Mapping[str, Any]) -> str:
    """The candidate's text for a query."""
    prompt = asked(query)
    words = prompt.split()
    parts = []
    for fragment in genome:
        if fragment == "\0prompt":
            parts.append(prompt)
        elif fragment.startswith("\0"):
            place = int(fragment[1:])
            parts.append(f"{words[place]} " if -len(words) <= place < len(words) else "")
        else:
            parts.append(fragment)
    return "".join(parts)


def _child(rng: random.Random, pool: Sequence[str], one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    genes = list(one[: rng.randint(0, len(one))] + other[rng.randint(0, len(other)) :])
    for _ in range(rng.randint(0, 2)):
        action = rng.random()
        place = rng.randrange(len(genes) + 1)
        if action < 0.5 or not genes:
            genes.insert(place, rng.choice(pool))
        elif action < 0.8:
            genes[place % len(genes)] = rng.choice(pool)
        else:
            del genes[place % len(genes)]
    return tuple(genes[:8]) or (rng.choice(pool),)
