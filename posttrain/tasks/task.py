"""What a task is: where queries come from, and the verifier that scores an answer to them."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from posttrain.templates.parsed import ParsedMessage

Query = dict[str, Any]

QUERY_COLUMNS = ("id", "prompt", "answer", "task", "domain", "difficulty", "key", "reasoning", "response", "entry")

RUBBISH = ("", "   ", "zzz", "I do not know.", "\\boxed{}", "\\boxed{zzz}", "<think>", "{}[]()\n\\")


@runtime_checkable
class Task(Protocol):
    """A source of queries with its verifier.

    A task may also have `rewards`, what RL pays for it (rewards by name with weights; default: accuracy alone), and
    `verdict(message, query)`, a `Verdict` of a whole parsed message, for tasks that look at tool calls or say why.

    `score` sees the content of an answer only, never its reasoning: an answer hidden in the reasoning is no answer.
    """

    @property
    def name(self) -> str: ...

    def queries(self, size: int, seed: int, **options: Any) -> Iterator[Query]:
        """`size` rows with the columns `QUERY_COLUMNS`, the same for the same arguments on every machine.

        Raises:
            PosttrainError: an option is unknown or wrong, or the task verifies rows of a file and makes none itself.
                It is raised by this call, not by the first row.
        """
        ...

    def score(self, content: str, query: Mapping[str, Any]) -> float:
        """How right an answer is, from 0 to 1. Never raises for anything that a model may write."""
        ...

    def gold(self, query: Mapping[str, Any]) -> str:
        """Content that must score 1."""
        ...


class Verdict(NamedTuple):
    """How right an answer is, from 0 to 1, and why, in one line."""

    value: float
    reason: str = ""


def verdict_of(task: Task, message: ParsedMessage, query: Mapping[str, Any]) -> Verdict:
    """A task's verdict on a parsed answer. Its reasoning does not count."""
    judged = getattr(task, "verdict", None)
    if judged is not None:
        return Verdict(*judged(message, query))
    value = float(task.score(message.content, query))
    return Verdict(value, f"{_short(message.content)} for {_short(str(query.get('answer', '')))}")


def _short(text: str) -> str:
    one_line = " ".join(text.split())
    return repr(one_line if len(one_line) <= 80 else f"{one_line[:77]}...")


def plain_message(content: str, **parts: Any) -> ParsedMessage:
    """A sound answer without thinking."""
    given = {"reasoning": None, "tool_calls": (), "closed": True, "well_formed": True, "problems": (), **parts}
    return ParsedMessage(content=content, **given)


def make_query(
    *,
    id: str,
    prompt: str | list[dict[str, Any]],
    answer: str,
    task: str,
    domain: str,
    key: str,
    difficulty: int = 0,
    reasoning: str = "",
    response: str = "",
    entry: str = "",
) -> Query:
    """One row of a data set of queries; a prompt given as text becomes one user turn."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return {
        "id": id,
        "prompt": messages,
        "answer": answer,
        "task": task,
        "domain": domain,
        "difficulty": difficulty,
        "key": key,
        "reasoning": reasoning,
        "response": response,
        "entry": entry,
    }


def check_gold(task: Task, query: Mapping[str, Any]) -> list[str]:
    """Check a verifier on one query: the gold answer must score 1 and rubbish 0. Returns what is wrong, in words."""
    gold = task.gold(query)
    problems = []
    if (score := task.score(gold, query)) != 1.0:
        problems.append(f"{query['id']}: the gold answer {gold!r} scores {score:g}, not 1")
    for rubbish in RUBBISH:
        if (score := task.score(rubbish, query)) != 0.0:
            problems.append(f"{query['id']}: {rubbish!r} scores {score:g}, not 0")
    return problems


def normalise(text: str) -> str:
    """Text in the form in which two texts count as the same: NFKC, no case, single spaces."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()


def text_key(text: str) -> str:
    """A key that equal texts share, whatever their case and spacing: 32 hexadecimal digits."""
    return hashlib.blake2b(normalise(text).encode("utf-8", "replace"), digest_size=16).hexdigest()


def derive_seed(*parts: str | int) -> int:
    """A seed below 2**31 from names and numbers, spread so that neighbouring seeds have nothing in common."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) % 2**31
