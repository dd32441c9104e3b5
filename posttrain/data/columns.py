"""`map:` gives rows new columns: an existing column under another name, or a text filled in from several."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from typing import Any

from posttrain.data.faults import BadRow
from posttrain.data.readers import kind_of
from posttrain.errors import PosttrainError, Problem

Row = dict[str, Any]


def compile_map(mapping: Mapping[str, str], where: str = "map") -> Callable[[Row], Row]:
    r"""A function that adds the mapped columns to a row. It raises BadRow where a row lacks a column.

    A value with braces is a template, `{question}\nAnswer:`, where `{{` and `}}` stand for braces themselves; any
    other value is the name of a column, whatever type that has.

    Raises:
        PosttrainError: a template is malformed; all of them at once.
    """
    makers: dict[str, Callable[[Row], Any]] = {}
    problems: list[Problem] = []
    for new, value in mapping.items():
        try:
            makers[new] = _template(new, value) if "{" in value or "}" in value else _column(new, value)
        except ValueError as error:
            remedy = "write {column} for a column, and {{ or }} for a brace"
            problems.append(Problem(f"the template {value!r} is malformed: {error}", f"{where}.{new}", remedy=remedy))
    if problems:
        raise PosttrainError(problems)
    return lambda row: {**row, **{new: make(row) for new, make in makers.items()}} if makers else row


def _column(new: str, name: str) -> Callable[[Row], Any]:
    return lambda row: _get(row, name, new)


def _template(new: str, template: str) -> Callable[[Row], str]:
    pieces: list[tuple[str, str | None]] = []
    for literal, name, spec, conversion in string.Formatter().parse(template):
        if name is not None and (not name.strip() or spec or conversion or "[" in name or "{" in name):
            raise ValueError(f"{{{name}}} is no column's name")
        pieces.append((literal, name))

    def fill(row: Row) -> str:
        return "".join(literal + (_text(row, name, new) if name is not None else "") for literal, name in pieces)

    return fill


def _get(row: Row, name: str, new: str) -> Any:
    try:
        return row[name]
    except KeyError:
        raise BadRow(f"no column {name!r}, which `map` makes {new!r} from; the row has {', '.join(row)}") from None


def _text(row: Row, name: str, new: str) -> str:
    value = _get(row, name, new)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRow(f"column {name!r}, which `map` writes into {new!r}, is {kind_of(value)}, not text or a number")
    return str(value)
