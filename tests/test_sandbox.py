"""Verdicts: right code passes, wrong code fails, and each says why. Escapes have a file of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain.errors import PosttrainError
from posttrain.sandbox import isolation
from posttrain.sandbox.job import Limits, Program, Runs, UnitTests
from posttrain.sandbox.judge.values import decode, encode
from posttrain.sandbox.memory import held_by
from posttrain.sandbox.pool import Sandbox, judge
from tests.sandboxed import PROGRAMS, judged, needs_sandbox, printed, sandbox

__all__ = ["sandbox"]


@needs_sandbox
@pytest.mark.parametrize("name", PROGRAMS["right"])
def test_right_code_passes(sandbox: Sandbox, name: str) -> None:
    verdict = judged(sandbox, **PROGRAMS["right"][name])
    assert verdict.passed, verdict


@needs_sandbox
@pytest.mark.parametrize("name", PROGRAMS["wrong"])
def test_wrong_code_says_what_is_wrong(sandbox: Sandbox, name: str) -> None:
    row = PROGRAMS["wrong"][name]
    verdict = judged(sandbox, row["code"], row["tests"])
    assert (verdict.status, row["reason"] in verdict.reason) == (row["status"], True), verdict
    assert "\n" not in verdict.reason


@needs_sandbox
def test_the_entry_point_is_the_answers_and_helpers_are_the_rows(sandbox: Sandbox) -> None:
    tests = "def double(x):\n    return 2 * x\n@str\ndef solve(x):\n    pass\nassert double(solve(1)) == 4"
    assert judged(sandbox, "def solve(x):\n    return 2\ndef double(x):\n    return 0", tests, "solve").passed
    forged = "def solve(x):\n    return 9\ndef double(x):\n    return 4"
    assert judged(sandbox, forged, tests, "solve").status == "failed"
    assert "defines no solve" in judged(sandbox, "", tests, "solve").reason


@needs_sandbox
def test_programs_are_compared_by_what_they_print(sandbox: Sandbox) -> None:
    double = "n = int(input())\nfor _ in range(n):\n    print(2 * int(input()), end=' \\n')"
    assert printed(sandbox, double, ("2\n1\n2\n", "2\n4\n"), ("0\n", "")).passed
    assert (
        printed(sandbox, double, ("1\n1", "2"), ("1\n3\n", "5\n")).reason == "run 2 printed '6 \\n' instead of '5\\n'"
    )
    assert "ValueError" in printed(sandbox, double, ("x", "2")).reason
    assert printed(sandbox, "import sys; print(4); sys.exit(3)", ("", "4")).reason.startswith("run 1: it exited with")
    assert printed(sandbox, "import sys; print(4); sys.exit()", ("", "4")).passed
    assert printed(sandbox, "import sys; print(len(sys.stdin.read()))", ("x" * 300_000, "300000")).passed
    assert printed(sandbox, "print('x' * (1 << 40))", ("", "4")).status == "memory"
    assert printed(sandbox, "while True:\n    pass", ("", "4")).status == "timeout"


@needs_sandbox
def test_the_order_of_verdicts_is_that_of_the_programs(sandbox: Sandbox) -> None:
    programs = [Program(f"def f():\n    return {n % 3}", UnitTests("assert f() == 1")) for n in range(12)]
    assert [verdict.passed for verdict in sandbox.judge_all(programs)] == [n % 3 == 1 for n in range(12)]


@needs_sandbox
def test_memory_is_counted_over_all_processes() -> None:
    """Eight processes of 100 MiB each: none passes the limit of one process, together they pass it."""
    code = PROGRAMS["bombs"]["memory in eight processes"]
    verdict = Sandbox(Limits(memory=300 << 20)).judge(Program(code, Runs((("", ""),))))
    assert (verdict.status, verdict.reason) == ("memory", "its processes held more than 300 MiB together")


def test_held_by_counts_children() -> None:
    hold = "x = b'1' * (50 << 20)"
    inner = f"{hold}; print(1, flush=True); input()"
    code = f"import subprocess, sys; {hold}; subprocess.run([sys.executable, '-c', {inner!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"1\n"
        assert 100 << 20 < held_by(process.pid) < 200 << 20
        process.kill()


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that nobody can get to: pytest's own are for their owner alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@needs_sandbox
def test_a_root_that_somebody_tidied_away_is_made_again(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(public))
    isolation.command.cache_clear()
    limits = Limits()
    program = Program("def f():\n    return 1", UnitTests("assert f() == 1"))
    assert judge(program, limits).passed and list(public.iterdir())
    shutil.rmtree(public / f"posttrain-sandbox-{os.geteuid()}")
    assert judge(program, limits).passed
    isolation.command.cache_clear()


@pytest.mark.parametrize("tool", ["bwrap", "setpriv"])
def test_without_walls_it_refuses(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == tool else which(name))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    isolation.command.cache_clear()
    with pytest.raises(PosttrainError, match="is not installed") as refused:
        Sandbox(Limits(cpu_seconds=99))
    assert any("apt-get install" in problem.remedy and problem.why for problem in refused.value.problems)


@needs_sandbox
def test_walls_with_a_hole_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holes made on purpose, in the network, the files, the system calls: noticed before any code runs."""
    limits = Limits()
    built, program = isolation.command(limits)
    words = list(built)
    walled = [word for word in words if word != "--unshare-net"]
    place = words.index("--seccomp")
    unfiltered = [*words[:place], *words[place + 2 :]]
    bound = words.index("--ro-bind")
    inside = [["--ro-bind", str(path), f"/{path.name}"] for path in Path(words[bound + 1]).iterdir()]
    parts = [*inside, ["--ro-bind", "/etc", "/etc"]]
    shown = [*words[:bound], *(word for part in parts for word in part), *words[bound + 3 :]]
    monkeypatch.setattr(isolation, "command", lambda _: (walled, program))
    with pytest.raises(PosttrainError, match="there is a network"):
        Sandbox(limits)
    monkeypatch.setattr(isolation, "command", lambda _: (unfiltered, program))
    with pytest.raises(PosttrainError, match="system calls are not filtered"):
        Sandbox(limits)
    monkeypatch.setattr(isolation, "command", lambda _: (shown, program))
    with pytest.raises(PosttrainError, match="files of the machine can be read"):
        Sandbox(limits)


