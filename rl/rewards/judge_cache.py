"""Replies of a judge on disk, by the hash of what was asked. Several processes may share a file."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

WAIT = 30.0  # seconds for another process to finish writing
AT_ONCE = 500  # SQLite takes so many parameters in any build


def default_path() -> Path:
    """Below $XDG_CACHE_HOME, or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "posttrain" / "judge.sqlite"


class JudgeCache:
    """A table of replies. It is opened when it is first needed, in the process that needs it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=WAIT)
        connection.execute("CREATE TABLE IF NOT EXISTS replies (mark TEXT PRIMARY KEY, reply TEXT NOT NULL)")
        return connection

    def read(self, marks: Sequence[str]) -> dict[str, str]:
        """The replies that are there."""
        if not marks or not self.path.exists():
            return {}
        found: dict[str, str] = {}
        connection = self._open()
        try:
            for start in range(0, len(marks), AT_ONCE):
                some = marks[start : start + AT_ONCE]
                places = ",".join("?" * len(some))
                found |= dict(connection.execute(f"SELECT mark, reply FROM replies WHERE mark IN ({places})", some))
        finally:
            connection.close()
        return found

    def write(self, mark: str, reply: str) -> None:
        """Keep a reply; the first one stays."""
        connection = self._open()
        try:
            with connection:
                connection.execute("INSERT OR IGNORE INTO replies VALUES (?, ?)", (mark, reply))
        finally:
            connection.close()
