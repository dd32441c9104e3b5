"""What the tests of the sandbox share: one sandbox, and a loud skip where there can be none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.sandbox.isolation import missing
from posttrain.sandbox.job import Limits, Program, Runs, UnitTests, Verdict
from posttrain.sandbox.pool import Sandbox

PROGRAMS: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("sandbox_programs.yaml").read_text("utf-8"))
LIMITS = Limits(cpu_seconds=1, wall_seconds=5.0, memory=256 << 20)

needs_sandbox = pytest.mark.skipif(bool(missing()), reason="; ".join(map(str, missing())))
"""`.ci/run` installs bubblewrap, so nothing is skipped there."""


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox(LIMITS)


def judged(sandbox: Sandbox, code: str, tests: str, entry_point: str = "") -> Verdict:
    return sandbox.judge(Program(code, UnitTests(tests, entry_point)))


def printed(sandbox: Sandbox, code: str, *pairs: tuple[str, str]) -> Verdict:
    return sandbox.judge(Program(code, Runs(pairs)))


SQUARES = "assert solve(2) == 4\nassert solve(3) == 9\nassert solve(12) == 144"


@pytest.fixture(autouse=True)
def lives_on(sandbox: Sandbox) -> Iterator[None]:
    """After every test a right program is judged as before. Only files that import this fixture use it."""
    yield
    verdict = judged(sandbox, "def solve(x):\n    return x * x", SQUARES)
    assert verdict.passed, verdict
