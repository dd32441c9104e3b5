"""What pydantic says of a recipe, told in a user's words, at the places a user wrote."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Union

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from posttrain.recipe import words
from posttrain.recipe.kinds import STAGE_KINDS, recipe_model, stage_class
from posttrain.recipe.schema import Recipe
from posttrain.recipe.stage import Fault
from posttrain.recipe.trainer_options import option_names
from posttrain.recipe.words import Loc, describe, did_you_mean, dotted, either, mend, nearest, show

EXPECTED = {
    "int_type": words.WHOLE,
    "int_parsing": words.WHOLE,
    "int_from_float": words.WHOLE,
    "float_type": words.A_NUMBER,
    "float_parsing": words.A_NUMBER,
    "finite_number": "a finite number",
    "bool_type": words.YES_NO,
    "bool_parsing": words.YES_NO,
    "string_type": words.TEXT,
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "mapping_type": "a mapping",
    "dataclass_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "none_required": "empty",
}
BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
    "multiple_of": ("multiple_of", "a multiple of"),
}


def validate(value: Any) -> tuple[Recipe | None, list[Fault]]:
    """A recipe from its value, or all that is wrong with it.

    JSON mode and strict: a list may become a tuple and text a path, but true is no number and "3" no integer.
    """
    try:
        return recipe_model().model_validate_json(json.dumps(value), strict=True), []
    except ValidationError as error:
        return None, list(schema_faults(error, value))


def schema_faults(error: ValidationError, value: Any) -> list[Fault]:
    """The faults of a validation error, one for each thing that is wrong.

    pydantic names in a location, beside keys of the input, the member of a union it tried (`sft`, `str`,
    `TrainedTokenizer`), and reports every member that failed. Here the members are taken out and told as one.
    """
    plain: list[Fault] = []
    unions: dict[Loc, dict[str, list[tuple[Loc, ErrorDetails]]]] = {}
    for details in error.errors(include_url=False):
        loc, member = _input_loc(details, value)
        if member is None:
            plain.append(_fault(loc, details, value))
        else:
            at, label = member
            unions.setdefault(at, {}).setdefault(label, []).append((loc, details))
    for at, members in unions.items():
        plain += _union_faults(at, members, value)
    # A required key that is missing because it is misspelt is one mistake, told at the unknown key.
    unknown = [fault.loc for fault in plain if fault.what.startswith("unknown key")]
    meant = {(*loc[:-1], nearest(str(loc[-1]), _known_keys(loc[:-1], value))) for loc in unknown}
    return [fault for fault in plain if not (fault.what.endswith("is missing") and fault.loc in meant)]


def _input_loc(details: ErrorDetails, value: Any) -> tuple[Loc, tuple[Loc, str] | None]:
    """The place in the input, and (place, name) of the first union member in pydantic's location."""
    loc: list[str | int] = []
    member: tuple[Loc, str] | None = None
    node, parts = value, details["loc"]
    for index, part in enumerate(parts):
        kind_tag = index == 2 and parts[0] == "stages" and part in STAGE_KINDS and _kind(node) == part
        key = _key(node, part)
        if kind_tag or part == "[key]":
            continue
        if key is not None:
            loc.append(key)
            node = node[key]
        elif index == len(parts) - 1 and details["type"] == "missing":
            loc.append(part)
        elif member is None:
            member = tuple(loc), str(part)
    return tuple(loc), member


def _key(node: Any, part: str | int) -> Any:
    """The key of `node` that pydantic's `part` means (it saw JSON, where every key is text), or None."""
    if isinstance(node, list):
        return part if isinstance(part, int) and part < len(node) else None
    if isinstance(node, dict):
        return next((key for key in node if key == part or str(key) == part), None)
    return None


def _kind(node: Any) -> Any:
    return node.get("kind") if isinstance(node, dict) else None


def _union_faults(at: Loc, members: Mapping[str, list[tuple[Loc, ErrorDetails]]], value: Any) -> list[Fault]:
    """A value that fits no member of a union: the faults of the member it comes closest to."""
    deeper = [errors for errors in members.values() if any(len(loc) > len(at) for loc, _ in errors)]
    other = [errors for errors in members.values() if errors[0][1]["type"] not in (*EXPECTED, "literal_error")]
    closest = min(deeper or other, key=len, default=None)
    if closest is not None:
        return [_fault(loc, details, value) for loc, details in closest]
    wanted = [word for errors in members.values() for _, details in errors for word in _wanted(details)]
    return [_mismatch(at, wanted, _get(value, at))]


