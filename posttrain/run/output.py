"""Where a command is to write: refused before anything begins if it cannot."""

from __future__ import annotations

import tempfile
from pathlib import Path

from posttrain.errors import PosttrainError, Problem

REMEDY = "name a place that can be written to"


def check_directory_to_write(directory: Path) -> None:
    """Refuse a directory that is not there and cannot be made, or that cannot be written to.

    Raises:
        PosttrainError: a file stands in its place or above it, or it cannot be written to.
    """
    there = directory.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise PosttrainError(Problem(f"{directory} cannot be a directory: {there} is a file", remedy=REMEDY))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        what = f"{directory} cannot be written to: {error.strerror or error}"
        raise PosttrainError(
            Problem(what, why=f"{there} takes no file" if there != directory else "", remedy=REMEDY)
        ) from error


def check_file_to_write(path: Path) -> None:
    """Refuse a file that cannot be written.

    Raises:
        PosttrainError: a directory stands in its place, or its own cannot be written to.
    """
    if path.is_dir():
        raise PosttrainError(Problem(f"{path} is a directory, and a file is to be written there", remedy=REMEDY))
    check_directory_to_write(path.parent)
