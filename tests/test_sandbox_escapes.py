"""Escapes and forgeries: code that tries to leave the sandbox, or to pass without being right.

None succeeds, and after each the sandbox judges a right program as before.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain.sandbox.pool import Sandbox
from tests.sandboxed import PROGRAMS, SQUARES, judged, lives_on, needs_sandbox, printed, sandbox

__all__ = ["lives_on", "sandbox"]

pytestmark = needs_sandbox

# --- forgeries: wrong code that wants to pass. Each is run at once, and again from within `solve`.

FORGERIES: dict[str, str] = PROGRAMS["forgeries"]


@pytest.mark.parametrize("name", FORGERIES)
def test_no_forgery_passes(sandbox: Sandbox, name: str) -> None:
    code = FORGERIES[name].strip()
    wrong = "def solve(x):\n    return x + 2\n"  # right for 2 only
    indented = "\n".join(f"    {line}" for line in code.splitlines())
    for program in (f"{wrong}{code}\n", f"{code}\n{wrong}", f"def solve(x):\n{indented}\n    return 4\n"):
        verdict = judged(sandbox, program, SQUARES)
        assert not verdict.passed, (program, verdict)


LIARS: dict[str, str] = PROGRAMS["liars"]


@pytest.mark.parametrize("name", LIARS)
def test_no_object_lies_about_its_value(sandbox: Sandbox, name: str) -> None:
    for tests in (SQUARES, "assert [solve(2)] == [4]", "assert (solve(3), 1) == (9, 1)", "assert solve(3) in (9, 10)"):
        verdict = judged(sandbox, f"{LIARS[name]}\ndef solve(x):\n    return V()\n", tests)
        assert not verdict.passed, (tests, verdict)


def test_the_tests_cannot_be_found_in_memory(sandbox: Sandbox) -> None:
    """The code searches its own process for the expected value: objects, frames, files, descriptors."""
    code = """
import gc, os, sys
def found(needle):
    texts = [o for o in gc.get_objects() if isinstance(o, (str, bytes))]
    for o in gc.get_objects():
        if isinstance(o, dict):
            texts += [v for v in list(o.values()) if isinstance(v, (str, bytes))]
    frame = sys._getframe()
    while frame:
        texts += [v for v in frame.f_locals.values() if isinstance(v, str)]
        frame = frame.f_back
    for fd in range(64):
        try:
            texts.append(os.pread(fd, 1 << 20, 0).decode(errors='replace'))
        except OSError:
            pass
    return [t for t in texts if needle in str(t) and 'def found' not in str(t) and str(t) != needle]
def solve(a, b):
    return found(a + b)
"""
    secret = "SECRET = 'xyz' + 'zyx'\nassert solve('xyz', 'zyx') == []\nassert solve('SECR', 'ET') == []"
    assert judged(sandbox, code, secret).passed
    program = code + "print(len(found(chr(120) * 9)))"
    assert printed(sandbox, program, ("", "0"), ("", "0")).passed, "expected outputs never enter the sandbox"


# --- escapes: `attempt()` returns what it got hold of. The judge asks for nothing.

ESCAPES: dict[str, str] = PROGRAMS["escapes"]

INSIDE = """
import ctypes, os, socket, sys
HERE, PORT = {here!r}, {port}
libc = ctypes.CDLL(None, use_errno=True)
def exists(fd):
    try:
        os.fstat(fd)
        return True
    except OSError:
        return False
def alive(pid):
    try:
        os.kill(pid, 0)
        return True
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
def attempt():
{body}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """A server on this machine that a sandboxed program must not reach, by port and by abstract name."""
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0posttrain-test")
        abstract.listen()
        yield int(listening.getsockname()[1])


@pytest.mark.parametrize("name", ESCAPES)
def test_no_escape_succeeds(
    sandbox: Sandbox, server: int, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("POSTTRAIN_SECRET", "leaked")
    body = "\n".join(f"    {line}" for line in ESCAPES[name].splitlines())
    code = INSIDE.format(here=str(Path(__file__).parents[1]), port=server, body=body)
    tests = "try:\n    got = attempt()\nexcept Exception as error:\n    got = None\nassert not got, got"
    verdict = judged(sandbox, code, tests)
    assert verdict.passed, verdict


def test_the_escapes_would_succeed_without_walls(server: int) -> None:
    """The attempts are real: outside the sandbox, what they reach for is there."""
    assert Path("/etc/passwd").read_text() and os.listdir(Path(__file__).parents[1])
    socket.create_connection(("127.0.0.1", server), 2).close()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0posttrain-test")
    assert Path("/proc/1/status").exists() and len(os.listdir("/dev")) > 5
