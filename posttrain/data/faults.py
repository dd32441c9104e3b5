"""Bad rows: each named by file and line. Refused all at once, or counted, logged and skipped."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from posttrain.errors import PosttrainError, Problem

log = logging.getLogger("posttrain")

SHOWN = 20
ALIKE = 3  # rows shown of one fault: a misspelled column is the same in every row


class BadRow(Exception):
    """A row that cannot be used, with the reason."""


@dataclass(frozen=True)
class Place:
    """Where a row comes from: its 1-based line in a text file, or its 1-based row elsewhere; 0 means the whole file."""

    source: str
    number: int = 0
    is_line: bool = True

    def __str__(self) -> str:
        if not self.number:
            return self.source
        return f"{self.source}:{self.number}" if self.is_line else f"{self.source}, row {self.number}"


@dataclass
class RowFaults:
    """Collects the bad rows of one data set; at most `SHOWN`, and `ALIKE` of one text, are kept; all are counted.

    Attributes:
        name: the data set's name in the recipe.
        skip: go on without them (`on_bad_rows: skip`).
        fatal: a file itself cannot be read, which is refused even then.
    """

    name: str
    skip: bool = False
    count: int = 0
    fatal: int = 0
    shown: list[Problem] = field(default_factory=list)

    def add(self, place: Place, what: str) -> None:
        """A bad row, or with a place of no line a bad file."""
        self.count += 1
        self.fatal += not place.number
        if self.skip and place.number and self.count <= SHOWN:
            log.warning("data %s: skipped a bad row: %s: %s", self.name, place, what)
        alike = sum(problem.what == what for problem in self.shown)
        if len(self.shown) < SHOWN and alike < ALIKE:
            self.shown.append(Problem(what, str(place)))

    def settle(self) -> None:
        """Refuse the data set, or say how many rows were skipped.

        Raises:
            PosttrainError: there are faults that may not be skipped; the first ones, and how many more there are.
        """
        if self.count and self.skip and not self.fatal:
            log.warning("data %s: %d bad rows skipped", self.name, self.count)
        elif self.count:
            more = self.count - len(self.shown)
            rest = [Problem(f"... and {more} more")] if more else []
            remedy = "mend these rows, or leave them out with `on_bad_rows: skip`"
            rows = "bad row" if self.count == 1 else "bad rows"
            last = [] if self.fatal else [Problem(f"{self.count} {rows} in data {self.name!r}", remedy=remedy)]
            raise PosttrainError([*self.shown, *rest, *last])
