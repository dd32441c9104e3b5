"""BFCL's own checkers beside ours, run out of the wheel that `make suites` fetched; nothing of it is installed.

Its checker of calls asks a table of the leaderboard's models, which imports every vendor's client; it is given a model
without peculiarities instead. Its dialogues are scored from calls written in Python, as its harness decodes them.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from posttrain.evaluation.suites import data
from posttrain.evaluation.suites.bfcl import LANGUAGES, fault_of, gold
from posttrain.evaluation.suites.bfcl_services import parsed_call
from posttrain.evaluation.suites.suite import Item
from posttrain.tasks import isolated
from posttrain.tasks.task import derive_seed

Call = dict[str, Any]
Turns = list[list[Call]]

RUNNER = """
import collections, json, sys, types
table = types.ModuleType("bfcl_eval.constants.model_config")
table.MODEL_CONFIG_MAPPING = collections.defaultdict(lambda: types.SimpleNamespace(underscore_to_dot=False))
sys.modules[table.__name__] = table
from bfcl_eval.constants.enums import Language
from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker

def calls(number, functions, given, wanted, category, language):
    return ast_checker(functions, given, wanted, Language(language), category, "model")

def dialogue(number, turns, wanted, entry):
    return multi_turn_checker(turns, wanted, entry, "", f"model{number}")  # instances are kept by the model's name

for number, line in enumerate(sys.stdin):
    kind, *given = json.loads(line)
    try:
        valid = {"calls": calls, "dialogue": dialogue}[kind](number, *given)["valid"]
    except Exception as error:
        valid = f"{type(error).__name__}: {error}"
    print(json.dumps(valid), flush=True)
"""


def verdicts(asked: Iterable[Sequence[Any]]) -> list[Any]:
    """What the package's checkers say of each of ("calls", ...) or ("dialogue", ...): true, false, or how they fail."""
    (wheel,) = (data.directory().parent / "wheels").glob("bfcl_eval-*.whl")
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input="".join(json.dumps(one) + "\n" for one in asked),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(wheel.resolve())},
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def right_turns(item: Item) -> Turns:
    """The right calls of a dialogue as a model has to make them: every argument by name."""
    tools = [*(item.tools or []), *(tool for tools in item.facts["later"].values() for tool in tools)]
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}

    def named(call: Mapping[str, Any]) -> Call:
        places = zip(schemas[call["name"]]["properties"], call["positional"], strict=False)
        return {"name": call["name"], "arguments": {**dict(places), **call["arguments"]}}

    return [[named(parsed_call(source)) for source in turn] for turn in item.facts["wanted"]]


def dialogue_answers(item: Item) -> Iterator[Turns]:
    """The right calls of a dialogue, and what they may be mistaken for."""
    rng = random.Random(derive_seed("bfcl", item.id))
    right = right_turns(item)
    turn = rng.choice([number for number, calls in enumerate(right) if calls])
    place = rng.randrange(len(right[turn]))
    call = right[turn][place]
    other = rng.choice([call for calls in right for call in calls])

    def with_turn(*calls: Call) -> Turns:
        return [*right[:turn], list(calls), *right[turn + 1 :]]

    def instead(name: str, arguments: Any) -> Turns:
        changed: Call = {"name": name, "arguments": arguments}
        return with_turn(*right[turn][:place], changed, *right[turn][place + 1 :])

    yield right
    yield with_turn(*right[turn][:place], *right[turn][place + 1 :])
    yield with_turn(*right[turn], other)
    yield with_turn(*right[turn][::-1])
    yield [[], *right[:-1]]
    yield [*right[:turn], [], right[turn], *right[turn + 2 :]][: len(right)]
    yield instead(f"{call['name']}s", call["arguments"])
    yield instead(call["name"], {**call["arguments"], "extra": 1})
    yield instead(call["name"], {key: _other(value) for key, value in call["arguments"].items()})


