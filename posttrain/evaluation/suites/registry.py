"""The one registry of suites. A further suite is one class, and one line here."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING, cast

from posttrain.errors import PosttrainError, Problem

if TYPE_CHECKING:
    from posttrain.evaluation.suites.suite import Suite

SUITES: dict[str, str] = {
    "bfcl": "posttrain.evaluation.suites.bfcl:Bfcl",
    "counterfact-qa": "posttrain.evaluation.suites.counterfact_qa:CounterFactQA",
    "gsm-symbolic": "posttrain.evaluation.suites.gsm_symbolic:GsmSymbolic",
    "humaneval": "posttrain.evaluation.suites.humaneval:HumanEval",
    "ifbench": "posttrain.evaluation.suites.ifeval:IfBench",
    "ifeval": "posttrain.evaluation.suites.ifeval:IfEval",
    "length-ctrl": "posttrain.evaluation.suites.length_ctrl:LengthCtrl",
    "mtr-bench": "posttrain.evaluation.suites.mtr_bench:MtrBench",
    "reasoning-gym": "posttrain.evaluation.suites.reasoning_gym:ReasoningGym",
    "think-follow": "posttrain.evaluation.suites.think_follow:ThinkFollow",
    "tool-use": "posttrain.evaluation.suites.tool_use:ToolUse",
}


def get_suite(name: str) -> Suite:
    """The suite of that name.

    Raises:
        PosttrainError: there is none.
    """
    if name not in SUITES:
        near = difflib.get_close_matches(name, SUITES, n=2)
        remedy = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(SUITES)}"
        raise PosttrainError(Problem(f"no suite is called {name!r}", remedy=remedy))
    module, _, attribute = SUITES[name].partition(":")
    return cast("Suite", getattr(import_module(module), attribute)())
