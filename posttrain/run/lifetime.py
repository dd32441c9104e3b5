"""No process outlives the run that started it, however that run ends; and a worker that is done ends without a crash.

torch's launcher starts every worker in a session of its own, so that a signal to the launcher's group misses them, and
a launcher that is killed leaves them behind, waiting on each other for half an hour. Here each process asks the kernel
to be killed when its parent dies. Nothing is lost by that: a stage goes on from its last whole checkpoint.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NoReturn

PARENT = "POSTTRAIN_PARENT_PID"
PR_SET_PDEATHSIG = 1  # prctl(2)


def die_with_parent() -> None:
    """Be killed when the process that set $POSTTRAIN_PARENT_PID dies, and ask the same of one's own children.

    Does nothing where the variable is not set.
    """
    parent = os.environ.get(PARENT)
    if parent is None:
        return
    os.environ[PARENT] = str(os.getpid())
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    else:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()
    if os.getppid() != int(parent):  # it died before we asked
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def leave() -> NoReturn:
    """End a worker of a process group that did its work, with exit code 0 and without finalizing the interpreter.

    Threads of gloo (and of autograd) may still hold the last reference to a tensor that Python knows. To let go of it
    they take the interpreter's lock, and where the interpreter is being finalized that ends the whole process with
    SIGABRT ("terminate called without an active exception"): rarely, and mostly on a busy machine. Destroying the group
    does not wait for them (https://github.com/pytorch/pytorch/issues/190489). What was registered for the exit is run.
    """
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    atexit._run_exitfuncs()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def start_child(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a command that is killed, with all it started, when this process dies; who starts it ends it otherwise.

    The command has to call `die_with_parent`, as have the processes that it starts. It gets a session of its own: an
    interrupt at the terminal goes to this process alone, which then tells it once.
    """
    return subprocess.Popen(
        command,
        env={**environment, PARENT: str(os.getpid())},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def run_child(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command to its end (`start_child`); it is killed if this process is interrupted.

    Returns:
        The exit code; negative: the signal that killed it.
    """
    process = start_child(command, environment)
    try:
        return process.wait()
    finally:
        process.kill()
        process.wait()