def _other(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return not value
    return f"{value}2" if isinstance(value, str) else value + 1


def dialogue_verdict(item: Item, turns: Turns) -> bool:
    """Ours, of all calls of a turn made in one step."""
    steps = [[calls] if calls else [] for calls in turns]
    where, facts = str(data.services_directory().resolve()), item.facts
    worker = "posttrain.evaluation.suites.bfcl_services:fault"
    return isolated.call(worker, where, facts["scenario"], steps, facts["wanted"], deadline=60.0) is None


def dialogue_asked(item: Item, turns: Turns) -> list[Any]:
    """The same for `verdicts`."""
    scenario = item.facts["scenario"]
    entry = {"id": item.id, "initial_config": scenario["config"], "involved_classes": list(scenario["classes"])}
    steps = [[[_written(call) for call in calls]] if calls else [] for calls in turns]
    return ["dialogue", steps, item.facts["wanted"], entry]


def _written(call: Call) -> str:
    """A call in Python, as the package's harness decodes a tool call."""
    return f"{call['name']}({','.join(f'{name}={value!r}' for name, value in call['arguments'].items())})"


def call_answers(item: Item) -> Iterator[list[Call]]:
    """Right calls of a question, and what they may be mistaken for."""
    rng = random.Random(derive_seed("bfcl", item.id))
    right = right_calls(item)
    place = rng.randrange(len(right))
    call = right[place]

    def instead(*calls: Call) -> list[Call]:
        return [*right[:place], *calls, *right[place + 1 :]]

    yield right
    yield right[::-1]
    yield instead()
    yield instead(call, call)
    yield instead({**call, "name": f"{call['name']}s"})
    yield instead({**call, "arguments": {**call["arguments"], "extra": "1"}})
    for name, value in call["arguments"].items():
        yield instead({**call, "arguments": {key: each for key, each in call["arguments"].items() if key != name}})
        for other in (_other(value), str(value), rng.choice(ODD), rng.choice(SOURCE_TEXTS)):
            yield instead({**call, "arguments": {**call["arguments"], name: other}})


ODD: tuple[Any, ...] = ("", "x", 0, 1, 2.0, True, None, [], [1], ["a"], {}, {"a": 1}, [{}])
SOURCE_TEXTS = (
    *("true", "5", "5L", "5.5", "5.5f", "5n", '"a"', "'a'", "[1, 2]", "[]", "{}", '{"a": 1, "b": ["c"]}', "[[1], [2]]"),
    *("new int[]{1, 2}", "new ArrayList<>()", "new ArrayList<>() {{ add(1); }}", "new HashMap<>()", "new Array(1, 2)"),
)


def right_calls(item: Item) -> list[Call]:
    """`gold`; in Java and JavaScript with its arguments written as source text."""
    written: dict[str, Callable[[Any, Mapping[str, Any]], Any]] = {"java": java, "javascript": javascript}
    write = written.get(LANGUAGES.get(item.group, ""), _as_it_is)
    functions = {function["name"]: function for function in item.facts["functions"]}
    calls: list[Call] = []
    for call in gold(item.facts):
        assert isinstance(call.arguments, dict)
        described = functions[call.name]["parameters"]["properties"]
        arguments = {name: write(value, described.get(name, {})) for name, value in call.arguments.items()}
        calls.append({"name": call.name, "arguments": arguments})
    return calls


def _as_it_is(value: Any, described: Mapping[str, Any]) -> Any:
    return value


def call_verdict(item: Item, calls: Sequence[Call]) -> bool:
    """Ours."""
    return fault_of([(call["name"], call["arguments"]) for call in calls], item.facts, item.group) is None


def call_asked(item: Item, calls: Sequence[Call]) -> list[Any]:
    """The same for `verdicts`."""
    given = [{call["name"]: call["arguments"]} for call in calls]
    language = LANGUAGES.get(item.group, "python")
    return ["calls", item.facts["functions"], given, item.facts["wanted"], item.group, language]


def java(value: Any, described: Mapping[str, Any]) -> str:
    """An acceptable value as Java source text."""
    kind, inner = described.get("type"), described.get("items", {}).get("type")
    if isinstance(value, list):
        # Elements of an Array keep their quotes when they are read, those of an ArrayList lose them.
        elements = ", ".join(_java_literal(each, "" if kind == "Array" else inner) for each in value)
        return f"new Object[]{{{elements}}}" if kind == "Array" else f"new ArrayList<>(Arrays.asList({elements}))"
    if isinstance(value, dict):
        entries = " ".join(f'put("{key}", {_java_literal(each, "String")});' for key, each in value.items())
        return f"new HashMap<String, Object>() {{{{ {entries} }}}}"
    return f"{value}L" if kind == "long" and isinstance(value, int) else _java_literal(value, "")


def _java_literal(value: Any, kind: str | None) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value}L" if kind == "long" else str(value)
    return f'"{value}"' if kind == "String" else str(value)


def javascript(value: Any, described: Mapping[str, Any]) -> str:
    """An acceptable value as JavaScript source text."""
    if isinstance(value, dict):
        return json.dumps(value)
    return value if isinstance(value, str) else json.dumps(value)