def _fault(loc: Loc, details: ErrorDetails, value: Any) -> Fault:
    kind, context = details["type"], details.get("ctx", {})
    given, name = _get(value, loc), dotted(loc)
    if kind == "missing":
        return Fault(loc, f"`{name}` is missing", remedy=f"give `{loc[-1]}:`")
    if kind == "extra_forbidden":
        return Fault(loc, f"unknown key `{loc[-1]}`" + _below(loc), remedy=_meant(loc, value))
    if kind in EXPECTED or kind == "literal_error":
        return _mismatch(loc, _wanted(details), given)
    if kind in BOUNDS:
        key, phrase = BOUNDS[kind]
        return Fault(loc, f"`{name}` must be {phrase} {context[key]:g}, not {show(given)}")
    if kind == "union_tag_invalid" or kind == "union_tag_not_found":
        return _unknown_kind(loc, given)
    if kind in ("too_short", "string_too_short"):
        return Fault(loc, f"`{name}` is empty", remedy=f"give at least {context['min_length']}")
    if kind in ("too_long", "string_too_long"):
        return Fault(loc, f"`{name}` is too long: at most {context['max_length']} entries")
    if kind == "string_pattern_mismatch":
        remedy = "use letters, digits, `-`, `_` and `.`, a letter or digit first" if loc == ("name",) else ""
        return Fault(loc, f"`{name}` cannot be {show(given)}", why=f"it must match {context['pattern']}", remedy=remedy)
    if kind == "invalid_key":
        return Fault(loc, f"the key `{loc[-1]}`{_below(loc)} is no text", remedy="put it in quotes")
    return Fault(loc, f"`{name}`: {_said(details)}" if name else _said(details))


def _said(details: ErrorDetails) -> str:
    return details["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")


def _mismatch(loc: Loc, wanted: list[str], given: Any) -> Fault:
    choices = [word[1:-1] for word in wanted if word.startswith("'")]
    remedy = next((text for word in wanted if (text := mend(given, word))), "")
    if not remedy and isinstance(given, str) and (near := nearest(given, choices)):
        remedy = f"did you mean `{near}`?"
    what = dotted(loc) or "the recipe"
    return Fault(loc, f"`{what}` must be {either(wanted)}, not {describe(given)}", remedy=remedy)


def _wanted(details: ErrorDetails) -> list[str]:
    if details["type"] == "literal_error":
        return re.findall(r"'[^']*'|[^\s,']+(?=,| or |$)", details["ctx"]["expected"].replace(" or ", ", "))
    return [EXPECTED.get(details["type"], details["type"])]


def _unknown_kind(loc: Loc, stage: Any) -> Fault:
    """A stage without a kind, or of a kind nobody knows."""
    known = either(f"`{kind}`" for kind in STAGE_KINDS)
    if not isinstance(stage, dict):
        return Fault(loc, f"`{dotted(loc)}` must be a mapping, not {describe(stage)}", remedy="give it a `kind:`")
    if "kind" not in stage:
        hint = nearest("kind", stage)
        near = f", not `{hint}:`" if hint else ""
        return Fault(loc, f"`{dotted(loc)}.kind` is missing", remedy=f"give `kind:`{near}: {known}")
    kind = stage["kind"]
    near_kind = nearest(kind, STAGE_KINDS) if isinstance(kind, str) else None
    remedy = f"did you mean `{near_kind}`?" if near_kind else ""
    return Fault((*loc, "kind"), f"`{dotted(loc)}.kind` must be {known}, not {describe(kind)}", remedy=remedy)


def _below(loc: Loc) -> str:
    return f" under `{dotted(loc[:-1])}:`" if len(loc) > 1 else ""


def _meant(loc: Loc, value: Any) -> str:
    """A remedy for an unknown key: one level wrong inside a stage, or misspelt."""
    key, known = str(loc[-1]), _known_keys(loc[:-1], value)
    if len(loc) == 3 and loc[0] == "stages" and nearest(key, known) is None:
        options = option_names(stage_class(_kind(_get(value, loc[:-1]))).trainer_config)
        if key in options:
            return "it is an option of the trainer: write it under the stage's `train:`"
        known = [*known, *(f"train.{name}" for name in [nearest(key, options)] if name)]
    return did_you_mean(key, known)


def _known_keys(loc: Loc, value: Any) -> list[str]:
    """The keys that may stand at a place."""
    keys: list[str] = []
    for model in _models_at(loc, value):
        keys += [field.alias or name for name, field in model.model_fields.items()]
    return keys


def _models_at(loc: Loc, value: Any) -> list[type[BaseModel]]:
    """The pydantic models that what stands at a place may be."""
    annotations: list[Any] = [Recipe]
    for depth, part in enumerate(loc):
        if depth == 1 and loc[0] == "stages":
            annotations = [stage_class(kind) for kind in [_kind(_get(value, loc[:2]))] if kind in STAGE_KINDS]
        else:
            annotations = [inner for annotation in annotations for inner in _inside(annotation, str(part))]
    return [model for annotation in annotations for model in _members(annotation) if _is_model(model)]


def _inside(annotation: Any, key: str) -> list[Any]:
    """The annotations of what stands under `key` in a value of this annotation."""
    found: list[Any] = []
    for member in _members(annotation):
        if _is_model(member):
            fields = {field.alias or name: field.annotation for name, field in member.model_fields.items()}
            found += [fields[key]] if key in fields else []
        elif (arguments := typing.get_args(member)) and typing.get_origin(member) is not typing.Literal:
            found.append(arguments[-1] if arguments[-1] is not Ellipsis else arguments[0])
    return found


def _members(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [member for argument in typing.get_args(annotation) for member in _members(argument)]
    return [annotation]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _get(value: Any, loc: Loc) -> Any:
    for part in loc:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return None
    return value
