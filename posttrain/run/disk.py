"""A full disk, told as one: the libraries that write tell it in five ways, torch's without naming it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from posttrain.errors import Problem

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SAID = tuple(os.strerror(number) for number in FULL)  # by libraries written in Rust, which keep no number
TORCH = ("inline_container.cc", "PytorchStreamWriter")  # torch.save, when a write comes out short


def full_disk(error: BaseException) -> Problem | None:
    """The problem to tell where an error comes from a file that could not be written whole; None for any other."""
    for one in _chain(error):
        number = one.errno if isinstance(one, OSError) else None
        said = next((text for text in SAID if text in str(one)), None)
        if number in FULL or said or any(mark in str(one) for mark in TORCH):
            why = os.strerror(number) if number in FULL and number is not None else said or "a write came out short"
            filename = getattr(one, "filename", None)
            return Problem(
                f"a file could not be written whole: {why}",
                where=str(filename) if filename else "",
                why="the disk is full, or a quota or limit on the size of files is reached",
                remedy="make room; the same command goes on from the last whole piece, and nothing finished is lost",
            )
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised from, or while handling."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
