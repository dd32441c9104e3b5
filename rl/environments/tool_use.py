"""Interactive tasks as TRL's own trainers take them: objects of an `environment_factory`, a move is a tool call.

This is TRL's interface as far as it goes: one mode and no budget for a whole run, and a model that writes tool calls.
The rollouts of our own trainer (`rl/multi_turn.py`) play the same rows by messages, each sample in its own way.

    GRPOTrainer(..., train_dataset=rows_of_the_task, environment_factory=ToolEnvironment)
"""

from __future__ import annotations

from typing import Any

from posttrain.tasks.environment import Environment, environment_for
from posttrain.templates.parsed import ParsedMessage

HOW_TO_CALL = "\n\nMake every move by calling the tool `move` with what would stand in the box."


class ToolEnvironment:
    """One rollout's environment. TRL calls `reset` with the row, shows `move` to the model, and asks `get_reward`."""

    def __init__(self) -> None:
        self._environment: Environment | None = None

    def reset(self, **row: Any) -> str:
        """Begin the row's instance. Returns what TRL appends to the row's prompt.

        Raises:
            ValueError: the row's task is not interactive.
        """
        self._environment = environment_for(row)
        if self._environment is None:
            raise ValueError(f"the task {row.get('task')!r} is not interactive")
        self._environment.reset(row)
        return HOW_TO_CALL

    def move(self, move: str) -> str:
        """Make a move.

        Args:
            move: The move, written as the rules say.

        Returns:
            The reply to the move.
        """
        assert self._environment is not None
        boxed = ParsedMessage(None, f"\\boxed{{{move}}}", (), closed=True, well_formed=True, problems=())
        return self._environment.step(boxed).text

    def get_reward(self) -> float:
        """The score of the episode."""
        return self._environment.outcome.score if self._environment is not None else 0.0
