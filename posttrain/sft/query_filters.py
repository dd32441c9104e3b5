"""The query filters of the long-CoT cold start (Qwen3 report, section 4.1), and domains annotated and balanced.

Dropped: what is not easily verifiable, what asks several questions at once, what a model answers without thinking.
A filter looks at a query's row (`tasks.task.QUERY_COLUMNS`); thresholds are the recipe's, as the report gives none.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from posttrain.data.funnel import Drop
from posttrain.errors import PosttrainError
from posttrain.recipe.endpoint import EndpointSpec
from posttrain.recipe.schema import Share, Spec

Query = Mapping[str, Any]


class NotSolvedWithoutThinking(Spec):
    """Drop what a model answers correctly without chain of thought: nothing is learned from thinking about it."""

    model: str | EndpointSpec = Field(
        default="start",
        description="start, base, teacher, a stage, a model directory (./...), a hub id, or a served model",
    )
    samples: int = Field(default=1, ge=1, description="answers tried a query, without thinking")
    at_most: Share = Field(default=0.0, description="share of them that may be right for the query to stay")
    max_new_tokens: int = Field(default=256, gt=0, description="of such an answer")
    batch_size: int = Field(default=64, gt=0, description="answers generated at once")


class BalanceDomains(Spec):
    """Annotate the domain of queries without one, and cap what the large domains give."""

    ratio: float = Field(default=1.0, gt=0.0, description="most queries of a domain, over the median domain's number")


def _switch(value: Any) -> Any:
    return {} if value is True else None if value is False else value


class QueryFilters(Spec):
    """`filters.queries` of a recipe, in the order in which they are applied. Off unless asked for."""

    verifiable: bool = Field(
        default=False, description="drop queries whose verifier refuses their reference or accepts rubbish"
    )
    single_question: bool = Field(default=False, description="drop queries that ask several questions")
    distinct: bool = Field(default=False, description="drop queries whose key stood before: each problem is asked once")
    not_solved_without_thinking: Annotated[NotSolvedWithoutThinking | None, BeforeValidator(_switch)] = Field(
        default=None, description="drop queries that a model answers without thinking"
    )
    balance_domains: Annotated[BalanceDomains | None, BeforeValidator(_switch)] = Field(
        default=None, description="cap the large domains"
    )


def question_of(query: Query) -> str:
    """The text of a query's last user turn."""
    users = [message.get("content") or "" for message in query["prompt"] if message["role"] == "user"]
    return str(users[-1]) if users else ""


_RUBBISH = ("", "zzz", "I do not know.")

_FREE_TEXT = re.compile(
    r"\b(?:write|compose|draft|generate|create|produce)\b(?:\s+\w+){0,4}?\s+"
    r"(?:essay|story|poem|letter|e-?mail|article|blog|speech|song|lyrics|dialogue|script|review|report|paragraph|summary|slogan)s?\b"
    r"|\b(?:summari[sz]e|paraphrase|rewrite|brainstorm|role-?play|discuss|give (?:your|an) opinion|what do you think)\b"
    r"|\b(?:prove|show) that\b|写一(?:篇|首|封|段)|证明",
    re.IGNORECASE,
)


def not_verifiable(query: Query, get_task: Callable[[str], Any]) -> Drop | None:
    """Why a query cannot easily be verified; None where its own verifier accepts the reference and refuses rubbish.

    Args:
        get_task: the task of a name (`tasks.registry.get_task`).
    """
    name = query.get("task") or ""
    if not name:
        return Drop("no_verifier", "the query names no task that could score it")
    if not (query.get("answer") or query.get("entry")):
        return Drop("no_reference", "neither a reference answer nor an entry for the verifier")
    free = _FREE_TEXT.search(question_of(query))
    if free is not None and not query.get("entry"):
        return Drop("free_text", f"asks for text that has no one right answer ({free[0]!r})")
    try:
        task = get_task(str(name))
    except PosttrainError as error:
        return Drop("no_verifier", str(error))
    gold = task.gold(query)
    if (score := task.score(gold, query)) < 1.0:
        return Drop("reference_refused", f"the reference {gold!r} scores {score:g}, not 1")
    for rubbish in _RUBBISH:
        if (score := task.score(rubbish, query)) >= 0.5:
            return Drop("rubbish_accepted", f"{rubbish!r} scores {score:g}")
    return None


