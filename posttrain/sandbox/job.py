"""What is to be run, within which limits, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["passed", "failed", "timeout", "memory", "killed", "error"]


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    Attributes:
        cpu_seconds: of one process.
        wall_seconds: of everything, machines being shared.
        memory: bytes of address space of one process, and of all that its processes hold together.
        processes: processes and threads at one time, the judge included.
        output: bytes of standard output, and of any file.
        disk: bytes of all files together.
        files: how many files there may be.
    """

    cpu_seconds: int = 5
    wall_seconds: float = 20.0
    memory: int = 512 << 20
    processes: int = 16
    output: int = 1 << 20
    disk: int = 16 << 20
    files: int = 1000


@dataclass(frozen=True)
class UnitTests:
    """Python that tests the answer from outside: asserts, `test...` functions, `Test...` classes, unittest cases.

    Attributes:
        code: may name what the answer defines, or import it from `solution`. What it defines itself (helpers, imports)
            the answer cannot replace.
        entry_point: what the answer has to define. A function of that name in the tests is a stub and gives way to it.
    """

    code: str
    entry_point: str = ""


@dataclass(frozen=True)
class Runs:
    """The answer run as a program, once for each pair of standard input and expected standard output."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Program:
    """Code that a model wrote, and how it is judged."""

    code: str
    judged_by: UnitTests | Runs


@dataclass(frozen=True)
class Verdict:
    """What came of a program.

    Attributes:
        status: `passed`; `failed` (a wrong value, an exception, an exit); `timeout`; `memory`; `killed` (by a signal or
            another limit); `error` (the tests or the sandbox are at fault, not the answer).
        reason: in one line.
        seconds: wall time.
    """

    status: Status
    reason: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.status == "passed"
