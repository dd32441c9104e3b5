"""BFCL, the Berkeley function calling leaderboard (data of the package bfcl-eval).

Single-turn categories are marked here by their calls alone; multi-turn ones, where calls act on simulated services, are
played in `bfcl_multi_turn`. In the Java and JavaScript categories every argument is source text of that language. Web
search and memory, which need a search service and an embedding model, are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.evaluation.suites.bfcl_multi_turn import dialogues, play_dialogues
from posttrain.evaluation.suites.bfcl_values import accepted
from posttrain.evaluation.suites.data import present, rows
from posttrain.evaluation.suites.suite import Ask, Item, Marks, Played, Setting, SingleTurn
from posttrain.model.generation import Completion
from posttrain.templates.parsed import ToolCall

TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}  # theirs, in JSON schema's words
LANGUAGES = {"simple_java": "java", "simple_javascript": "javascript"}
WRITTEN = {"java": "Java", "javascript": "JavaScript"}

Call = tuple[str, Any]


class Bfcl(SingleTurn):
    """`accuracy`, in all and by category: right functions with acceptable arguments, or no call where none is right;
    of a dialogue, every service as it should be after every turn.
    """

    name = "bfcl"
    about = "BFCL v4, single-turn and multi-turn categories"
    headline = "accuracy"

    def check(self) -> None:
        for name in ("bfcl", "bfcl_functions", "bfcl_multi_turn"):
            present(name)

    def items(self) -> list[Item]:
        return [*map(_question, rows("bfcl")), *dialogues(_tool)]

    def mark(self, item: Item, completion: Completion) -> Marks:
        calls = [(call.name, call.arguments) for call in completion.message.tool_calls]
        fault = fault_of(calls, item.facts, item.group)
        return Marks({"accuracy": float(fault is None)}, fault or "right")

    def play(self, ask: Ask, items: Sequence[Item], setting: Setting) -> list[Played]:
        several = [item for item in items if "turns" in item.facts]
        single = [item for item in items if "turns" not in item.facts]
        played = super().play(ask, single, setting) if single else []
        played += play_dialogues(ask, several, setting)
        found = {one.item.id: one for one in played}
        return [found[item.id] for item in items]


def _question(row: Mapping[str, Any]) -> Item:
    return Item(
        row["id"],
        [{"role": message["role"], "content": message["content"]} for message in row["question"][0]],
        group=row["category"],
        tools=[_tool(function, LANGUAGES.get(row["category"], "python")) for function in row["function"]],
        facts={"functions": row["function"], "wanted": row["ground_truth"]},
    )


def _tool(function: Mapping[str, Any], language: str = "python") -> dict[str, Any]:
    """A function as tools are given to models."""
    parameters = function["parameters"]
    if language != "python":
        written = {name: _source_text(value, language) for name, value in parameters["properties"].items()}
        parameters = {**parameters, "properties": written}
    told = function.get("description", "")
    if "response" in function:
        told += f" It returns {json.dumps(_translated(function['response']), ensure_ascii=False)}"
    described = {"name": function["name"], "description": told, "parameters": _translated(parameters)}
    return {"type": "function", "function": described}


def _source_text(described: Mapping[str, Any], language: str) -> dict[str, Any]:
    """A parameter that is given as source text."""
    kind = "any type" if described["type"] == "any" else f"type {described['type']}"
    told = f"{described.get('description', '')} A string: {WRITTEN[language]} source text of a value of {kind}"
    if "items" in described:
        told += f" with elements of type {described['items']['type']}"
    if "properties" in described:
        told += f", whose entries are {json.dumps(described['properties'], ensure_ascii=False)}"
    kept = {key: value for key, value in described.items() if key not in ("items", "properties")}
    return {**kept, "type": "string", "description": f"{told}."}


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
    language = LANGUAGES.get(category, "python")
    left = list(calls)
    for one in wanted:  # in any order
        ((name, acceptable),) = one.items()
        faults = [_call_fault(call, functions[name], acceptable, language) for call in left]
        if None not in faults:
            return faults[0]
        del left[faults.index(None)]
    return None


def _call_fault(
    call: Call, function: Mapping[str, Any], acceptable: Mapping[str, list[Any]], language: str
) -> str | None:
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
        if not accepted(value, acceptable[key], described[key], language):
            return f"{name}: {key} is {value!r:.60}, wanted one of {acceptable[key]!r:.80}"
    if missing := [key for key, values in acceptable.items() if key not in arguments and "" not in values]:
        return f"{name}: no {missing[0]!r}"
    return None


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
