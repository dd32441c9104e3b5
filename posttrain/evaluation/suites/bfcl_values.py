"""Which arguments BFCL accepts: a value of the right type that equals one of the acceptable ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.evaluation.suites.bfcl_source_values import JAVA, JAVASCRIPT, read_java, read_javascript

PYTHON: dict[str, type] = {
    **{"string": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list, "dict": dict},
    "any": str,
}
TYPES = {"python": PYTHON, "java": JAVA, "javascript": JAVASCRIPT}
LISTS = ("array", "tuple", "Array", "ArrayList")


def accepted(value: Any, values: Sequence[Any], described: Mapping[str, Any], language: str = "python") -> bool:
    """Whether an argument is one of the acceptable values. "" among them stands for leaving it out.

    Texts are compared without case, spaces and `,./-_*^`; a whole number may stand for a float. A value of another type
    counts only where the acceptable ones have that type (the name of a variable, written as text). In Java and
    JavaScript the argument is source text.
    """
    types, name = TYPES[language], described["type"]
    kind = types.get(name, str)
    inner = types.get(described.get("items", {}).get("type", "")) if name in LISTS else None
    if language != "python":
        if not isinstance(value, str):
            return False
        read = read_java if language == "java" else read_javascript
        value = read(value, name, described.get("items", {}).get("type"))
    elif kind is float and type(value) is int:
        value = float(value)
    return _fits(value, values, kind, inner)


def _fits(value: Any, values: Sequence[Any], kind: Any, inner: type | None) -> bool:
    known = next((type(each) for each in values if each != ""), None)
    if type(value) is not kind:
        return type(value) is known and value in values
    if inner and not any(not isinstance(each, list) or _types_fit(value, each, inner) for each in values):
        return False
    if known not in (None, kind):
        return value in values
    if kind is dict:
        return any(_same_dict(value, each) for each in values if isinstance(each, dict))
    if kind is list and inner is dict:
        return any(_same_dicts(value, each) for each in values if isinstance(each, list | str))
    if kind is list:
        return _plain_list(value) in [_plain_list(each) for each in values if isinstance(each, list | str)]
    return _plain(value) in [_plain(each) for each in values]


def _types_fit(value: list[Any], acceptable: list[Any], inner: type) -> bool:
    known = next((type(each) for each in acceptable if each != ""), None)
    return all(type(each) in (inner, known) for each in value)


def _same_dicts(value: list[Any], wanted: Sequence[Any]) -> bool:
    pairs = list(zip(value, wanted, strict=False))
    return len(value) == len(wanted) and all(
        isinstance(a, dict) and isinstance(b, dict) and _same_dict(a, b) for a, b in pairs
    )


def _same_dict(value: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Every key has one of its acceptable values; keys that may not be left out are there."""
    known = all(key in wanted and _plain(each) in [_plain(w) for w in wanted[key]] for key, each in value.items())
    return known and all(key in value or "" in values for key, values in wanted.items())


def _plain_list(value: Sequence[Any]) -> list[Any]:
    return [_plain(each) for each in value]


def _plain(value: Any) -> Any:
    return re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"') if isinstance(value, str) else value
