"""The one registry of tasks. A further task is one file with one class, and one line here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any, cast

from posttrain.errors import PosttrainError, Problem
from posttrain.tasks.task import Query, Task

__all__ = ["TASKS", "Query", "Task", "get_task", "task_rewards"]

# A name that ends in a colon stands for a whole library of tasks: what follows the colon is handed to the class.
TASKS: dict[str, str] = {
    "arithmetic": "posttrain.tasks.arithmetic:Arithmetic",
    "choice": "posttrain.tasks.verifiers:Choice",
    "code": "posttrain.tasks.code:Code",
    "exact": "posttrain.tasks.verifiers:Exact",
    "math": "posttrain.tasks.verifiers:Math",
    "mtr_bench:": "posttrain.rl.environments.task:MtrBench",
    "number": "posttrain.tasks.verifiers:Number",
    "citations": "posttrain.tasks.citations:Citations",
    "constraints": "posttrain.tasks.constraints:Constraints",
    "constraints:": "posttrain.tasks.constraints:Constraints",
    "instructions": "posttrain.tasks.instructions:Instructions",
    "json": "posttrain.tasks.structured:Structured",
    "judging": "posttrain.rl.rewards.judging:Judging",
    "premises": "posttrain.tasks.premises:Premises",
    "reasoning_gym:": "posttrain.tasks.reasoning_gym:ReasoningGym",
    "retry:": "posttrain.rl.environments.retry:Retry",
    "textarena:": "posttrain.rl.environments.textarena:TextArena",
    "request": "posttrain.tasks.open_answers:Request",
    "symbols:": "posttrain.tasks.symbols:Symbols",
    "synonym": "posttrain.tasks.open_answers:Synonym",
    "tool_calls": "posttrain.tasks.tool_calls:ToolCalls",
    "translation": "posttrain.tasks.translation:Translation",
    "verifiers:": "posttrain.rl.environments.verifiers:Verifiers",
}


@cache
def get_task(name: str) -> Task:
    """The task of that name, one object per process.

    Raises:
        PosttrainError: there is none of that name (the nearest names are given), or it is known to be unsound.
    """
    library, colon, member = name.partition(":")
    path = TASKS.get(library + colon)
    if path is None or (colon and not member):
        raise PosttrainError(_unknown(name))
    module, _, attribute = path.partition(":")
    cls = getattr(import_module(module), attribute)
    return cast(Task, cls(member) if colon else cls())


def task_rewards(name: str) -> Mapping[str, Any]:
    """What RL pays for a task: rewards by name, each with its weight, or {weight, options}.

    Raises:
        PosttrainError: there is no such task.
    """
    return getattr(get_task(name), "rewards", None) or {"accuracy": 1.0}


def _unknown(name: str) -> Problem:
    if not name:
        remedy = "give the data set a `verifier`, or its rows a `task`"
        return Problem("a query names no task, so nothing can score an answer to it", remedy=remedy)
    from posttrain.tasks.reasoning_gym import NAMES

    known = [task for task in TASKS if not task.endswith(":")] + [f"reasoning_gym:{member}" for member in NAMES]
    library, _, member = name.partition(":")
    if library in NAMES:
        near = [f"reasoning_gym:{library}"]
    else:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.6) if member or ":" not in name else []
    if library == "boxed":
        remedy = "every verifier reads the boxed answer by itself: exact, number, choice or math"
    elif near:
        remedy = f"did you mean {' or '.join(near)}?"
    else:
        short = sorted(task for task in TASKS if not task.endswith(":"))
        libraries = "reasoning_gym:NAME (as reasoning_gym:chain_sum) and mtr_bench:NAME (as mtr_bench:Wordle)"
        remedy = f"there are {', '.join(short)}, {libraries}"
    return Problem(f"no task is called {name!r}", remedy=remedy)
