"""Did a completion keep its thinking budget? Judged from its ids alone, without the state machine that is under test.

The completion is cut into think blocks with a plain scan for the two marker ids. A block's ids are the model's own, but
for the stop text: that has to begin exactly where the budget is spent, to be whole, and to be said once and nowhere
else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ids:
    """One id each for the think markers, and those that end a turn."""

    open: int
    close: int
    ends: frozenset[int]


def faults(
    output: Sequence[int],
    ids: Ids,
    *,
    opened: bool,
    budget: int | None,
    stop: Sequence[int],
    guarded: bool = True,
) -> list[str]:
    """What is wrong with a completion; empty: nothing.

    Args:
        output: its ids; without a last end if `max_tokens` cut it off.
        opened: the prompt ended inside a block.
        budget: own thinking tokens allowed; None: no limit, so nothing may be forced.
        stop: the stop text's ids, with one close marker.
        guarded: an end inside thinking has to become a close.
    """
    output, stop = list(output), list(stop)
    lead, tail = stop[: stop.index(ids.close)], stop[stop.index(ids.close) + 1 :]
    found = []
    own, said = 0, -1
    for start, end in blocks(output, ids, opened):
        room = None if budget is None else budget - own
        inside, closed = output[start:end], end < len(output)
        if ids.ends.intersection(inside) and guarded and budget is not None:
            found.append("a turn ended inside thinking")
        inside = [token for token in inside if token not in ids.ends]
        if room is None or len(inside) < room:
            own += len(inside)
            continue
        own += room
        text, due = inside[room:], lead if said < 0 else []
        if text != due[: len(text)]:
            found.append("over the budget" if text[: len(due)] != due else "more than the stop text")
        elif closed and len(text) < len(due):
            found.append("the stop text is not whole")
        said = start + room if said < 0 else said
        after = output[end + 1 : end + 1 + len(tail)]
        if closed and after != tail[: len(after)]:
            found.append("the end of the stop text is missing")
    if len(lead) > 3:
        where = [at for at in range(len(output)) if output[at : at + len(lead)] == lead]
        if [at for at in where if at != said]:
            found.append("a stop text where none was due")
    return found


def blocks(output: Sequence[int], ids: Ids, opened: bool) -> list[tuple[int, int]]:
    """Begin and end (where the close marker stands, or the end) of each think block."""
    found, start = [], 0 if opened else None
    for at, token in enumerate(output):
        if start is None and token == ids.open:
            start = at + 1
        elif start is not None and token == ids.close:
            found.append((start, at))
            start = None
    return found if start is None else [*found, (start, len(output))]
