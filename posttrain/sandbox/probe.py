"""The walls tried from inside, before any code of a model runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from posttrain.sandbox.job import Program, UnitTests, Verdict

INSIDE = r"""
import array, ctypes, fcntl, os, socket, struct

def uid():
    return os.getuid()

def reads(path):
    try:
        return bool(os.listdir(path) if os.path.isdir(path) else open(path, 'rb').read(1))
    except OSError:
        return False

def interfaces():
    table = array.array('B', bytes(4096))
    request = struct.pack('iL', 4096, table.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any:
        used = struct.unpack('iL', fcntl.ioctl(any, 0x8912, request))[0]  # SIOCGIFCONF
    return [table[at:at + 16].tobytes().rstrip(b'\0').decode() for at in range(0, used, 40)]

def traces():
    return ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0

def uncounted():
    return ctypes.CDLL(None).shmget(0, 4096, 0o1600) != -1

def namespaces():
    return ctypes.CDLL(None).unshare(0x10000000) == 0

def writes():
    try:
        open('/probe', 'w')
        return True
    except OSError:
        return False

def forks(count):
    born = 0
    try:
        for _ in range(count):
            if os.fork() == 0:
                os.read(os.pipe()[0], 1)
            born += 1
    except OSError:
        pass
    return born
"""

CHECKS = {
    "code runs as another user than nobody": "uid() == 65534",
    "files of the machine can be read": "not any(reads(path) for path in {paths!r})",
    "there is a network": "interfaces() == ['lo']",
    "the judge can be traced": "not traces()",
    "namespaces can be made": "not namespaces()",
    "system calls are not filtered": "not uncounted()",
    "its root can be written to": "not writes()",
    "the number of processes has no limit": "0 < forks(200) < 199",
}


def faults_of_walls(judge: Callable[[Program], Verdict]) -> list[str]:
    """What does not hold; [] where everything does."""
    paths = ["/etc/passwd", "/proc/1/environ", "/sys", "/home", "/root", str(Path.cwd()), os.path.expanduser("~")]
    asserts = [f"assert {check.format(paths=paths)}, {fault!r}" for fault, check in CHECKS.items()]
    verdict = judge(Program(INSIDE, UnitTests("\n".join(asserts))))
    if not verdict.passed:
        return [verdict.reason]
    wrong = judge(Program("def one():\n    return 2\n", UnitTests("assert one() == 1")))
    return [] if wrong.status == "failed" else [f"a wrong program is called {wrong.status}: {wrong.reason}"]
