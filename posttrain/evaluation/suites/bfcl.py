"""BFCL, the Berkeley function calling leaderboard: its single-turn categories (data of the package bfcl-eval).

Multi-turn categories act on simulated services that the package brings as programs; they are not played here. Java and
JavaScript, whose values are written as source text, are left out too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.evaluation.suites.data import rows
from posttrain.evaluation.suites.suite import Item, Marks, SingleTurn
from posttrain.model.generation import Completion
from posttrain.templates.parsed import ToolCall

TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}  # theirs, in JSON schema's words
PYTHON = {"string": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list, "dict": dict}

Call = tuple[str, Any]


class Bfcl(SingleTurn):
    """`accuracy`, in all and by category: right functions with acceptable arguments, or no call where none is right."""

    name = "bfcl"
    about = "BFCL v4, single-turn categories"
    headline = "accuracy"
    reads = "bfcl"

    def items(self) -> list[Item]:
        return [
            Item(
                row["id"],
                [{"role": message["role"], "content": message["content"]} for message in row["question"][0]],
                group=row["category"],
                tools=[{"type": "function", "function": _schema(function)} for function in row["function"]],
                facts={"functions": row["function"], "wanted": row["ground_truth"]},
            )
            for row in rows("bfcl")
        ]

    def mark(self, item: Item, completion: Completion) -> Marks:
        calls = [(call.name, call.arguments) for call in completion.message.tool_calls]
        fault = fault_of(calls, item.facts, item.group)
        return Marks({"accuracy": float(fault is None)}, fault or "right")


def _schema(function: Mapping[str, Any]) -> dict[str, Any]:
    """A function as tools are given to models."""
    return {
        "name": function["name"],
        "description": function.get("description", ""),
        "parameters": _translated(function["parameters"]),
    }


def _translated(value: Any) -> Any:
    if isinstance(value, list):
        return [_translated(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: TYPES.get(item, item) if key == "type" and isinstance(item, str) else _translated(item)
        for key, item in value.items()
    }


def fault_of(calls: Sequence[Call], facts: Mapping[str, Any], category: str) -> str | None:
    """What is wrong with the calls, or None."""
    if "irrelevance" in category:
        return f"calls {calls[0][0]!r:.60} where no function is right" if calls else None
    if "relevance" in category:
        return None if calls else "no call"
    wanted = facts["wanted"]
    if len(calls) != len(wanted):
        return f"{len(calls)} calls, wanted {len(wanted)}"
    functions = {function["name"]: function for function in facts["functions"]}
    left = list(calls)
    for one in wanted:  # in any order
        ((name, acceptable),) = one.items()
        faults = [_call_fault(call, functions[name], acceptable) for call in left]
        if None not in faults:
            return faults[0]
        del left[faults.index(None)]
    return None


def _call_fault(call: Call, function: Mapping[str, Any], acceptable: Mapping[str, list[Any]]) -> str | None:
    name, arguments = call
    if name != function["name"]:
        return f"calls {name!r:.60}, wanted {function['name']!r}"
    if not isinstance(arguments, dict):
        return f"{name}: its arguments are no JSON object"
    if missing := [key for key in function["parameters"]["required"] if key not in arguments]:
        return f"{name}: no {missing[0]!r}"
    described = function["parameters"]["properties"]
    for key, value in arguments.items():
        if key not in described or key not in acceptable:
            return f"{name}: {key!r:.60} was not asked for"
        if not accepted(value, acceptable[key], described[key]):
            return f"{name}: {key} is {value!r:.60}, wanted one of {acceptable[key]!r:.80}"
    if missing := [key for key, values in acceptable.items() if key not in arguments and "" not in values]:
        return f"{name}: no {missing[0]!r}"
    return None


def accepted(value: Any, values: Sequence[Any], described: Mapping[str, Any]) -> bool:
    """Whether an argument is one of the acceptable values. "" among them stands for leaving it out.

    Texts are compared without case, spaces and `,./-_*^`; a whole number may stand for a float. A value of another type
    counts only where the acceptable ones have that type (the name of a variable, written as text).
    """
    kind: Any = PYTHON.get(described["type"], str)
    if kind is float and type(value) is int:
        value = float(value)
    known = next((type(each) for each in values if each != ""), None)
    if type(value) is not kind:
        return type(value) is known and value in values
    if kind is list and known is list:
        inner = PYTHON.get(described.get("items", {}).get("type", ""))
        if inner is dict:
            return any(_same_dicts(value, each) for each in values if isinstance(each, list))
        fitting = [each for each in values if isinstance(each, list) and _types_fit(value, each, inner)]
        return bool(fitting) and _plain(value) in [_plain(each) for each in values]
    if kind is dict:
        return any(_same_dict(value, each) for each in values if isinstance(each, dict))
    return _plain(value) in [_plain(each) for each in values] if known is kind else value in values


def _types_fit(value: list[Any], acceptable: list[Any], inner: type | None) -> bool:
    known = next((type(each) for each in acceptable if each != ""), None)
    return inner is None or all(type(each) is inner or type(each) is known for each in value)


def _same_dicts(value: list[Any], wanted: list[Any]) -> bool:
    pairs = list(zip(value, wanted, strict=False))
    return len(value) == len(wanted) and all(isinstance(a, dict) and _same_dict(a, b) for a, b in pairs)


def _same_dict(value: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Every key has one of its acceptable values; keys that may not be left out are there."""
    known = all(key in wanted and _plain(each) in [_plain(w) for w in wanted[key]] for key, each in value.items())
    return known and all(key in value or "" in values for key, values in wanted.items())


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"')
    return [_plain(each) if isinstance(each, str) else each for each in value] if isinstance(value, list) else value


def gold(facts: Mapping[str, Any]) -> list[ToolCall]:
    """Calls that are right: the first acceptable value of every argument that may not be left out."""
    calls = []
    for one in facts["wanted"] or []:
        ((name, acceptable),) = one.items()
        required = next(f for f in facts["functions"] if f["name"] == name)["parameters"]["required"]
        needed = {key: values for key, values in acceptable.items() if key in required or "" not in values}
        kept = {key: next((v for v in values if v != ""), "") for key, values in needed.items()}
        calls.append(ToolCall(name, {key: _first(value) for key, value in kept.items()}))
    return calls


def _first(value: Any) -> Any:
    """A dict of acceptable values with one chosen for each key."""
    if isinstance(value, dict):
        return {key: values[0] for key, values in value.items() if values and "" not in values}
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        return [_first(each) for each in value]
    return value
