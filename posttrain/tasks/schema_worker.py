"""Runs in a child process (`isolated`): holds a JSON value against a schema. A pattern may search without end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any


def validator_of(schema: Mapping[str, Any]) -> Any:
    """The validator of a schema, which is asked for nothing outside itself. Raises SchemaError where it is none."""
    return _validator(json.dumps(schema, sort_keys=True))


@lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    from jsonschema.validators import validator_for
    from referencing import Registry

    value = json.loads(schema)
    cls = validator_for(value)
    cls.check_schema(value)
    return cls(value, registry=Registry())  # the default one fetches what `$ref` names


def fault(value: Any, schema: Mapping[str, Any]) -> str | None:
    """The first place where a value breaks a schema, or None."""
    try:
        error = next(iter(validator_of(schema).iter_errors(value)), None)
    except (OverflowError, RecursionError) as error:  # of numbers and depths that only a model writes
        return f"$: {error}"[:200]
    return None if error is None else f"{error.json_path}: {error.message}"[:200]
