"""Programs judged, several at a time."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.sandbox.isolation import command, start
from posttrain.sandbox.job import Limits, Program, Runs, UnitTests, Verdict
from posttrain.sandbox.memory import held_by
from posttrain.sandbox.probe import faults_of_walls
from posttrain.sandbox.unit_tests import read_tests

GRACE = 2.0  # seconds that the judge has to tell of its own time limit
LOOK_EVERY = 0.05  # seconds between two looks at a program's memory


class Sandbox:
    """Judges programs. What a program does stays in its sandbox; this process goes on.

    Args:
        limits: of each program.
        workers: programs at one time; default: the cores that this process may use.

    Raises:
        PosttrainError: no isolation can be had here. There is no weaker mode.
    """

    def __init__(self, limits: Limits | None = None, workers: int | None = None) -> None:
        self.limits = limits or Limits()
        self.workers = workers or len(os.sched_getaffinity(0))
        command(self.limits)
        if faults := faults_of_walls(lambda program: judge(program, self.limits)):
            why = "code that a model wrote never runs without walls"
            remedy = "allow unprivileged user namespaces (Linux 5.14 or newer), outside or inside your container"
            raise PosttrainError(
                Problem(f"the sandbox does not hold here: {'; '.join(faults)}", why=why, remedy=remedy)
            )

    def judge(self, program: Program) -> Verdict:
        """The verdict on one program. Safe in threads."""
        return judge(program, self.limits)

    def judge_all(self, programs: Iterable[Program]) -> list[Verdict]:
        """The verdicts, in order."""
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self.judge, programs))


def judge(program: Program, limits: Limits) -> Verdict:
    """Run one program behind the walls. A fault of the sandbox itself is a verdict `error`."""
    began = time.monotonic()
    job = json.dumps(_job(program, limits)).encode()
    try:
        process = start(limits)
    except OSError as error:
        return Verdict("error", f"no sandbox could be started: {error}", time.monotonic() - began)
    assert process.stdin and process.stdout and process.stderr
    try:
        told = _communicate(process, job, limits, began)
    finally:
        process.kill()
        complaint = process.stderr.read(2000).decode(errors="replace").strip()
        for pipe in (process.stdin, process.stdout, process.stderr):
            _close(pipe)
        process.wait()
    seconds = time.monotonic() - began
    if isinstance(told, Verdict):
        return told
    try:
        return _verdict(json.loads(told), program.judged_by, seconds)
    except (ValueError, KeyError, TypeError):
        return Verdict("error", f"the sandbox gave no verdict: {complaint[-200:] or 'it ended early'}", seconds)


def _job(program: Program, limits: Limits) -> dict[str, Any]:
    by = program.judged_by
    tests, names = read_tests(by) if isinstance(by, UnitTests) else ("", [])
    return {
        "code": program.code,
        "tests": tests,
        "names": names,
        "entry_point": by.entry_point if isinstance(by, UnitTests) else "",
        "programs": [given for given, _ in by.pairs] if isinstance(by, Runs) else None,
        "wall": limits.wall_seconds,
        "files": limits.files,
        "limits": {
            "AS": limits.memory,
            "CPU": limits.cpu_seconds,
            "FSIZE": limits.output,
            "NOFILE": 64,
            "NPROC": limits.processes,
            "CORE": 0,
        },
    }


def _communicate(process: subprocess.Popen[bytes], job: bytes, limits: Limits, began: float) -> bytes | Verdict:
    """What the judge wrote, or the verdict where a limit was passed that is kept from outside."""
    assert process.stdin and process.stdout
    try:
        process.stdin.write(job)
        process.stdin.close()
    except BrokenPipeError:
        return b""
    said = bytearray()
    while True:
        if select.select([process.stdout], [], [], LOOK_EVERY)[0]:
            part = os.read(process.stdout.fileno(), 1 << 20)
            if not part:
                return bytes(said)
            said += part
            continue
        seconds = time.monotonic() - began
        if seconds > limits.wall_seconds + GRACE:
            return Verdict("timeout", f"it ran for more than {limits.wall_seconds:g} seconds", seconds)
        if held_by(process.pid) > limits.memory:
            return Verdict("memory", f"its processes held more than {limits.memory >> 20} MiB together", seconds)


def _close(pipe: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # what was not yet written has no reader
        pipe.close()


def _verdict(result: Any, by: UnitTests | Runs, seconds: float) -> Verdict:
    if isinstance(by, UnitTests):
        status, reason = result
        return Verdict(status, _one_line(reason), seconds)
    for number, (run, (_, expected)) in enumerate(zip(result, by.pairs, strict=True), 1):
        if run["status"] != "passed":
            return Verdict(run["status"], _one_line(f"run {number}: {run['reason']}"), seconds)
        if _trimmed(run["output"]) != _trimmed(expected):
            shown = f"{run['output'][:60]!r} instead of {expected[:60]!r}"
            return Verdict("failed", f"run {number} printed {shown}", seconds)
    return Verdict("passed", "every run printed what was expected", seconds)


def _trimmed(text: str) -> Sequence[str]:
    """Lines without white space at their ends, and without empty lines at the end."""
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _one_line(text: str) -> str:
    return " ".join(str(text).split())[:300]