NESTED = [1, (2, {3}, frozenset({4})), {(1, 2): {"a": b"b"}}, None, True]


@pytest.mark.parametrize("value", [0, -(10**50), 1.5, "a\udcff", NESTED, range(3), 1j, bytearray(b"x")])
def test_plain_data_crosses_unchanged(value: object) -> None:
    def never(unknown: object) -> dict[str, int]:
        raise AssertionError(unknown)

    back = decode(encode(value, never), never)
    assert (back, type(back)) == (value, type(value))


@needs_sandbox
def test_nothing_is_left_when_the_run_is_killed(tmp_path: Path) -> None:
    """The run dies by SIGKILL while a program sleeps: its sandbox dies with it."""
    marker = f"posttrain-marker-{time.time_ns()}"
    called = f"ctypes.CDLL(None).prctl(15, b'{marker[-15:]}', 0, 0, 0)"
    code = f"import ctypes, time\n{called}\ntime.sleep(60)"
    script = tmp_path / "run.py"
    script.write_text(
        "from posttrain.sandbox.job import *\nfrom posttrain.sandbox.pool import Sandbox\n"
        f"Sandbox(Limits(wall_seconds=50)).judge(Program({code!r}, UnitTests('')))\n"
    )
    process = subprocess.Popen([sys.executable, str(script)])
    deadline = time.monotonic() + 60
    while not named(marker[-15:]):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    while named(marker[-15:]):
        assert time.monotonic() < deadline, "the program outlived the run"
        time.sleep(0.05)


def named(name: str) -> list[Path]:
    """The processes of this machine with that name."""
    found = []
    for place in Path("/proc").glob("[0-9]*/comm"):
        try:
            if place.read_text().strip() == name:
                found.append(place)
        except OSError:
            continue
    return found
