"""One run at a time in a directory: two would write over each other's checkpoints."""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Iterator
from pathlib import Path

from posttrain.errors import PosttrainError, Problem

LOCK = ".lock"

log = logging.getLogger("posttrain")


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold a directory while a run works in it; it is let go when the process ends, however it ends.

    The lock is POSIX's on a record of a file: a process started by this one does not inherit it, and NFS knows it.

    Raises:
        PosttrainError: another process holds it.
    """
    import fcntl

    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK).open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                what = f"another process runs in {directory}"
                remedy = "wait for its end or stop it, or choose another --output"
                raise PosttrainError(Problem(what, remedy=remedy)) from None
            log.warning("%s cannot be locked (%s): see that no second run works there", directory, error.strerror)
        yield
