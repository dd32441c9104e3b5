"""Values that cross from the answer's process into the judge: plain data only, rebuilt as the judge's own objects.

An object of the answer's own never arrives: it could say that it equals anything. What is no plain data becomes a
reference, by which the judge can ask its process further questions (see `remote`).

The form is JSON. Scalars stand for themselves; everything else is an object with one key that names its type.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing costs more than all of the judge
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Refer = Callable[[Any], dict[str, Any]]
    Resolve = Callable[[dict[str, Any]], Any]

LARGEST_EXACT = 1 << 53


def encode(value: Any, refer: Refer) -> Any:
    """A value as JSON. Subclasses become their base: a Counter crosses as a dict.

    Args:
        refer: makes the reference for a value that is no plain data.

    Raises:
        RecursionError: it is nested too deeply, or contains itself.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, int):
        number = int(value)
        return number if abs(number) < LARGEST_EXACT else {"int": hex(number)}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, list):
        return [encode(item, refer) for item in value]
    for kind, name in ((tuple, "tuple"), (set, "set"), (frozenset, "frozenset")):
        if isinstance(value, kind):
            return {name: [encode(item, refer) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key, refer), encode(item, refer)] for key, item in value.items()]}
    if isinstance(value, bytes | bytearray):
        return {"bytearray" if isinstance(value, bytearray) else "bytes": bytes(value).hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, range):
        return {"range": [encode(part, refer) for part in (value.start, value.stop, value.step)]}
    if type(value).__name__ in _NUMBERS:
        return {type(value).__name__: str(value)}
    return refer(value)


def decode(data: Any, resolve: Resolve) -> Any:
    """The value that JSON stands for.

    Args:
        resolve: what a reference stands for.

    Raises:
        ValueError, TypeError, ArithmeticError, RecursionError: it is nothing that `encode` writes.
    """
    if isinstance(data, list):
        return [decode(item, resolve) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        raise ValueError("not one value")
    ((name, content),) = data.items()
    if name in _COLLECTIONS:
        return _COLLECTIONS[name](decode(item, resolve) for item in content)
    if name == "dict":
        return {decode(key, resolve): decode(item, resolve) for key, item in content}
    if name == "range":
        return range(*(decode(part, resolve) for part in content))
    if name in _SCALARS:
        return _SCALARS[name](content)
    return resolve(data)


_NUMBERS = ("Fraction", "Decimal")  # told by name: to import their modules would cost more than the judge
_COLLECTIONS: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}
_SCALARS: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": lambda parts: complex(*parts),
    "Fraction": lambda text: __import__("fractions").Fraction(text),
    "Decimal": lambda text: __import__("decimal").Decimal(text),
}
