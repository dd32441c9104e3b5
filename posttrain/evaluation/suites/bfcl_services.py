"""BFCL's simulated services, played and compared: runs in a child process (`tasks/isolated.py`).

They are programs of the package bfcl-eval, beside its data (`make suites`): a file system, messages, trading and
others. What a model wrote arrives as names and JSON arguments and chooses among their public methods; nothing of it is
evaluated. Still a call may never end (`power` of huge numbers) or change how its process calculates (`logarithm` sets
mpmath's precision, which others in that process rely on), hence the child. Every function here begins with fresh
instances and leaves the precision as it was.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import decimal
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

PACKAGE = "bfcl_eval.eval_checker.multi_turn_eval.func_source_code"

Call = Mapping[str, Any]
"""`name`, `arguments` by name; the package's own calls may have `positional` ones."""


class Services:
    """Instances of the classes of one dialogue.

    Args:
        scenario: `classes` (name: module), `config` (class: what it begins with), `long_context` (fill it up).
    """

    def __init__(self, scenario: Mapping[str, Any]) -> None:
        self.instances: dict[str, Any] = {}
        self._methods: dict[str, Callable[..., Any]] = {}
        for name, module in scenario["classes"].items():
            instance = getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)()
            if hasattr(instance, "_load_scenario"):  # one has no state
                config = copy.deepcopy(scenario["config"].get(name, {}))
                instance._load_scenario(config, long_context=scenario["long_context"])
            self.instances[name] = instance
            methods = dict(inspect.getmembers(instance, inspect.ismethod))
            self._methods |= {name: method for name, method in methods.items() if not name.startswith("_")}

    def call(self, call: Call) -> str:
        """What a call says, as the package's harness shows it to a model."""
        try:
            if call["name"] not in self._methods:
                raise NameError(f"name {call['name']!r} is not defined")
            said = self._methods[call["name"]](*call.get("positional", ()), **call["arguments"])
            return _shown(said)
        except Exception as error:  # whatever a service makes of wrong arguments is its answer
            return f"Error during execution: {error}"

    def difference(self, other: Services) -> str | None:
        """The first public attribute of the other's instances that differs, or None."""
        for name, instance in other.instances.items():
            for attribute, value in vars(instance).items():
                if not attribute.startswith("_") and not _same(getattr(self.instances[name], attribute, None), value):
                    return f"{name}.{attribute}"
        return None


def _shown(said: Any) -> str:
    if isinstance(said, dict):
        try:
            return json.dumps(said)
        except (TypeError, ValueError):
            return str(said)
    return said if isinstance(said, str) else str(said)


def _same(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)  # their classes define what is equal
    except RecursionError:  # a directory was moved into itself
        return False


def results(directory: str, scenario: Mapping[str, Any], steps: Sequence[Sequence[Call]]) -> list[str]:
    """What the calls of the last step say, after all steps before it.

    Args:
        directory: where `make suites` put the programs.
    """
    said: list[str] = []
    with _precision_kept():
        services = _begun(directory, scenario)
        for step in steps:
            said = [services.call(call) for call in step]
    return said


def fault(
    directory: str,
    scenario: Mapping[str, Any],
    turns: Sequence[Sequence[Sequence[Call]]],
    wanted: Sequence[Sequence[str]],
) -> str | None:
    """What is wrong with the turns so far, or None: as the package's `multi_turn_checker`.

    After every turn in which calls are wanted, the model must have made one in it, all instances must be as the wanted
    calls leave them, and what these said must be among what the model was told in this turn or before.

    Args:
        turns: the model's calls by turn and step; steps without any are left out.
        wanted: the right calls by turn, in Python; more turns may follow.
    """
    with _precision_kept():
        return _fault(_begun(directory, scenario), _begun(directory, scenario), turns, wanted)


def _fault(
    model: Services, truth: Services, turns: Sequence[Sequence[Sequence[Call]]], wanted: Sequence[Sequence[str]]
) -> str | None:
    heard: list[str] = []
    for number, (steps, right) in enumerate(zip(turns, wanted, strict=False), 1):
        heard += [model.call(call) for step in steps for call in step]
        told = [truth.call(parsed_call(source)) for source in right]
        if not right:
            continue
        if not steps:
            return f"turn {number}: no call"
        if different := model.difference(truth):
            return f"turn {number}: {different} is not as it should be"
        left = list(heard)
        for said in told:
            if said not in left:
                return f"turn {number}: never learns {said:.100}"
            left.remove(said)
    return None


@contextlib.contextmanager
def _precision_kept() -> Iterator[None]:
    import mpmath  # type: ignore[import-untyped]  # comes with torch

    with decimal.localcontext(), mpmath.workprec(mpmath.mp.prec):
        yield


def parsed_call(source: str) -> Call:
    """A call with literal arguments, written in Python, as the package's data have it."""
    call = ast.parse(source, mode="eval").body
    assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
    return {
        "name": call.func.id,
        "positional": [ast.literal_eval(value) for value in call.args],
        "arguments": {str(given.arg): ast.literal_eval(given.value) for given in call.keywords},
    }


def _begun(directory: str, scenario: Mapping[str, Any]) -> Services:
    if directory not in sys.path:
        sys.path.insert(0, directory)
    return Services(scenario)
