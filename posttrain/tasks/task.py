"""What a task is: where queries come from, and the verifier that scores an answer to them."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

from posttrain.templates.parsed import ParsedMessage

Query = dict[str, Any]

QUERY_COLUMNS = ("id", "prompt", "answer", "task", "domain", "difficulty", "key", "reasoning", "response", "entry")

RUBBISH = ("", "   ", "zzz", "I do not know.", "\\boxed{}", "\\boxed{zzz}", "<think>", "{}[]()\n\\")


@runtime_checkable
class Task(Protocol):
    """A source of queries with its verifier.

    A task may also have `rewards`, what RL pays for it (rewards by name with weights; default: accuracy alone), and
    `verdict(message, query)`, a `Verdict` of a whole parsed message, for tasks that look at tool calls or say why.

    For rows of files it may have `problem(answer)` and `entry_problem(entry)`, and `reads_answer = True` where an entry
    does not stand in for the answer (`row_problem`).

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


def row_problem(task: Task, answer: str, entry: str) -> str | None:
    """Why a task cannot score a row of a file, or None, as its `entry_problem` and its `problem` say.

    Args:
        entry: JSON, or "". Where there is one, the answer is looked at only if the task `reads_answer` all the same.
    """
    check_entry, check_answer = getattr(task, "entry_problem", None), getattr(task, "problem", None)
    if entry:
        try:
            value = json.loads(entry)
        except (ValueError, RecursionError) as error:
            return f"its `entry` is no JSON: {error}"
        if not isinstance(value, dict):
            return "its `entry` is an object, or the text of one"
        if check_entry is not None and (problem := check_entry(value)):
            return str(problem)
    if check_answer is not None and (not entry or getattr(task, "reads_answer", False)):
        return cast("str | None", check_answer(answer))
    return None


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


def visible(text: str) -> str:
    """Text without its invisible characters (zero-width ones, marks of direction), apostrophes all straight."""
    shown = text if text.isascii() else "".join(c for c in text if unicodedata.category(c) != "Cf")
    return re.sub("[\u2019\u02bc]", "'", shown)


def text_key(text: str) -> str:
    """A key that equal texts share, whatever their case and spacing: 32 hexadecimal digits."""
    return hashlib.blake2b(normalise(text).encode("utf-8", "replace"), digest_size=16).hexdigest()


def derive_seed(*parts: str | int) -> int:
    """A seed below 2**31 from names and numbers, spread so that neighbouring seeds have nothing in common."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) % 2**31
