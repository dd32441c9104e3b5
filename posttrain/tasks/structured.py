"""Structured output: one JSON value that keeps a schema, and holds what was asked for."""

from __future__ import annotations

import json
import logging
import math
import random
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

from posttrain.tasks import isolated
from posttrain.tasks.procedural import ANIMALS, COLORS, Drawn, Procedural, entry_of
from posttrain.tasks.schema_worker import validator_of
from posttrain.tasks.task import Verdict
from posttrain.templates.parsed import ParsedMessage

log = logging.getLogger("posttrain")

DEADLINE = 5.0  # CPU-seconds that an answer may be held against its schema
LONGEST = 100_000  # characters
_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?```", re.DOTALL)
RECORD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"enum": list(ANIMALS)},
        "color": {"enum": list(COLORS)},
        "age": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["name", "color", "age"],
    "additionalProperties": False,
}


class NotJson(ValueError):
    """A text that is no JSON value, or more than one."""


def read_json_answer(content: str) -> Any:
    """The one JSON value that an answer consists of, bare or in one fence; repeated keys are refused.

    Raises:
        NotJson: it is none, or there is anything around it.
    """
    text = content.strip()
    if len(text) > LONGEST:
        raise NotJson(f"{len(text)} characters")
    if fenced := _FENCE.fullmatch(text):
        text = fenced[1]
    try:
        return json.loads(text, object_pairs_hook=_no_repeats, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise NotJson(str(error)) from error


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands there twice")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is beyond every number")
    return number


def same_json(one: Any, other: Any) -> bool:
    """Equal as JSON: true is not 1, 1.0 is 1, and the order of keys is nothing."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    return bool(one == other)


def schema_fault(value: Any, schema: Mapping[str, Any]) -> str | None:
    """The first place where a value breaks a JSON schema, or None. It is looked for in a child process.

    Raises:
        isolated.Fault: it took too long, or the schema is broken.
    """
    return cast("str | None", isolated.call("posttrain.tasks.schema_worker:fault", value, schema, deadline=DEADLINE))


class Structured(Procedural):
    """One JSON value: `entry` has the `schema` that it keeps and the `value` that it is, either or both; without an
    entry, `answer` is the value. Its own problems are records of three fields.

    Attributes:
        faults: answers that could not be held against their schema and score 0, counted by kind.
    """

    name = "json"
    domain = "structured_output"

    def __init__(self) -> None:
        self.faults: Counter[str] = Counter()

    def draw(self, rng: random.Random) -> Drawn:
        value = {"name": rng.choice(ANIMALS), "color": rng.choice(COLORS), "age": rng.randrange(10)}
        fields = [str(field) for field in value.values()]
        rng.shuffle(fields)
        response = json.dumps(value)
        slip = json.dumps({"name": value["name"], "color": value["color"]})
        return Drawn(f"json {' '.join(fields)}", response, slip, entry={"schema": RECORD, "value": value})

    def judge(self, message: ParsedMessage, query: Mapping[str, Any]) -> Verdict:
        try:
            value = read_json_answer(message.content)
        except NotJson as error:
            return Verdict(0.0, f"no JSON: {error}"[:200])
        entry = entry_of(query)
        if "schema" in entry and (fault := self._fault(value, entry["schema"])):
            return Verdict(0.0, f"breaks the schema at {fault}")
        if "schema" not in entry or "value" in entry:
            wanted = entry["value"] if "value" in entry else json.loads(query["answer"])
            if not same_json(value, wanted):
                return Verdict(0.0, "another value than was asked for")
        return Verdict(1.0, "valid")

    def _fault(self, value: Any, schema: Mapping[str, Any]) -> str | None:
        try:
            return schema_fault(value, schema)
        except (isolated.Fault, RecursionError) as fault:
            kind = getattr(fault, "kind", "depth")
            if kind == "raised":  # the row's own fault: its schema refers to what is not there
                raise
            self.faults[kind] += 1
            if self.faults[kind] == 1:
                log.warning("json: an answer could not be held against its schema (%s); such answers score 0", fault)
            return f"$: {fault}"

    def gold(self, query: Mapping[str, Any]) -> str:
        entry = entry_of(query)
        return str(entry.get("gold") or (json.dumps(entry["value"]) if "value" in entry else query["answer"]))

    def entry_problem(self, entry: Mapping[str, Any]) -> str | None:
        """Why a row with this entry cannot be scored, or None."""
        from jsonschema.exceptions import SchemaError

        if "schema" not in entry:
            return None if "value" in entry else "its entry has neither `schema` nor `value`"
        if not isinstance(entry["schema"], dict):
            return f"its schema is none: {entry['schema']!r:.80} is no object"
        try:
            validator_of(entry["schema"])
            fault = schema_fault(entry["value"], entry["schema"]) if "value" in entry else None
        except SchemaError as error:
            return f"its schema is none: {error.message}"[:200]
        except isolated.Fault as error:
            return f"its schema cannot be held against anything: {error}"[:200]
        return f"its value breaks its own schema at {fault}" if fault else None

    def problem(self, answer: str) -> str | None:
        """Why a row without an entry cannot be scored, or None."""
        try:
            json.loads(answer)
        except (ValueError, RecursionError) as error:
            return f"its answer is no JSON: {error}"
        return None
