"""`--set stages.NAME.train.learning_rate=1e-6`: values put over those of the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.recipe.source import parse_yaml
from posttrain.recipe.words import Loc, describe, did_you_mean, dotted

NAMED = ("stages", "data")  # what stands below these is the user's own name: it must exist before a part of it is set


@dataclass(frozen=True)
class Override:
    """One `--set`: `value` is put at `loc`."""

    loc: Loc
    value: Any
    text: str

    @property
    def where(self) -> str:
        return f"--set {self.text}"


def parse_overrides(texts: Sequence[str]) -> tuple[list[Override], list[Problem]]:
    """`KEY=VALUE` each: a dotted key (a number counts in a list from 0), and a value read as YAML."""
    overrides: list[Override] = []
    problems: list[Problem] = []
    for text in texts:
        where = f"--set {text}"
        key, equals, value_text = text.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            problems.append(
                Problem("not of the form KEY=VALUE", where, remedy="write stages.NAME.train.learning_rate=1e-6")
            )
            continue
        try:
            source = parse_yaml(value_text, where)
            value = source.value()
        except PosttrainError as error:
            problems += [Problem(problem.what, where, problem.why, problem.remedy) for problem in error.problems]
            continue
        problems += [Problem(problem.what, where, problem.why, problem.remedy) for problem in source.problems]
        overrides.append(Override(tuple(parts), value, text))
    return overrides, problems


def apply_overrides(value: Any, overrides: Sequence[Override]) -> tuple[Any, list[Override], list[Problem]]:
    """Put overrides into a value.

    Returns:
        The value (a copy where it differs); the overrides applied, with numbers for places in lists; what is wrong with
        the others.
    """
    applied: list[Override] = []
    problems: list[Problem] = []
    for override in overrides:
        try:
            loc = _checked(value, override)
        except PosttrainError as error:
            problems += error.problems
            continue
        value = _put(value, loc, override.value)
        applied.append(Override(loc, override.value, override.text))
    return value, applied, problems


def _checked(value: Any, override: Override) -> Loc:
    """The override's place, with numbers for places in lists. Raises PosttrainError where nothing can be put there."""
    loc: list[str | int] = []
    node = value
    for depth, part in enumerate(map(str, override.loc)):
        if isinstance(node, list):
            if not (part.isdigit() and int(part) < len(node)):
                what = f"`{dotted(loc)}` is a list of {len(node)}: {part!r} is no place in it"
                raise PosttrainError(Problem(what, override.where, remedy=f"set the whole list: {dotted(loc)}=[...]"))
            loc.append(int(part))
            node = node[int(part)]
            continue
        if node is not None and not isinstance(node, dict):
            what = f"`{dotted(loc)}` is {describe(node)}: nothing can be set below it"
            raise PosttrainError(Problem(what, override.where))
        known = node or {}
        if part not in known and depth == 1 and loc[0] in NAMED and len(override.loc) > 2:
            what = f"there is no `{part}` under `{loc[0]}:`"
            raise PosttrainError(Problem(what, override.where, remedy=did_you_mean(part, known)))
        loc.append(part)
        node = known.get(part)
    return tuple(loc)


def _put(value: Any, loc: Loc, new: Any) -> Any:
    if not loc:
        return new
    head, rest = loc[0], loc[1:]
    if isinstance(value, list) and isinstance(head, int):
        return [_put(item, rest, new) if index == head else item for index, item in enumerate(value)]
    mapping = value or {}
    return {**mapping, head: _put(mapping.get(head), rest, new)}
