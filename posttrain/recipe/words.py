"""The words that problems of a recipe are told in: places, values, and what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

Loc = tuple[str | int, ...]

CASUAL_BOOLEANS = {"yes": True, "y": True, "on": True, "no": False, "n": False, "off": False}


def dotted(loc: Iterable[str | int]) -> str:
    """A place as a user would write it after `--set`: `stages.cold_start.train.learning_rate`."""
    return ".".join(str(part) for part in loc)


def show(value: Any) -> str:
    """A value as YAML has it, short enough for one line."""
    match value:
        case None:
            text = "null"
        case bool():
            text = str(value).lower()
        case str():
            text = repr(value)
        case _:
            text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def describe(value: Any) -> str:
    """What a value is, in a user's words: `the text 'many'`, `a list`."""
    match value:
        case None:
            return "empty (null)"
        case bool():
            return show(value)
        case str():
            return f"the text {show(value)}"
        case int() | float():
            return f"the number {show(value)}"
        case dict():
            return "a mapping"
        case _:
            return "a list"


def either(options: Iterable[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    *head, last = list(dict.fromkeys(options))
    return f"{', '.join(head)} or {last}" if head else last


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant, or None."""
    candidates = {str(option).lower().replace("-", "_"): str(option) for option in known}
    wanted = str(name).lower().replace("-", "_")
    near = difflib.get_close_matches(wanted, candidates, n=1, cutoff=0.6 if len(wanted) > 3 else 0.5)
    near = near or [key for key in candidates if sorted(key) == sorted(wanted)]  # letters in another order
    if near:
        return candidates[near[0]]
    # A part of the name, as `lr_scheduler` for `lr_scheduler_type`: only where it can mean one thing.
    inside = [option for key, option in candidates.items() if len(wanted) > 3 and (wanted in key)]
    return inside[0] if len(inside) == 1 else None


def did_you_mean(name: str, known: Iterable[str], *, most: int = 16) -> str:
    """A remedy for an unknown name: the nearest known one, or all of them where they are few."""
    known = [str(option) for option in known]
    near = nearest(name, known)
    if near is not None:
        return f"did you mean `{near}`?"
    if not known:
        return ""
    return (
        f"known: {', '.join(known)}" if len(known) <= most else f"none of the {len(known)} known names is close to it"
    )


def mend(value: Any, wanted: str) -> str:
    """How to write a value of another type, where it is plain what was meant. `wanted` is one of the words below."""
    if wanted == A_NUMBER and isinstance(value, str) and _is_number(value):
        return f"write {value.strip()} without quotes"
    if wanted == WHOLE and isinstance(value, str) and value.strip().lstrip("+-").isdigit():
        return f"write {value.strip()} without quotes"
    if wanted == WHOLE and isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    if wanted == YES_NO and isinstance(value, str) and value.lower() in (*CASUAL_BOOLEANS, "true", "false"):
        return f"write {show(CASUAL_BOOLEANS.get(value.lower(), value.lower() == 'true'))}, without quotes"
    if wanted == TEXT and isinstance(value, bool | int | float):
        return f'put it in quotes: "{show(value)}"'
    if wanted.startswith("a list") and not isinstance(value, dict | list | None):
        return f"write [{show(value)}]"
    return ""


WHOLE, A_NUMBER, YES_NO, TEXT = "a whole number", "a number", "true or false", "text"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
