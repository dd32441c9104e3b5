"""The ids that a thinking budget works with: markers, stop text, ends of turn and of sentences. No engine, no text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

TOOL_CALL_LONGEST = 4096  # tokens; what stays open longer was a marker mentioned in passing, not a call


class Marker:
    """A marker with the table of Knuth, Morris and Pratt (1977): finds overlapping starts without going back."""

    __slots__ = ("borders", "ids")

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = tuple(ids)
        self.borders = [0]  # [p]: length of the longest proper prefix of ids[: p + 1] that is also its suffix
        for token in self.ids[1:]:
            self.borders.append(self.advance(self.borders[-1], token))

    def advance(self, matched: int, token: int) -> int:
        """How many ids are matched after `token`, when `matched` (not yet all) were before it."""
        while matched and self.ids[matched] != token:
            matched = self.borders[matched - 1]
        return matched + (self.ids[matched] == token)


@dataclass(frozen=True)
class BudgetRule:
    """The token ids of the rule in `posttrain.budget.state`, from the tokenizer (`posttrain.budget.tokens`).

    Attributes:
        open_ids, close_ids: the think markers.
        stop_ids: the stop text, which contains the close marker.
        eos_ids: the ids that end a turn.
        continue_ids: what replaces an end of thinking below a minimum; empty where there is none.
        tool_open_ids, tool_close_ids: the markers of a tool call; both empty where there are none.
        boundary_ids: ids whose text ends with the end of a sentence or line, and so never inside a character.
        period_ids: those of them that are a bare period; unfinished_ids: ids after which such a period ends no
            sentence, because their text ends with a digit (3.14; the 2. of a list), a single letter (e.g.) or an
            abbreviation (vs.).
        tool_call_longest: a call that is open for so many tokens is no longer taken for one.

    Raises:
        ValueError: a marker is empty where it must not be, two are equal, the stop text lacks the close marker, or the
            continuation contains a marker, an end of turn, or begins with the id that completes the close marker.
    """

    open_ids: tuple[int, ...]
    close_ids: tuple[int, ...]
    stop_ids: tuple[int, ...]
    eos_ids: frozenset[int]
    continue_ids: tuple[int, ...] = ()
    tool_open_ids: tuple[int, ...] = ()
    tool_close_ids: tuple[int, ...] = ()
    boundary_ids: frozenset[int] = frozenset()
    period_ids: frozenset[int] = frozenset()
    unfinished_ids: frozenset[int] = frozenset()
    tool_call_longest: int = TOOL_CALL_LONGEST

    def __post_init__(self) -> None:
        if not self.open_ids or not self.close_ids or self.open_ids == self.close_ids:
            raise ValueError(f"two different markers are needed, not {self.open_ids} and {self.close_ids}")
        if self._close_at < 0:
            raise ValueError(f"the stop text {self.stop_ids} does not contain the close marker {self.close_ids}")
        if bool(self.tool_open_ids) != bool(self.tool_close_ids):
            raise ValueError("a tool call has two markers or none")
        markers = [ids for ids in (self.open_ids, self.close_ids, self.tool_open_ids, self.tool_close_ids) if ids]
        if len(set(markers)) < len(markers):
            raise ValueError(f"two markers are equal: {markers}")
        said = self.continue_ids
        if any(find(said, marker) >= 0 for marker in markers) or self.eos_ids.intersection(said):
            raise ValueError(f"the continuation {said} contains a marker or an end of turn")
        if said and said[0] == self.close_ids[-1]:
            raise ValueError(f"the continuation {said} begins with the id that completes the close marker")

    @cached_property
    def _close_at(self) -> int:
        """Where the close marker begins in `stop_ids`; -1 where it is not."""
        return find(self.stop_ids, self.close_ids)

    @cached_property
    def lead_ids(self) -> tuple[int, ...]:
        """What is said before the close marker when thinking is stopped."""
        return self.stop_ids[: self._close_at]

    @cached_property
    def tail_ids(self) -> tuple[int, ...]:
        """What follows the close marker whenever it is forced."""
        return self.stop_ids[self._close_at + len(self.close_ids) :]

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The ids that can end thinking or the turn: ends of turn, and the last id of the close marker."""
        return self.eos_ids | {self.close_ids[-1]}

    @cached_property
    def marks(self) -> frozenset[int]:
        """The ids that a watcher must not overlook: ends of turn, and the first id of every marker."""
        markers = (self.open_ids, self.close_ids, self.tool_open_ids, self.tool_close_ids)
        return self.eos_ids | {ids[0] for ids in markers if ids}

    @cached_property
    def open_marker(self) -> Marker:
        return Marker(self.open_ids)

    @cached_property
    def close_marker(self) -> Marker:
        return Marker(self.close_ids)

    @cached_property
    def tool_open_marker(self) -> Marker | None:
        return Marker(self.tool_open_ids) if self.tool_open_ids else None

    @cached_property
    def tool_close_marker(self) -> Marker | None:
        return Marker(self.tool_close_ids) if self.tool_close_ids else None


def find(ids: Sequence[int], part: Sequence[int]) -> int:
    """Where `part` first stands in `ids`; -1 where it does not."""
    size = len(part)
    starts = range(len(ids) - size + 1)
    return next((start for start in starts if tuple(ids[start : start + size]) == tuple(part)), -1)