_PART = re.compile(
    r"(?:^|[\s;,])(?:\(([a-h]|i{1,3}|iv|[1-9])\)|(?:part|question|q)\s*([a-h1-9])\b[.:)]?|([a-h1-9])[.)]\s)",
    re.IGNORECASE | re.MULTILINE,
)
_ALSO = re.compile(
    r"\b(?:also|additionally|furthermore|moreover|in addition)\b,?\s+"
    r"(?:find|determine|compute|calculate|state|what|how|give|explain)\b"
    r"|\band\s+(?:what|how many|how much|who|when|where|which|why)\b",
    re.IGNORECASE,
)
_ASKS = re.compile(
    r"[?？]|\b(?:find|determine|compute|calculate|evaluate|solve|how \w+|what (?:is|are|was))\b",
    re.IGNORECASE,
)
_ONE_OF = re.compile(r"\b(?:which of|choose|select|one of|the following|options?)\b|选项|下列", re.IGNORECASE)


def several_questions(query: Query) -> Drop | None:
    """Why a query asks several questions; None where it asks one. Lettered choices are one question."""
    text = question_of(query)
    marks = len(re.findall(r"[^?？\s][?？]+(?=\s|$|[^\w])", text))
    if marks > 1:
        return Drop("question_marks", f"{marks} questions end in a question mark")
    labels = {(match[1] or match[2] or match[3]).lower() for match in _PART.finditer(text)}
    parts = labels >= {"a", "b"} or labels >= {"1", "2"} or labels >= {"i", "ii"}
    if parts and not _ONE_OF.search(text):
        asked = [piece for piece in _PART.split(text) if piece and _ASKS.search(piece)]
        if len(asked) > 1:
            return Drop("numbered_parts", f"parts {', '.join(sorted(labels))}")
    also = _ALSO.search(text)
    if also is not None and _ASKS.search(text[: also.start()]):
        return Drop("asks_again", f"goes on with {also[0].strip()!r}")
    return None


# Words of each domain, and signs that need no word borders.
_DOMAINS = {
    "code": (
        "python java javascript function program algorithm sql regex compile array linked list binary tree code stdin",
        r"```|c\+\+|\bdef \w+\(|print\(",
    ),
    "logic": (
        "puzzle knight knights knave knaves liar liars deduce premise premises conclusion sudoku clue clues logic",
        r"truth-teller|if and only if|exactly one of",
    ),
    "stem": (
        "velocity acceleration force joule joules newton newtons voltage circuit molar mole moles reaction acid "
        "atom atoms electron electrons photon enzyme cell cells dna protein temperature pressure wavelength physics",
        r"\b\d+ ?(?:kg|m/s|mol|volts?|ohms?|°C|kPa)\b",
    ),
    "math": (
        "integer integers equation polynomial triangle circle prime probability sum product divisor remainder angle "
        "matrix derivative integral solve percent",
        r"\$[^$]+\$|\\(?:frac|sqrt|sum|int)|\d\s*[-+*/^=×÷]\s*\d|how (?:many|much)",
    ),
}
_DOMAIN_PATTERNS = {
    domain: re.compile(rf"\b(?:{'|'.join(words.split())})\b|{signs}", re.IGNORECASE)
    for domain, (words, signs) in _DOMAINS.items()
}


def annotated_domain(query: Query) -> str:
    """The domain whose vocabulary a query uses most (code, logic, stem, math), or general.

    A stated rule in place of the report's annotation by a model: it costs nothing, and is used only where the data do
    not say (`domains_of`).
    """
    text = question_of(query)
    found = {domain: len(pattern.findall(text)) for domain, pattern in _DOMAIN_PATTERNS.items()}
    best = max(found, key=lambda domain: found[domain])
    return best if found[best] else "general"


def domains_of(queries: Iterable[Query]) -> list[str]:
    """The domain of each query: its own column, or annotated where that is empty or the same for all of them."""
    own, annotated = [], []
    for query in queries:
        own.append(str(query.get("domain") or ""))
        annotated.append(annotated_domain(query))
    if len(set(own)) < 2:
        return annotated
    return [said or found for said, found in zip(own, annotated, strict=True)]


def balanced(domains: Sequence[str], spec: BalanceDomains, seed: int) -> list[int]:
    """Places of the queries that stay, domains taking turns so that any first part of them is balanced too.

    A domain gives at most `ratio` times the (lower) median domain's number, drawn from the seed.
    """
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, domain in enumerate(domains):
        places[domain].append(place)
    sizes = sorted(len(members) for members in places.values())
    if not sizes:
        return []
    cap = max(1, int(spec.ratio * sizes[(len(sizes) - 1) // 2]))
    rng = random.Random(seed)
    drawn = {domain: rng.sample(members, min(cap, len(members))) for domain, members in sorted(places.items())}
    return [members[turn] for turn in range(cap) for members in drawn.values() if turn < len(members)]
