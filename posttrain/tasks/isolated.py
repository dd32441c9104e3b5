"""Calls functions in child processes: code that may hang, crash, eat memory or print cannot harm the run.

Verifiers hand a model's text to parsers that evaluate it (sympy, `eval`), where `9**9**9` never returns, and neither
signals nor threads help: signals work in a main thread only, and a thread cannot be stopped. Here the deadline is a
timer in the child, kept by the kernel, so it holds in any thread, and after the death of the parent too. The child's
hash seed is fixed, so what it generates does not depend on the order of a set.

Functions are named "module:function"; arguments and results are JSON.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_CHILDREN = 4
MEMORY = 4 << 30  # bytes of address space
IMPORT_DEADLINE = 120.0  # CPU-seconds
WALL_PER_CPU = 20.0  # the deadline in wall time is this many times the one in CPU time: machines are shared


class Fault(Exception):
    """A call failed in the child. `kind` is "raised" (an exception), "deadline" or "died" (memory, a crash)."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def call(function: str, *args: Any, deadline: float) -> Any:
    """The result of a function run in a child process that is kept for the next call. Safe in threads.

    Args:
        deadline: CPU-seconds.

    Raises:
        Fault: it raised, ran past the deadline, or the child died.
    """
    with _POOL.borrow() as child:
        return next(child.request(function, args, deadline, many=False))


def stream(function: str, *args: Any, deadline: float) -> Iterator[Any]:
    """The items of a generator run in a child process, its own until it ends. `deadline` (CPU-seconds): for each item.

    Raises:
        Fault: as `call`.
    """
    child = _POOL.take()
    ended = False
    try:
        yield from child.request(function, args, deadline, many=True)
        ended = True
    finally:
        if ended:
            _POOL.give_back(child)
        else:
            child.close()


class _Child:
    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parents[2])
        env = os.environ | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (root, env.get("PYTHONPATH"))))
        # A session of its own: Ctrl-C is the parent's to handle. The child ends when its standard input does.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            start_new_session=True,
        )

    def request(self, function: str, args: tuple[Any, ...], deadline: float, *, many: bool) -> Iterator[Any]:
        assert self.process.stdin and self.process.stdout
        line = json.dumps({"function": function, "args": args, "deadline": deadline, "many": many})
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._death(deadline) from None
        while True:
            reply = self.process.stdout.readline()
            if not reply.endswith(b"\n"):
                raise self._death(deadline)
            kind, value = json.loads(reply)
            if kind == "raised":
                raise Fault("raised", value)
            if kind == "end":
                return
            yield value

    def _death(self, deadline: float) -> Fault:
        code = self.process.wait()
        if -code in (signal.SIGPROF, signal.SIGALRM):
            return Fault("deadline", f"stopped after {deadline:g} CPU-seconds")
        return Fault("died", f"the child process ended with code {code}")

    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()
        self.process.wait()


class _Pool:
    """Idle children. At most `MAX_CHILDREN` calls run at once. A forked process starts children of its own."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.pid = os.getpid()
        self.idle: queue.LifoQueue[_Child] = queue.LifoQueue(MAX_CHILDREN)
        self.slots = threading.BoundedSemaphore(MAX_CHILDREN)

    def take(self) -> _Child:
        if self.pid != os.getpid():
            self._reset()
        with contextlib.suppress(queue.Empty):
            while True:
                child = self.idle.get_nowait()
                if child.alive():
                    return child
                child.close()
        return _Child()

    def give_back(self, child: _Child) -> None:
        try:
            self.idle.put_nowait(child)
        except queue.Full:
            child.close()

    @contextlib.contextmanager
    def borrow(self) -> Iterator[_Child]:
        with self.slots:
            child = self.take()
            sound = False
            try:
                yield child
                sound = True
            except Fault as fault:
                sound = fault.kind == "raised"
                raise
            finally:
                if sound:
                    self.give_back(child)
                else:
                    child.close()

    def close(self) -> None:
        if self.pid == os.getpid():
            with contextlib.suppress(queue.Empty):
                while True:
                    self.idle.get_nowait().close()


_POOL = _Pool()
atexit.register(_POOL.close)


def serve() -> None:
    """The child: answers requests on standard input until it is closed. What libraries print goes nowhere."""
    import resource

    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in requests:
        for reply in _answers(json.loads(line)):
            replies.write(reply + b"\n")
            replies.flush()
        _stop_after(0.0)


def _answers(request: dict[str, Any]) -> Iterator[bytes]:
    try:
        module, _, name = request["function"].partition(":")
        _stop_after(IMPORT_DEADLINE)
        function = getattr(importlib.import_module(module), name)
        _stop_after(request["deadline"])
        result = function(*request["args"])
        if not request["many"]:
            yield _reply("item", result)
            return
        for item in result:
            _stop_after(0.0)
            yield _reply("item", item)
            _stop_after(request["deadline"])
        yield _reply("end", None)
    except Exception as error:  # whatever third-party code raises is data here
        yield _reply("raised", f"{type(error).__name__}: {error}"[:500])


def _stop_after(seconds: float) -> None:
    """Let the kernel end this process: nobody handles these two signals, and their default is to terminate."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds * WALL_PER_CPU)


def _reply(kind: str, value: Any) -> bytes:
    return json.dumps([kind, value]).encode()


if __name__ == "__main__":
    serve()
