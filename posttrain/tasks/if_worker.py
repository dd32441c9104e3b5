"""The checkers of IFEval and IFBench (the package if-verifiable), in a child process: some search without end."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

PROBE = "The cat sees 3 dogs. Is it red? Yes!\n\n- one\n- two\n\nP.S. It is. " * 12


@cache
def registry() -> dict[str, Any]:
    """Every checker by its id. Nothing is downloaded: what needs NLTK's data and has none is found by `left_out`."""
    import nltk

    nltk.download = lambda *args, **kwargs: False  # the package would ask a server when it is imported
    from if_verifiable.ifbench.instructions_registry import INSTRUCTION_DICT as IFBENCH
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT as IFEVAL

    return {**IFBENCH, **IFEVAL}


@cache
def left_out() -> dict[str, str]:
    """Checkers that cannot work here, with why: each is tried on a text, and those that lack data say so."""
    faults = {}
    for name, checker in registry().items():
        random.seed(0)
        try:
            one = checker(name)
            one.build_description()
            if "prompt" in (one.get_instruction_args() or {}):
                one.build_description(prompt=PROBE)
            one.check_following(PROBE)
        except LookupError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip(" *")]
            if not isinstance(error, KeyError | IndexError) and lines:
                faults[name] = f"needs NLTK data: {lines[0]}"
        except Exception:  # it wants arguments that a row will give
            continue
    return faults


def names() -> tuple[list[str], dict[str, str]]:
    """Ids of all checkers, and those left out with the reason."""
    return sorted(registry()), left_out()


def check(ids: list[str], arguments: list[dict[str, Any]], prompt: str, response: str) -> list[list[bool]]:
    """For each instruction whether the response follows it: [strictly, loosely].

    Loosely: with the first or the last line left out, or both, or without asterisks, as the benchmarks have it.
    """
    from if_verifiable.common import evaluate_instructions

    random.seed(0)
    results, _ = evaluate_instructions(response, ids, arguments, prompt, registry())
    if not results:  # nothing but thinking, as the package reads it
        return [[False, False]] * len(ids)
    return [[bool(result.strict_pass), bool(result.loose_pass)] for result in results]
