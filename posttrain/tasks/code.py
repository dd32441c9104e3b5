"""The verifier `code`: the program of an answer, run in the sandbox against the row's tests.

A row's `answer` says what the program has to do:

- Python tests: asserts, `test...` functions, `Test...` classes or unittest cases that name what the answer defines; or
- JSON: `{"inputs": [...], "outputs": [...]}` or `[[input, output], ...]`, standard input and expected standard output.

A row's `entry` may be JSON with `entry_point` (what the answer defines; a stub of that name in the tests gives way),
`prefix` (code before the answer's, as a prompt of HumanEval) and `solution` (code that is right).
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.sandbox.isolation import missing
from posttrain.sandbox.job import Program, Runs, UnitTests
from posttrain.sandbox.pool import Sandbox
from posttrain.sandbox.unit_tests import parse_tests, run_anything
from posttrain.tasks.task import Query, Verdict
from posttrain.templates.parsed import ParsedMessage

log = logging.getLogger("posttrain")

LONGEST = 100_000  # characters of a program

_FENCED = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)


class Code:
    """1 for a program that passes every test, else 0. Makes no queries of its own.

    Attributes:
        faults: programs that could not be judged and scored 0, counted by status.

    Raises:
        PosttrainError: bubblewrap is not installed.
    """

    name = "code"
    reads_answer = True

    def __init__(self) -> None:
        if problems := missing():
            raise PosttrainError(problems)
        self.faults: Counter[str] = Counter()

    def queries(self, size: int, seed: int, **options: Any) -> Iterator[Query]:
        remedy = "give the rows by `path` or `dataset`, with `verifier: code`"
        raise PosttrainError(Problem("'code' verifies programs and makes no queries", remedy=remedy))

    def score(self, content: str, query: Mapping[str, Any]) -> float:
        return self._judged(content, query).value

    def verdict(self, message: ParsedMessage, query: Mapping[str, Any]) -> Verdict:
        return self._judged(message.content, query)

    def _judged(self, content: str, query: Mapping[str, Any]) -> Verdict:
        code = extract(content)
        if not code.strip():
            return Verdict(0.0, "no program")
        if len(code) > LONGEST:
            return Verdict(0.0, f"a program of {len(code)} characters")
        verdict = self._sandbox.judge(program(code, query))
        if verdict.status == "error":
            self.faults[verdict.status] += 1
            if self.faults[verdict.status] == 1:
                log.warning("code: %s could not be judged (%s); such answers score 0", query["id"], verdict.reason)
        return Verdict(float(verdict.passed), f"{verdict.status}: {verdict.reason}")

    def gold(self, query: Mapping[str, Any]) -> str:
        return f"```python\n{_entry(query).get('solution') or query['response']}\n```"

    def problem(self, answer: str) -> str | None:
        """Why tests cannot judge anything, or None. A loader asks this of every row.

        Raises:
            PosttrainError: the sandbox does not hold here; so it is told when rows are read, before anything trains.
        """
        _ = self._sandbox
        if not answer.strip():
            return "the answer is empty: it has to be tests, or inputs and outputs"
        try:
            if pairs := _pairs(answer):
                return None if pairs else "there are no inputs and outputs"
        except ValueError as error:
            return str(error)
        if (tests := parse_tests(answer)) is None:
            return f"the tests {answer[:60]!r} are no Python"
        if not run_anything(tests):
            return f"of the tests {answer[:60]!r} nothing is run: asserts, or what is called test..., are"
        return None if re.search(r"\bassert|\bcheck\(", answer) else f"the tests {answer[:60]!r} assert nothing"

    def entry_problem(self, entry: Mapping[str, Any]) -> str | None:
        """Why a row with this entry cannot be judged, or None. Raises as `problem`."""
        _ = self._sandbox
        wrong = [name for name in ("entry_point", "prefix", "solution") if not isinstance(entry.get(name, ""), str)]
        return f"its entry's {wrong[0]} is no text" if wrong else None

    @cached_property
    def _sandbox(self) -> Sandbox:
        return Sandbox()


def extract(content: str) -> str:
    """The program in an answer: its last block of Python, or all of it where nothing is fenced; "" if that is none."""
    fenced = [(language.lower(), block) for language, block in _FENCED.findall(content)]
    for named in (("python", "py", "python3"), ("",)):
        if blocks := [block for language, block in fenced if language in named]:
            return str(blocks[-1])
    return content if "```" not in content and parse_tests(content) is not None else ""


def program(code: str, query: Mapping[str, Any]) -> Program:
    """A row's job for the sandbox."""
    entry = _entry(query)
    if prefix := entry.get("prefix"):
        code = f"{prefix}\n{code}"
    pairs = _pairs(query["answer"])
    return Program(code, Runs(pairs) if pairs else UnitTests(query["answer"], entry.get("entry_point", "")))


def _entry(query: Mapping[str, Any]) -> dict[str, Any]:
    entry = json.loads(query["entry"]) if query.get("entry") else {}
    return entry if isinstance(entry, dict) else {}


def _pairs(answer: str) -> tuple[tuple[str, str], ...]:
    """Inputs and outputs; () where the answer is no JSON, and so Python. ValueError where they do not fit."""
    try:
        given = json.loads(answer)
    except ValueError:
        return ()
    if isinstance(given, dict):
        inputs, outputs = given.get("inputs"), given.get("outputs")
        if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
            raise ValueError("`inputs` and `outputs` are two lists of the same length")
        given = list(zip(inputs, outputs, strict=True))
    fits = isinstance(given, list) and all(len(pair) == 2 and all(isinstance(t, str) for t in pair) for pair in given)
    if not fits or not given:
        raise ValueError("inputs and outputs are pairs of text")
    return tuple((given, expected) for given, expected in given)
