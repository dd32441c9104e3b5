"""One process at a time in a directory: two would write over each other's files.

A lock is POSIX's on a record of a file: it is let go when the process ends, however it ends, a process started by this
one does not inherit it, and NFS knows it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError, Problem

LOCK = ".lock"
HELD = (errno.EACCES, errno.EAGAIN)

log = logging.getLogger("posttrain")


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold a directory while a run works in it.

    Raises:
        PosttrainError: another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK).open("w") as file:
        if not _take(file, directory):
            what = f"another process runs in {directory}"
            remedy = "wait for its end or stop it, or choose another --output"
            raise PosttrainError(Problem(what, remedy=remedy))
        yield


@contextlib.contextmanager
def in_turn(directory: Path, who: str) -> Iterator[None]:
    """Hold a directory that several runs may fill; wait where another one does.

    One that cannot be written to is not held: nobody can fill it.

    Args:
        who: waits, for the log.
    """
    import fcntl

    with contextlib.ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((directory / LOCK).open("w"))
        except OSError:  # told by whoever has to write there
            file = None
        if file is not None and not _take(file, directory):
            log.warning("%s: another run is at work in %s: waiting for it", who, directory)
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _take(file: Any, directory: Path) -> bool:
    """Take the lock; whether nobody has it. Where nothing can be locked, nobody does."""
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            return False
        log.warning("%s cannot be locked (%s): see that no second run works there", directory, error.strerror)
    return True
