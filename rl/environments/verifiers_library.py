"""The verifiers library as the adapter needs it: its environments loaded, checked, and an event loop for them."""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import signal
import threading
from collections.abc import Mapping
from functools import cache
from typing import Any

from posttrain.errors import PosttrainError, Problem

TURNS = 30
"""Of an environment that has no limit of its own."""


def load(member: str, arguments: Mapping[str, Any]) -> Any:
    """An environment, by the name of its package and what its `load_environment` is given; one a process.

    Raises:
        PosttrainError: it is not there, fails to load, or is none that can be played here.
    """
    return _loaded(member, json.dumps(arguments, sort_keys=True))


@cache
def _loaded(member: str, arguments: str) -> Any:
    library = library_here()
    # Every environment of the library takes over the interrupts of the process; how a run ends is ours to say.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        environment = library.load_environment(member, **json.loads(arguments))
    except (ValueError, RuntimeError) as error:
        where = f"verifiers:{member}"
        remedy = "install the environment's package; its arguments stand under options.arguments"
        raise PosttrainError(Problem("the environment cannot be loaded", where, str(error), remedy)) from error
    finally:
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
    for part in getattr(environment, "envs", [environment]):
        if fault := _fault(library, part):
            raise PosttrainError(Problem("the environment cannot be played here", f"verifiers:{member}", fault))
        if part.max_turns <= 0:
            part.max_turns = TURNS
    return environment


def part_for(member: str, arguments: Mapping[str, Any], task: str) -> Any:
    """The environment that plays rows of a task: of a group, the one of that name."""
    environment = load(member, arguments)
    choose = getattr(environment, "get_env_for_task", None)
    return environment if choose is None else choose(task)


def _fault(library: Any, part: Any) -> str:
    """Why an environment cannot be played by messages, and scored one by one; "" where it can."""
    if not isinstance(part, library.MultiTurnEnv):
        return f"{type(part).__name__} is no MultiTurnEnv"
    if part.message_type != "chat":
        return "it continues texts, and has no messages"
    if part.oai_tools:
        return "it gives the model tools, of which rows of queries know nothing"
    if part.rubric._get_group_reward_funcs() or any(
        rubric._get_group_reward_funcs() for rubric in getattr(part.rubric, "rubrics", [])
    ):
        return "its rubric compares the rollouts of a group, and here each is scored by itself"
    return "" if full_marks(part) > 0 else "its rubric rewards nothing"


def full_marks(part: Any) -> float:
    """What a rubric gives when each of its rewards gives 1: the sum of its positive weights."""
    return float(sum(weight for weight in part.rubric._get_reward_weights() if weight > 0))


def library_here() -> Any:
    """The library.

    Raises:
        PosttrainError: it is not installed.
    """
    try:
        import verifiers
    except ImportError as error:
        why = f"the package cannot be imported: {error}"
        remedy = "pip install posttrain[verifiers]"
        raise PosttrainError(Problem("verifiers is not here", why=why, remedy=remedy)) from error
    # It keeps its warnings to itself, among them that a reward function raised.
    log = logging.getLogger("verifiers")
    log.propagate = True
    log.setLevel(max(log.level, logging.WARNING))
    return verifiers


@cache
def loop() -> asyncio.AbstractEventLoop:
    """The event loop of all environments of this process, with its thread: a client or a sandbox outlives a turn."""
    made = asyncio.new_event_loop()
    threading.Thread(target=made.run_forever, name="verifiers", daemon=True).start()
    atexit.register(_close, made)
    return made


def _close(made: asyncio.AbstractEventLoop) -> None:
    """End what is still being played, so that every environment cleans up."""
    asyncio.run_coroutine_threadsafe(_cancel_all(), made).result(timeout=30)
    made.call_soon_threadsafe(made.stop)


async def _cancel_all() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
