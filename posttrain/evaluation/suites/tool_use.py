"""ToolUse: intent, format and parameters of tool calls, in one turn, many turns, many steps (after the Qwen3 report).

The report's data (Table 22) are not public; these are our own, in `tool_dialogues`. No tool is run: results are
scripted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.evaluation.suites.suite import Ask, Item, Marks, Played, Setting, every_mode
from posttrain.evaluation.suites.tool_dialogues import dialogues
from posttrain.model.generation import Completion
from posttrain.templates.families import Family
from posttrain.templates.parsed import ToolCall
from posttrain.templates.render import Message


class ToolUse:
    """Metrics of every step of a dialogue: `intent` (the right functions, or none), `format` (calls that can be read,
    with what the schema requires), `parameters` (every argument right); and `success`, the whole dialogue. After a step
    that went wrong the rest is not played and counts as wrong.
    """

    name = "tool-use"
    about = "ToolUse, scripted dialogues with tools"
    headline = "success"

    def settings(self, family: Family, budgets: Sequence[int]) -> list[Setting]:
        return every_mode(family, budgets)

    def items(self) -> list[Item]:
        return dialogues()

    def play(self, ask: Ask, items: Sequence[Item], setting: Setting) -> list[Played]:
        states = [_State(item, list(item.prompt)) for item in items]
        for step in range(max((len(item.facts["steps"]) for item in items), default=0)):
            going = [state for state in states if state.sound and step < len(state.item.facts["steps"])]
            completions = ask([setting.prompt(list(state.messages), state.item.tools) for state in going])
            for state, completion in zip(going, completions, strict=True):
                state.take(step, completion)
        return [Played(state.item, state.messages, state.said, state.marks()) for state in states]


@dataclass
class _State:
    """One dialogue under way."""

    item: Item
    messages: list[Message]
    said: list[Completion] = field(default_factory=list)
    scores: list[tuple[float, float, float]] = field(default_factory=list)
    fault: str = ""

    @property
    def sound(self) -> bool:
        return not self.fault

    def take(self, number: int, completion: Completion) -> None:
        """Mark a step, and answer it as the script says."""
        step = self.item.facts["steps"][number]
        self.said.append(completion)
        self.messages.append(completion.message.to_message())
        intent, form, right, self.fault = judged(step, completion, self.item.tools or [])
        self.scores.append((intent, form, right))
        if self.sound:
            self.messages += [{"role": "tool", "content": json.dumps(result)} for result in step.get("results", [])]
            if step.get("then"):
                self.messages.append({"role": "user", "content": step["then"]})

    def marks(self) -> Marks:
        lost = len(self.item.facts["steps"]) - len(self.scores)
        steps = [*self.scores, *[(0.0, 0.0, 0.0)] * lost]
        intent, form, parameters = (list(each) for each in zip(*steps, strict=True))
        scores: dict[str, float | list[float]] = {"success": float(self.sound and not lost)}
        return Marks({**scores, "intent": intent, "format": form, "parameters": parameters}, self.fault or "as wanted")


def judged(
    step: Mapping[str, Any], completion: Completion, tools: Sequence[Mapping[str, Any]]
) -> tuple[float, float, float, str]:
    """Intent, format, parameters, and what is wrong or ""."""
    message = completion.message
    if completion.truncated:
        return 0.0, 0.0, 0.0, "cut off"
    wanted = step["calls"]
    names = sorted(call.name for call in message.tool_calls)
    intent = names == sorted(call["name"] for call in wanted)
    form = message.well_formed and all(_readable(call, tools) for call in message.tool_calls)
    given = sorted(json.dumps([c.name, c.arguments], sort_keys=True) for c in map(_plain, message.tool_calls))
    expected = sorted(json.dumps([c["name"], _lower(c["arguments"])], sort_keys=True) for c in wanted)
    right = intent and form and given == expected
    fault = "" if right else f"calls {given or 'nothing'}, wanted {expected or 'nothing'}"
    if right and not wanted and not _says(message.content, step.get("says", [])):
        fault = f"does not say {step['says']}"
    return float(intent), float(form), float(right), fault[:300]


def _readable(call: ToolCall, tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a call's arguments are an object with everything that its schema requires and nothing unknown."""
    schema = next((tool["function"] for tool in tools if tool["function"]["name"] == call.name), None)
    if schema is None or not isinstance(call.arguments, dict):
        return False
    parameters = schema["parameters"]
    return set(parameters["required"]) <= set(call.arguments) <= set(parameters["properties"])


def _plain(call: ToolCall) -> ToolCall:
    return ToolCall(call.name, _lower(call.arguments))


def _lower(value: Any) -> Any:
    """Texts without case and outer space; 5.0 as 5."""
    if isinstance(value, dict):
        return {str(key): _lower(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_lower(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value.strip().casefold() if isinstance(value, str) else value


def _says(content: str, words: Sequence[str]) -> bool:
    return all(word.casefold() in content.casefold() for word in words)
