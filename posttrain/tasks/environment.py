"""A task that answers back over several turns: what an environment is, whoever plays it (RL's rollouts, evaluation).

A task that has `environment()` is interactive. Its rows are queries like any other (the opening message is the prompt);
whoever answers one plays it out, and the score is the environment's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from posttrain.tasks.registry import get_task
from posttrain.templates.parsed import ParsedMessage


@dataclass(frozen=True)
class Reply:
    """What an environment replies to a move.

    Attributes:
        text: what the player is told.
        valid: the move could be read and was allowed. If not, the state is unchanged.
        done: it is over.
        score: counts when done: 1 won, 0 lost, between: won in part.
    """

    text: str
    valid: bool = True
    done: bool = False
    score: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What playing came to.

    Attributes:
        score: in [0, 1]; 0 where it did not end by itself.
        won: the full score.
        turns: messages of the player, invalid ones included.
        max_turns: turns there might have been.
        invalid: of these, without a move, or with one that was not read or not allowed.
        faults: moves on which the environment itself raised: a fault of ours, counted as invalid too.
        ended: by the environment itself, not by running out of turns or by being left.
        patterns: turns in which each pattern of reasoning shows, where the environment looks for any.
    """

    score: float
    won: bool
    turns: int
    max_turns: int
    invalid: int = 0
    faults: int = 0
    ended: bool = True
    patterns: Mapping[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Environment(Protocol):
    """One player's environment. It is reset for every row, and never raises for anything that a model may write."""

    def reset(self, row: Mapping[str, Any]) -> str:
        """Begin the row's instance anew; the opening message, which is the last message of the row's prompt too."""
        ...

    def step(self, message: ParsedMessage) -> Reply:
        """Take the player's message. What stands in its reasoning moves nothing."""
        ...

    @property
    def outcome(self) -> Outcome:
        """What it came to, or has come to so far."""
        ...


def environment_for(row: Mapping[str, Any]) -> Environment | None:
    """The environment that plays a row, not yet reset; None where its task is answered in one message, or is none.

    Raises:
        PosttrainError: there is no such task.
    """
    make = getattr(get_task(row["task"]), "environment", None) if row.get("task") else None
    return make() if make is not None else None
