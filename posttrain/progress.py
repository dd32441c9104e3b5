"""Progress of long steps: a bar with the time left on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("posttrain")

LINE_EVERY = 10.0  # seconds


@contextmanager
def progress(what: str, total: int, *, quiet: bool = False, start: int = 0) -> Iterator[Callable[[int], None]]:
    """Show how far a step is. Yields a function to call with the number of items just done.

    Args:
        what: what is being done, as "training cold_start".
        total: items in all; start: items done already.
        quiet: show nothing.
    """
    if quiet:
        yield lambda done: None
    elif sys.stderr.isatty():
        with _bar(what, total, start) as advance:
            yield advance
    else:
        yield _lines(what, total, start)


@contextmanager
def _bar(what: str, total: int, start: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, completed=start)
        yield lambda done: bar.update(task, advance=done)


def _lines(what: str, total: int, start: int) -> Callable[[int], None]:
    began = last = time.monotonic()
    count = start

    def advance(done: int) -> None:
        nonlocal last, count
        count += done
        now = time.monotonic()
        if now - last < LINE_EVERY and count != total:
            return
        last = now
        left = (now - began) / max(1, count - start) * (total - count)
        log.info("%s: %d of %d, %.0f s gone, %.0f s left", what, count, total, now - began, max(0.0, left))

    return advance
