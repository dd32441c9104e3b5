"""The walls: one bubblewrap sandbox a program, and the refusal where there can be none."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

from posttrain.errors import PosttrainError, Problem
from posttrain.sandbox.job import Limits
from posttrain.sandbox.root import DEVICES, interpreter, prepared

NOBODY = "65534"
FILTER = "FILTER"  # stands for a descriptor: bubblewrap reads the filter to its end, so each needs one of its own
START = "from posttrain.sandbox.judge.main import main; main()"


def missing() -> list[Problem]:
    """What this machine lacks, told without starting anything; [] where there may be a sandbox."""
    why = "code that a model wrote never runs without walls"
    problems = []
    if shutil.which("bwrap") is None:
        problems.append(Problem("bubblewrap is not installed", why=why, remedy="apt-get install bubblewrap"))
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        remedy = "apt-get install util-linux, or run as an ordinary user"
        problems.append(Problem("setpriv is not installed", why="root hands over to nobody by it", remedy=remedy))
    return problems


@cache
def command(limits: Limits) -> tuple[tuple[str, ...], Path]:
    """The command line that starts the judge behind its walls, and the filter that it reads from `FILTER`.

    No network, no process, no file of the machine; an unprivileged user without capabilities who can gain none; no
    namespaces of his own; nothing writable but one small tmpfs; no /proc, /sys, and four harmless devices.

    Raises:
        PosttrainError: there can be no sandbox here.
    """
    if problems := missing():
        raise PosttrainError(problems)
    place = prepared()
    words = [str(shutil.which("bwrap"))]
    if os.geteuid() == 0:
        ids = ["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--no-new-privs"]
        words = [str(shutil.which("setpriv")), *ids, "--", *words]
    words += ["--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    words += ["--unshare-cgroup-try", "--disable-userns", "--uid", NOBODY, "--gid", NOBODY, "--hostname", "sandbox"]
    words += ["--new-session", "--die-with-parent", "--as-pid-1", "--ro-bind", str(place / "root"), "/"]
    words += ["--size", str(limits.disk), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    for device in DEVICES:
        words += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    words += ["--seccomp", FILTER]
    return (*words, "--", interpreter(), "-I", "-S", "-B", "-X", "utf8", "-c", START), place / "seccomp.bpf"


def start(limits: Limits) -> subprocess.Popen[bytes]:
    """The judge, started: a job goes in, a verdict comes out. What complains on standard error is bubblewrap."""
    words, program = command(limits)
    if not program.exists():  # whoever tidies up temporary files took the root too
        command.cache_clear()
        words, program = command(limits)
    pipe = subprocess.PIPE
    with program.open("rb") as file:
        number = file.fileno()
        line = [str(number) if word == FILTER else word for word in words]
        return subprocess.Popen(
            line, stdin=pipe, stdout=pipe, stderr=pipe, env=environment(), cwd="/", pass_fds=(number,)
        )


def environment() -> dict[str, str]:
    """All that the sandbox knows of the environment."""
    own = Path(interpreter()).parents[1]
    return {"PATH": f"{own}/bin", "LD_LIBRARY_PATH": f"{own}/lib", "HOME": "/tmp", "LANG": "C.UTF-8"}
