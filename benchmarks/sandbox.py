"""Programs a second in the sandbox against a plain subprocess, on two cores.

    python benchmarks/sandbox.py

Every program defines a function and has three tests. Both sides run the same programs, two at a time, in turns, so that
a busy machine is busy for both: the sandbox judges each behind its walls in two processes of its own; the plain side is
`python -I -c`, with code and tests in one process and no protection at all.

Unit: programs a second, and CPU milliseconds a program (`cpu_ms`), which a busy machine changes less. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from posttrain.sandbox.job import Program, UnitTests
from posttrain.sandbox.pool import Sandbox

TARGET = 0.25  # of a plain subprocess, which starts one interpreter and no walls
ROUNDS = 5


def cpu_seconds() -> float:
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def measured(work: Callable[[], Sequence[bool]]) -> tuple[float, float]:
    """Wall and CPU seconds of some work, all of which has to pass."""
    began, used = time.monotonic(), cpu_seconds()
    assert all(work())
    return time.monotonic() - began, cpu_seconds() - used


def plain(program: tuple[str, str]) -> bool:
    return subprocess.run([sys.executable, "-I", "-c", "\n".join(program)], check=False).returncode == 0


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--programs", type=int, default=200, help="of each side, in all")
    count = arguments.parse_args().programs // ROUNDS
    tests = "assert f(1) == 2\nassert f(0) == 1\nassert f(-1) == 0"
    pairs = [(f"def f(x):\n    return x + {n} - {n - 1}", tests) for n in range(count)]
    sandbox = Sandbox(workers=2)
    programs = [Program(code, UnitTests(tests)) for code, tests in pairs]
    ours, theirs = [0.0, 0.0], [0.0, 0.0]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(ROUNDS):
            for total, work in (
                (ours, lambda: [verdict.passed for verdict in sandbox.judge_all(programs)]),
                (theirs, lambda: list(pool.map(plain, pairs))),
            ):
                for place, seconds in enumerate(measured(work)):
                    total[place] += seconds
    done = count * ROUNDS
    rates = [done / total[0] for total in (ours, theirs)]
    ratio = rates[0] / rates[1]
    result = {
        "name": "sandbox",
        "ours": round(rates[0], 2),
        "theirs": round(rates[1], 2),
        "unit": "programs a second on two cores",
        "ratio": round(ratio, 3),
        "target": TARGET,
        "met": ratio >= TARGET,
        "cpu_ms": {"ours": round(1000 * ours[1] / done, 1), "theirs": round(1000 * theirs[1] / done, 1)},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
