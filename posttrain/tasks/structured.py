"""Structured output: one JSON value that keeps a schema, and holds what was asked for."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from posttrain.tasks.procedural import ANIMALS, COLORS, Drawn, Procedural, entry_of
from posttrain.tasks.task import Verdict
from posttrain.templates.parsed import ParsedMessage

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
        return json.loads(text, object_pairs_hook=_no_repeats, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise NotJson(str(error)) from error


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands there twice")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def same_json(one: Any, other: Any) -> bool:
    """Equal as JSON: true is not 1, 1.0 is 1, and the order of keys is nothing."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    return bool(one == other)


@lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    from jsonschema.validators import validator_for

    value = json.loads(schema)
    cls = validator_for(value)
    cls.check_schema(value)
    return cls(value)


def schema_fault(value: Any, schema: Mapping[str, Any]) -> str | None:
    """The first place where a value breaks a JSON schema, or None. Raises jsonschema's SchemaError for no schema."""
    error = next(iter(_validator(json.dumps(schema, sort_keys=True)).iter_errors(value)), None)
    if error is None:
        return None
    return f"{error.json_path}: {error.message}"[:200]


class Structured(Procedural):
    """One JSON value: `entry` has the `schema` that it keeps and the `value` that it is, either or both; without an
    entry, `answer` is the value. Its own problems are records of three fields.
    """

    name = "json"
    domain = "structured_output"

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
        if "schema" in entry and (fault := schema_fault(value, entry["schema"])):
            return Verdict(0.0, f"breaks the schema at {fault}")
        if "schema" not in entry or "value" in entry:
            wanted = entry["value"] if "value" in entry else json.loads(query["answer"])
            if not same_json(value, wanted):
                return Verdict(0.0, "another value than was asked for")
        return Verdict(1.0, "valid")

    def gold(self, query: Mapping[str, Any]) -> str:
        entry = entry_of(query)
        return str(entry.get("gold") or (json.dumps(entry["value"]) if "value" in entry else query["answer"]))

    def entry_problem(self, entry: Mapping[str, Any]) -> str | None:
        """Why a row with this entry cannot be scored, or None."""
        from jsonschema.exceptions import SchemaError

        if "schema" not in entry:
            return None if "value" in entry else "its entry has neither `schema` nor `value`"
        try:
            fault = schema_fault(entry["value"], entry["schema"]) if "value" in entry else None
            _validator(json.dumps(entry["schema"], sort_keys=True))
        except SchemaError as error:
            return f"its schema is none: {error.message}"[:200]
        return f"its value breaks its own schema at {fault}" if fault else None

    def problem(self, answer: str) -> str | None:
        """Why a row without an entry cannot be scored, or None."""
        try:
            json.loads(answer)
        except ValueError as error:
            return f"its answer is no JSON: {error}"
        return None
