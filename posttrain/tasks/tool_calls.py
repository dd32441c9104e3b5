"""Tool calls: which function, with which arguments, in which order. They are compared, never run."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.tasks.procedural import ANIMALS, COLORS, FOODS, THINGS, Drawn, Procedural, entry_of
from posttrain.tasks.structured import same_json
from posttrain.tasks.task import Verdict, plain_message
from posttrain.templates.families import get_family
from posttrain.templates.parse import parse
from posttrain.templates.parsed import ParsedMessage, ToolCall

Call = Mapping[str, Any]  # {"name": ..., "arguments": {...}}


def written(calls: Sequence[Call]) -> str:
    """Calls as Qwen3 writes them."""
    family = get_family("qwen3")
    return "\n".join(f"{family.tool_call_open}\n{json.dumps(call)}\n{family.tool_call_close}" for call in calls)


def call_fault(call: ToolCall, wanted: Call) -> str | None:
    """What is wrong with a call: its name, an argument that is missing, of another value or not asked for."""
    if call.name != wanted["name"]:
        return f"calls {call.name[:40]!r}, wanted {wanted['name']!r}"
    if not isinstance(call.arguments, dict):
        return f"{call.name}: its arguments are no JSON object"
    given, needed = call.arguments, wanted.get("arguments", {})
    for key in [*needed, *(key for key in given if key not in needed)]:
        if key not in given:
            return f"{call.name}: no {key!r}"
        if key not in needed:
            return f"{call.name}: {key[:40]!r} was not asked for"
        if not same_json(given[key], needed[key]):
            return f"{call.name}: {key} is {given[key]!r:.40}, wanted {needed[key]!r:.40}"
    return None


def calls_fault(calls: Sequence[ToolCall], wanted: Sequence[Call], *, ordered: bool = True) -> str | None:
    """What is wrong with several calls, or None. Every wanted one is there once, and no other."""
    if len(calls) != len(wanted):
        return f"{len(calls)} calls, wanted {len(wanted)}"
    if ordered:
        return next((fault for pair in zip(calls, wanted, strict=True) if (fault := call_fault(*pair))), None)
    left = list(calls)
    for one in wanted:
        match = next((call for call in left if call_fault(call, one) is None), None)
        if match is None:
            return f"no call {one['name']}({json.dumps(one.get('arguments', {}))[:80]})"
        left.remove(match)
    return None


class ToolCalls(Procedural):
    """Tool calls by name, arguments and order. `answer` is a JSON list of {"name", "arguments"}; an `entry` may hold it
    as `calls`, with `ordered: false` where the order is nothing. [] means that no tool is to be called.
    """

    name = "tool_calls"
    domain = "agent"

    def draw(self, rng: random.Random) -> Drawn:
        number = rng.randint(2, 9)
        kind = rng.randrange(3)
        arguments: dict[str, Any]
        if kind == 0:
            thing, color = rng.choice(THINGS), rng.choice(COLORS)
            prompt, name, arguments = f"paint the {thing} {color}", "paint", {"what": thing, "color": color}
        elif kind == 1:
            animal = rng.choice(ANIMALS)
            prompt, name, arguments = f"move the {animal} {number}", "move", {"what": animal, "by": number}
        else:
            food = rng.choice(FOODS)
            prompt, name, arguments = f"buy {number} {food}", "buy", {"what": food, "count": number}
        wanted = {"name": name, "arguments": arguments}
        slip = {"name": name, "arguments": {"what": arguments["what"]}}
        answer = json.dumps([wanted])
        return Drawn(prompt, written([wanted]), written([slip]), answer=answer, entry={"calls": [wanted]})

    def judge(self, message: ParsedMessage, query: Mapping[str, Any]) -> Verdict:
        entry = entry_of(query)
        wanted = entry["calls"] if "calls" in entry else json.loads(query["answer"])
        if set(message.problems) & {"broken_tool_call", "unclosed_tool_call", "arguments_not_object"}:
            return Verdict(0.0, "a broken call")
        fault = calls_fault(message.tool_calls, wanted, ordered=bool(entry.get("ordered", True)))
        return Verdict(0.0 if fault else 1.0, fault or "the calls wanted")

    def score(self, content: str, query: Mapping[str, Any]) -> float:
        parsed = parse(content or "", get_family("qwen3"))
        message = plain_message(parsed.content, tool_calls=parsed.tool_calls, problems=parsed.problems)
        return self.verdict(message, query).value

    def gold(self, query: Mapping[str, Any]) -> str:
        entry = entry_of(query)
        calls = entry["calls"] if "calls" in entry else json.loads(query["answer"])
        return written(calls) if calls else "no call is needed"

    def entry_problem(self, entry: Mapping[str, Any]) -> str | None:
        """Why a row with this entry cannot be scored, or None."""
        return _calls_problem(entry["calls"]) if "calls" in entry else None

    def problem(self, answer: str) -> str | None:
        """Why a row without an entry cannot be scored, or None."""
        try:
            return _calls_problem(json.loads(answer))
        except (ValueError, RecursionError) as error:
            return f"its answer is no JSON: {error}"


def _calls_problem(calls: Any) -> str | None:
    sound = isinstance(calls, list) and all(
        isinstance(call, dict) and isinstance(call.get("name"), str) and isinstance(call.get("arguments", {}), dict)
        for call in calls
    )
    return None if sound else "the calls wanted are no list of {name, arguments}"
