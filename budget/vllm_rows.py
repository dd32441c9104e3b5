"""One request of an engine's batch under the budget, looked at only when what it says can have changed.

A state knows for how many plain tokens it stays quiet (`BudgetState.quiet`); until then a token matters only if it is
one of the rule's marks. So most steps cost a look at the latest token, whatever the length, and the tokens in between
are told to the state at once.

Everything here is a function of the tokens: a request that is removed and comes back with the same tokens (preemption,
discarded drafts) stands where it stood. Nothing depends on having seen each step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

from posttrain.budget.state import BudgetState

SHORTEST = 8  # tokens; a row that would sleep for fewer stays awake
LONGEST = 1024  # tokens; a row sleeps no longer, so that it never has much to catch up with in one step
PLACEHOLDER = -1  # in the place of a token that was sampled, but did not arrive yet


class Row:
    """One request under the budget.

    Args:
        fresh: makes the state before the first token.
        read: the completion's tokens from one place to another, as far as they are known.
        marks: the ids that a quiet state has to see, and PLACEHOLDER.
        temperature: of the request's sampling, for the scores of an end (`vllm_scores`).

    Attributes:
        temperature: as given.
        wake: the length of the completion at which the state has to be asked again, whatever the tokens are; while ids
            are being forced, when all of them came.
    """

    __slots__ = ("_checked", "_due", "_fresh", "_marks", "_read", "_seen", "_state", "temperature", "wake")

    def __init__(
        self,
        fresh: Callable[[], BudgetState],
        read: Callable[[int, int], Sequence[int]],
        marks: Set[int],
        temperature: float,
    ) -> None:
        self._fresh = fresh
        self._read = read
        self._marks = marks
        self.temperature = temperature
        self._restart()

    def _restart(self) -> None:
        self._state = self._fresh()
        self._seen = 0  # tokens that the state knows
        self._checked = 0  # tokens known to be plain or forced, those included
        self._plan()

    @property
    def sleeps(self) -> bool:
        """Whether it stays quiet for some time if no mark comes."""
        return not self._due and self.wake - self._checked > SHORTEST

    def due(self) -> list[int]:
        """The ids that must come next, after the tokens followed so far, one after the other."""
        return self._due[self._checked - self._seen :]

    def forced(self) -> int | None:
        """The id that must come next, after the tokens followed so far; None: the model's choice."""
        return self._due[self._checked - self._seen] if self._due else None

    def redirect(self) -> tuple[frozenset[int], int] | None:
        """The ids that must not come next, and the one that takes their place."""
        return self._state.redirect()

    def follow(self, length: int) -> bool:
        """Come to the end of a completion that has `length` tokens. Returns whether the answers can have changed.

        Raises:
            RuntimeError: the engine did not deliver a forced id, or has not got the tokens yet.
        """
        if length < self._checked:  # the engine took tokens back
            self._restart()
            self.follow(length)
            return True
        tokens = self._read(self._checked, length)
        if self._due:
            at, end = self._checked - self._seen, length - self._seen
            if end < len(self._due) and self._due[at:end] == tokens:
                self._checked = length
                return False
        elif length < self.wake and self._marks.isdisjoint(tokens):
            self._checked = length
            return False
        if PLACEHOLDER in tokens:
            raise RuntimeError("the engine shows a placeholder where the budget needs the token")
        self._tell(length)
        return True

    def skip(self, length: int) -> None:
        """The engine watched a sleeping row: none of its first `length` tokens that were not followed is a mark."""
        if not self._due:
            self._checked = max(self._checked, length)

    def ahead(self) -> BudgetState:
        """The state after the followed tokens, to be led along a draft that may be thrown away."""
        if self._seen < self._checked:
            self._tell(self._checked)
        return self._state.copy()

    def _tell(self, length: int) -> None:
        plain = 0 if self._due else self._checked - self._seen
        self._state.replay(self._read(self._seen, length), plain=plain)
        self._seen = self._checked = length
        self._plan()

    def _plan(self) -> None:
        """What comes next: ids that are due, or quiet tokens."""
        self._due = list(self._state.due)
        self.wake = self._seen + (len(self._due) or min(self._state.quiet(), LONGEST) + 1)
