"""Processes inside the sandbox: started with limits, watched, and ended with all that they left."""

from __future__ import annotations

import os
import signal
import sys
import time

from posttrain.sandbox.judge.answer import confine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import NoReturn

DESK = "/tmp"  # the one place that can be written to
ASIDE = 100  # descriptors from here on are free in a judge
MEMORY_STATUS = 77
"""Exit status of a program that ended with a MemoryError."""


class Stopped(BaseException):
    """A limit was passed that the kernel does not keep by itself."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Watch:
    """The limits that the judge keeps: the wall clock, and how many files there are.

    Args:
        files: at most so many; each costs memory, and tmpfs counts bytes only.
    """

    def __init__(self, seconds: float, files: int) -> None:
        self.seconds, self.files = seconds, files
        self._deadline = time.monotonic() + seconds

    def __call__(self) -> None:
        """Raises Stopped."""
        if time.monotonic() > self._deadline:
            raise Stopped("timeout", f"it ran for more than {self.seconds:g} seconds")
        room = os.statvfs(DESK)
        if room.f_files - room.f_ffree > self.files:
            raise Stopped("killed", f"it made more than {self.files} files")


def spawn(run: Callable[[], None], keep: Sequence[tuple[int, int]], limits: Mapping[str, int] | None = None) -> int:
    """Run a function in a process of its own, and nothing after it. Returns its id.

    Args:
        keep: what is open there, in ascending order: a descriptor here, its number there. All else is closed.
    """
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for place, (source, _) in enumerate(keep):  # out of the way first: a target may be another one's source
            os.dup2(source, ASIDE + place)
        for place, (_, target) in enumerate(keep):
            os.dup2(ASIDE + place, target)
        os.closerange(keep[-1][1] + 1, 1 << 16)
        if limits:
            confine(limits)
        run()
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except MemoryError:
        status = MEMORY_STATUS
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        _leave(status)


def _leave(status: int) -> NoReturn:
    """The end of a process that may have broken its streams, and `os._exit` too."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        status = status or 1
    finally:
        os._exit(status & 0xFF)


def end_all() -> None:
    """End every process in the sandbox but this one, whose number is 1."""
    try:
        os.kill(-1, signal.SIGKILL)
        while True:
            os.waitpid(-1, 0)
    except (ProcessLookupError, ChildProcessError):
        return


class Ended:
    """How a process ended, once it has: its exit code (negative: the signal) and its CPU-seconds."""

    def __init__(self, child: int, watch: Callable[[], None]) -> None:
        """Wait for it. Raises what `watch` raises."""
        pause, since = 0.0005, 0.0
        while True:
            pid, status, usage = os.wait4(child, os.WNOHANG)
            if pid:
                break
            time.sleep(pause)
            since += pause
            pause = min(0.01, pause * 1.5)
            if since > 0.1:
                watch()
                since = 0.0
        self.code = os.waitstatus_to_exitcode(status)
        self.cpu = usage.ru_utime + usage.ru_stime

    def told(self, cpu: float) -> tuple[str, str]:
        """Status and reason, for a process that ought not to have ended so. `cpu`: its limit in seconds."""
        if self.code in (-signal.SIGKILL, -signal.SIGXCPU) and self.cpu >= cpu - 0.2:
            return "timeout", f"it used more than {cpu:g} CPU-seconds"
        if self.code < 0:
            return "killed", f"it died by {_signal_name(-self.code)}"
        if self.code == MEMORY_STATUS:
            return "memory", "it asked for more memory than it may have"
        return "failed", f"it exited with status {self.code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
