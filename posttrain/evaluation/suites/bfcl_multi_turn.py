"""BFCL's multi-turn categories: dialogues in which a model acts on simulated services until it has done as asked.

They are played as the package's harness plays them: in each turn the model may call, see what its calls say, and call
again, up to `STEPS` times; an answer without calls ends the turn. In `miss_func` a function is withheld until a later
turn, in `miss_param` something has to be asked for, in `long_context` the services are filled up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.evaluation.suites.data import rows, services_directory
from posttrain.evaluation.suites.suite import Ask, Item, Marks, Played, Setting
from posttrain.model.generation import Completion
from posttrain.tasks import isolated
from posttrain.templates.render import Message

STEPS = 20  # with calls, in a turn
DEADLINE = 20.0  # CPU-seconds for all calls of a dialogue
_WORKER = "posttrain.evaluation.suites.bfcl_services:"

Call = dict[str, Any]


def dialogues(tool: Callable[[Mapping[str, Any]], dict[str, Any]]) -> list[Item]:
    """All items.

    Args:
        tool: makes a tool's schema of a function as the package describes it.

    Raises:
        PosttrainError: the data are not there.
    """
    described = {
        row["class"]: {**row, "tools": [tool(function) for function in row["functions"]]}
        for row in rows("bfcl_functions")
    }
    return [_item(row, described) for row in rows("bfcl_multi_turn")]


def _item(row: Mapping[str, Any], described: Mapping[str, Mapping[str, Any]]) -> Item:
    tools = [tool for name in row["involved_classes"] for tool in described[name]["tools"]]
    later: dict[str, list[Any]] = {}
    for turn, names in row["missed_function"].items():
        later[turn] = [next(tool for tool in tools if tool["function"]["name"] == name) for name in names]
        tools = [tool for tool in tools if tool not in later[turn]]
    first, *others = row["question"]
    scenario = {
        "classes": {name: described[name]["module"] for name in row["involved_classes"]},
        "config": row["initial_config"],
        "long_context": "long_context" in row["category"],
    }
    facts = {"scenario": scenario, "turns": others, "later": later, "wanted": row["ground_truth"]}
    return Item(row["id"], first, row["category"], tools, facts)


def play_dialogues(ask: Ask, items: Sequence[Item], setting: Setting) -> list[Played]:
    """Play items, all of them a step at a time."""
    started = [_Dialogue(item, [*item.prompt], list(item.tools or [])) for item in items]
    while going := [dialogue for dialogue in started if not dialogue.ended]:
        completions = ask([setting.prompt(list(one.messages), list(one.tools)) for one in going])
        for dialogue, completion in zip(going, completions, strict=True):
            dialogue.take(completion)
    return [
        Played(one.item, one.messages, one.said, Marks({"accuracy": float(not one.fault)}, one.fault or "right"))
        for one in started
    ]


@dataclass
class _Dialogue:
    """One dialogue under way. After a turn that went wrong the rest is not played.

    Attributes:
        turns: the model's calls by turn and step. Those that cannot be read are none, and get no answer.
    """

    item: Item
    messages: list[Message]
    tools: list[dict[str, Any]]
    said: list[Completion] = field(default_factory=list)
    turns: list[list[list[Call]]] = field(default_factory=lambda: [[]])
    ended: bool = False
    fault: str | None = None

    def take(self, completion: Completion) -> None:
        """Answer the model: with what its calls say, with the next turn, or with the end."""
        self.said.append(completion)
        message = completion.message
        calls = [call for call in message.tool_calls if call.name and isinstance(call.arguments, dict)]
        self.messages.append(message.to_message())
        try:
            if completion.truncated:
                self._end("cut off")
            elif calls:
                self._step([{"name": call.name, "arguments": call.arguments} for call in calls])
            else:
                self._close_turn()
        except (isolated.Fault, RecursionError) as fault:
            self._end(f"turn {len(self.turns)}: its calls cannot be carried out: {fault}")

    def _step(self, calls: list[Call]) -> None:
        self.turns[-1].append(calls)
        if len(self.turns[-1]) > STEPS:
            self._end(f"turn {len(self.turns)}: more than {STEPS} steps")
            return
        steps = [step for turn in self.turns for step in turn]
        said = _run("results", self.item.facts["scenario"], steps)
        self.messages += [{"role": "tool", "content": text} for text in said]

    def _close_turn(self) -> None:
        facts, number = self.item.facts, len(self.turns)
        fault = _run("fault", facts["scenario"], self.turns, facts["wanted"])
        if fault or number == len(facts["wanted"]):
            self._end(fault)
            return
        self.turns.append([])
        self.tools += facts["later"].get(str(number), [])
        self.messages += facts["turns"][number - 1]

    def _end(self, fault: str | None) -> None:
        self.ended, self.fault = True, fault


def _run(function: str, *arguments: Any) -> Any:
    """Call `bfcl_services`.

    Raises:
        isolated.Fault: what the model calls does not end, or takes all memory.
        PosttrainError: the services do not work here.
    """
    try:
        return isolated.call(_WORKER + function, str(services_directory().resolve()), *arguments, deadline=DEADLINE)
    except isolated.Fault as fault:
        if fault.kind != "raised":
            raise
        what = f"the services of BFCL do not work here: {fault}"
        raise PosttrainError(Problem(what, remedy="run `make suites` once more")) from fault
