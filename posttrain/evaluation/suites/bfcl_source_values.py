"""Values written as Java or JavaScript source text, read as BFCL reads them.

It knows literals, one form of array, list, map and object each, and no nesting but in JavaScript's arrays of arrays.
A comma parts elements even inside quotes. Text that is none of this stands for itself, as a variable's name does.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

JAVA: dict[str, type] = {
    **{"byte": int, "short": int, "integer": int, "long": int, "float": float, "double": float, "boolean": bool},
    **{"char": str, "String": str, "any": str, "Array": list, "ArrayList": list, "HashMap": dict},
}
JAVASCRIPT: dict[str, type] = {
    **{"integer": int, "float": float, "Bigint": int, "Boolean": bool, "String": str, "any": str},
    **{"array": list, "dict": dict},
}

WHOLE = r"-?\d+"
DECIMAL = rf"{WHOLE}(?:\.\d+)?"
SCIENTIFIC = rf"{DECIMAL}(?:[eE][+-]?\d+)?"

Literals = dict[str, tuple[str, Callable[[str], Any]]]
"""Of a type: the pattern of its literals, and their value."""


def _true(text: str) -> bool:
    return text == "true"


JAVA_LITERALS: Literals = {
    **{name: (WHOLE, int) for name in ("byte", "short", "integer")},
    "long": (rf"{WHOLE}[lL]", lambda text: int(text[:-1])),
    "float": (rf"{SCIENTIFIC}[fF]", lambda text: float(text[:-1])),
    "double": (SCIENTIFIC, float),
    "boolean": ("true|false", _true),
}
JAVASCRIPT_LITERALS: Literals = {
    "integer": (WHOLE, int),
    "float": (DECIMAL, float),
    "Bigint": (rf"{WHOLE}n", lambda text: int(text[:-1])),
    "Boolean": ("true|false", _true),
}


def read_java(text: str, kind: str, inner: str | None = None) -> Any:
    """The value of Java source text.

    Args:
        kind: the type that it is to have, a key of `JAVA`.
        inner: the elements' type, of an Array or ArrayList.
    """
    if kind == "Array":
        found = re.search(r"new\s+\w+\[\]\s*\{(.*?)\}", text)
        return [_java_element(each, inner) for each in _parts(found[1]) if each] if found else text
    if kind == "ArrayList":
        return _java_list(text, inner)
    if kind == "HashMap":
        return _java_map(text)
    return _literal(text, JAVA_LITERALS.get(kind))


def _literal(text: str, known: tuple[str, Callable[[str], Any]] | None) -> Any:
    return known[1](text) if known and re.fullmatch(known[0], text) else text


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _java_element(text: str, inner: str | None) -> Any:
    return _guessed_java(text) if inner is None else read_java(text, inner)


def _java_list(text: str, inner: str | None) -> Any:
    new = r"new\s+ArrayList<\w*>"
    if found := re.search(rf"{new}\(Arrays\.asList\((.+?)\)\)", text):
        elements = _parts(found[1])
    elif (body := _body(rf"{new}\(\)\s*\{{\{{", "}}", text)) is not None:
        elements = [each.strip() for each in re.findall(r"add\(([^)\n]+)\)", body)]
    else:
        return [] if re.search(rf"{new}\(\)", text) else text
    return [each[1:-1] if inner in ("char", "String") else _java_element(each, inner) for each in elements]


def _java_map(text: str) -> Any:
    new = r"new\s+HashMap<.*?>\s*\(\)"
    if (body := _body(rf"{new}\s*\{{", "}", text)) is not None:
        return {key: _guessed_java(value) for key, value in re.findall(r'put\("([^"\n]*)",\s*([^)\n]*)\)', body)}
    return {} if re.search(new, text) else text


def _body(head: str, end: str, text: str) -> str | None:
    """What stands between a pattern and the next `end`; None where either is not there."""
    if not (found := re.search(head, text)):
        return None
    body, closed, _ = text[found.end() :].partition(end)
    return body if closed else None


def _guessed_java(text: str) -> Any:
    """The value of an element whose type is not told."""
    text = text.strip()
    if text.startswith('"') and text.endswith('"'):
        return text[1:-1]
    for kind in ("boolean", "long", "float"):
        if (value := read_java(text, kind)) != text:
            return value
    return _number(text)


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def read_javascript(text: str, kind: str, inner: str | None = None) -> Any:
    """The value of JavaScript source text. `kind`, `inner`: as for Java, keys of `JAVASCRIPT`."""
    if kind == "array":
        return _javascript_array(text.strip(), inner)
    if kind == "dict":
        return _javascript_object(text.strip())
    return _unquoted(text) if kind == "String" else _literal(text, JAVASCRIPT_LITERALS.get(kind))


def _unquoted(text: str) -> str:
    return text[1:-1] if any(text.startswith(mark) and text.endswith(mark) for mark in "\"'") else text


def _guessed_javascript(text: str) -> Any:
    text = text.strip()
    if text in ("true", "false"):
        return text == "true"
    bare = _unquoted(text)
    return _number(text) if bare == text else bare


def _javascript_array(text: str, inner: str | None) -> Any:
    rows = r"\[[^]\n]*\]\s*(?:,\s*\[[^]\n]*\]\s*)*"  # no pattern here can be made to backtrack for long
    if found := re.match(rf"\[\s*{rows}\]|new\s+Array\(\s*{rows}\)", text):
        inside = [each.strip() for each in re.findall(r"\[(.*?)\]", found[0])]
        inside[0] = inside[0].removeprefix("[")
        return [[_guessed_javascript(each) for each in row.split(",")] for row in inside]
    found = re.match(r"\[(.*?)\]|new\s+Array\((.*?)\)", text)
    if not found:
        return text
    listed = (found[1] if found[1] is not None else found[2]).strip()
    elements = _parts(listed) if listed else []
    return [_guessed_javascript(each) if inner is None else read_javascript(each, inner) for each in elements]


def _javascript_object(text: str) -> Any:
    found = re.match(r"\{(.*?)\}", text)
    if not found:
        return text
    entries: dict[str, Any] = {}
    rest = found[1]
    while ":" in rest:
        key, _, rest = rest.partition(":")
        rest = rest.lstrip()
        end = re.search(r",\s*(?=[^,]+:)", rest)  # the comma before the next key
        value, rest = (rest[: end.start()], rest[end.end() :]) if end else (rest, "")
        entries[key.strip().strip("'\"")] = _javascript_entry(value.strip())
    return entries


def _javascript_entry(text: str) -> Any:
    if text.startswith("[") and text.endswith("]"):
        return _javascript_array(text, None)
    if text.startswith("{") and text.endswith("}"):
        return _javascript_object(text)
    return _guessed_javascript(text.strip("'\""))
