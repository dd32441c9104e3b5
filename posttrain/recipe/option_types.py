"""Whether a value of a recipe fits the type of a library's option, and the type in a user's words."""

from __future__ import annotations

import ast
import re
from typing import Any

from posttrain.recipe import words
from posttrain.recipe.option_fields import OptionField, literal_values, type_name, union_members

PLAIN = {"int": words.WHOLE, "float": words.A_NUMBER, "bool": words.YES_NO, "str": words.TEXT}
LISTS = ("list", "List", "tuple", "Tuple", "set", "Sequence", "Iterable")
MAPPINGS = ("dict", "Dict", "Mapping")


def mismatch(option: OptionField, value: Any) -> list[str]:
    """What was expected, in words, where the value does not fit the option; [] where it fits."""
    if value is None and option.default in ("None", ""):
        return []
    members = union_members(option.type)
    if not any(_fits(member, value) for member in members):
        # Where an enumeration or `choices` stands behind a text, its values say more than "text".
        listed = _listed(option) if option.choices else []
        return [word for member in members for word in _words(member) if not (listed and word == words.TEXT)] + listed
    if option.choices and isinstance(value, str) and value not in option.choices:
        return _listed(option)
    return []


def choices_of(option: OptionField) -> list[str]:
    """The texts an option may be, where they are known."""
    literals = [value for member in union_members(option.type) for value in literal_values(member)]
    return [value for value in (*option.choices, *literals) if isinstance(value, str)]


def _listed(option: OptionField) -> list[str]:
    if len(option.choices) > 12:
        return [f"one of {type_name(union_members(option.type)[0])}'s {len(option.choices)} values"]
    return [words.show(choice) for choice in option.choices]


def _fits(member: ast.expr, value: Any) -> bool:
    name = type_name(member)
    match name:
        case "None":
            return value is None
        case "int":
            return type(value) is int
        case "float":
            return type(value) in (int, float)
        case "bool":
            return type(value) is bool
        case "str":
            return isinstance(value, str)
        case "Any" | "object":
            return True
        case "Literal":
            return any(_is_literal(literal, value) for literal in literal_values(member))
    if name in LISTS:
        return isinstance(value, list) and _all_fit(_parameters(member)[:1], value)
    if name in MAPPINGS:
        return isinstance(value, dict) and _all_fit(_parameters(member)[1:], value.values())
    # A class of the library: an enumeration takes its text, a config class a mapping; the real check sees the rest.
    return isinstance(value, str | dict | list)


def _parameters(member: ast.expr) -> list[ast.expr]:
    if not isinstance(member, ast.Subscript):
        return []
    return list(member.slice.elts) if isinstance(member.slice, ast.Tuple) else [member.slice]


def _all_fit(types: list[ast.expr], values: Any) -> bool:
    return not types or all(any(_fits(member, value) for member in union_members(types[0])) for value in values)


def _is_literal(literal: Any, value: Any) -> bool:
    if type(literal) is not type(value):
        return False
    if isinstance(literal, str) and "[" in literal:  # a placeholder in the text: "pissa_niter_[number of iters]"
        return re.fullmatch(re.sub(r"\\\[.*?\\\]", ".+", re.escape(literal)), value) is not None
    return bool(literal == value)


def _words(member: ast.expr) -> list[str]:
    name = type_name(member)
    if name in PLAIN:
        return [PLAIN[name]]
    if name == "None":
        return ["null"]
    if name == "Literal":
        return [words.show(value) for value in literal_values(member)]
    inner = [word for parameter in _parameters(member)[-1:] for word in _words(parameter)]
    if name in LISTS:
        return [f"a list ({inner[0]} each)" if inner else "a list"]
    if name in MAPPINGS:
        return ["a mapping"]
    return [f"a {name}"]
