"""JSON by the interpreter's own C code.

A judge starts for every program, and the module `json` imports regular expressions: half of the judge's start-up.
"""

from __future__ import annotations

from _json import encode_basestring_ascii, make_encoder, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def _unknown(value: Any) -> Any:
    raise TypeError(f"a {type(value).__name__} is no JSON")


class _Context:
    strict = True
    object_hook = object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}.__getitem__
    memo: dict[str, str] = {}  # noqa: RUF012  the scanner clears it


_scan: Callable[[str, int], tuple[Any, int]] = make_scanner(_Context)  # type: ignore[arg-type]
_encode = make_encoder(None, _unknown, encode_basestring_ascii, None, ":", ",", False, False, True)


def loads(text: str) -> Any:
    """Raises ValueError for what is no JSON."""
    try:
        value, end = _scan(text, 0)
    except StopIteration:
        raise ValueError("no JSON") from None
    if end != len(text):
        raise ValueError("more than JSON")
    return value


def dumps(value: Any) -> str:
    return "".join(_encode(value, 0))
