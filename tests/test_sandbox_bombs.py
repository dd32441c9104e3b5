"""Bombs: programs that eat time, memory, processes, disk or output until they are stopped.

Each ends within the limits and not by passing, and after each the sandbox judges a right program as before.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from posttrain.sandbox.pool import Sandbox
from tests.sandboxed import PROGRAMS, SQUARES, judged, lives_on, needs_sandbox, printed, sandbox

__all__ = ["lives_on", "sandbox"]

pytestmark = needs_sandbox

BOMBS: dict[str, str] = PROGRAMS["bombs"]


@pytest.mark.parametrize("name", BOMBS)
def test_no_bomb_harms(sandbox: Sandbox, name: str) -> None:
    verdict = printed(sandbox, BOMBS[name], ("", "never"))
    assert not verdict.passed and verdict.status != "error", verdict
    assert verdict.seconds < sandbox.limits.wall_seconds + 30


def test_no_process_outlives_its_program(sandbox: Sandbox) -> None:
    printed(sandbox, BOMBS["a daemon"], ("", ""))
    names = []
    for place in Path("/proc").glob("[0-9]*/comm"):
        try:
            names.append(place.read_text().strip())
        except OSError:
            continue
    assert "posttrain-demon" not in names


def test_bombs_side_by_side_leave_the_others_alone(sandbox: Sandbox) -> None:
    from posttrain.sandbox.job import Program, Runs, UnitTests

    right = Program("def solve(x):\n    return x * x", UnitTests(SQUARES))
    bombs = [Program(BOMBS[name], Runs((("", "never"),))) for name in ("fork bomb", "memory", "thread bomb")]
    verdicts = sandbox.judge_all([right, bombs[0], right, bombs[1], right, bombs[2], right])
    assert [verdict.passed for verdict in verdicts] == [True, False] * 3 + [True]


def test_many_threads_may_judge(sandbox: Sandbox) -> None:
    passed: list[bool] = []
    work = threading.Thread(target=lambda: passed.append(judged(sandbox, "solve = lambda x: x * x", SQUARES).passed))
    work.start()
    work.join()
    assert passed == [True]
