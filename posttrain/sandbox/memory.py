"""How much memory a process and all its descendants hold: the kernel's own limit is for one process only."""

from __future__ import annotations

from pathlib import Path

COUNTED = ("RssAnon:", "RssShmem:")  # kB; pages that two processes share count twice


def held_by(root: int) -> int:
    """Bytes of memory of their own that a process and its descendants hold. Those that end meanwhile count nothing."""
    total, waiting = 0, [root]
    while waiting:
        place = Path("/proc") / str(waiting.pop())
        try:
            status = (place / "status").read_text().splitlines()
            total += sum(int(line.split()[1]) << 10 for line in status if line.startswith(COUNTED))
            for children in (place / "task").glob("*/children"):
                waiting += map(int, children.read_text().split())
        except OSError:
            continue
    return total
