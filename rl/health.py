"""Alarms: what goes wrong silently in training on rollouts is said aloud, and stops the run if the recipe says so."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from pydantic import Field

from posttrain.errors import PosttrainError, Problem
from posttrain.recipe.schema import Spec

log = logging.getLogger("posttrain")


class Health(Spec):
    """When a sick run is stopped. Every alarm is logged as a warning and as a figure (`alarm/...`), stopped or not."""

    stop_if_equal: int = Field(
        default=0,
        ge=0,
        description="stop when so many generation batches in a row carry no difference in reward at all; 0: only warn",
    )
    stop_if_truncated: int = Field(
        default=0,
        ge=0,
        description="stop when so many generation batches in a row are truncated to the last completion; 0: only warn",
    )


@dataclass
class Watch:
    """Looks at every generation batch of a run."""

    health: Health
    streaks: dict[str, int] = field(default_factory=lambda: {"equal": 0, "truncated": 0})

    def look(
        self, *, truncated: float, trained_tokens: int, flat_groups: float | None, reward: float | None
    ) -> dict[str, float]:
        """Judge one generation batch (figures over all processes).

        Args:
            truncated: share of completions that ran into the token limit.
            trained_tokens: completion tokens that the loss is on.
            flat_groups: share of groups whose rewards are all equal; None: no rewards here.
            reward: the mean reward; None: no rewards here.

        Returns:
            Figures to log: 1.0 for an alarm, 0.0 for none.

        Raises:
            PosttrainError: the loss is on no token at all, or a streak is as long as the recipe allows.
        """
        if trained_tokens == 0:
            raise PosttrainError(
                Problem(
                    "no completion token of this batch is left to train on",
                    why="every token is masked (forced by a budget, or truncated), so the step would change nothing",
                    remedy="raise thinking_budgets or train.max_completion_length, or drop mask_truncated_completions",
                )
            )
        figures = {"alarm/truncated": float(truncated >= 1.0)}
        self._streak(
            "truncated", truncated >= 1.0, "every completion of this batch is truncated", self.health.stop_if_truncated
        )
        if flat_groups is not None:
            flat = flat_groups >= 1.0
            figures["alarm/equal_rewards"] = float(flat)
            text = (
                f"every reward in this batch is equal within its group (mean {reward:.3g}): no advantage, no gradient"
            )
            self._streak("equal", flat, text, self.health.stop_if_equal)
        return figures

    def _streak(self, kind: str, sick: bool, text: str, limit: int) -> None:
        self.streaks[kind] = self.streaks[kind] + 1 if sick else 0
        length = self.streaks[kind]
        if limit and length >= limit:
            raise PosttrainError(Problem(f"{text}, {length} batches in a row", why=_WHY[kind], remedy=_REMEDY[kind]))
        # At 1, 2, 4, 8, ... in a row: a long streak is told without flooding the log.
        if length and length & (length - 1) == 0:
            log.warning("%s (%d in a row)", text, length)


_WHY = {
    "equal": "a batch without differences in reward has no gradient",
    "truncated": "no answer is ever finished, so none is ever right",
}
_REMEDY = {
    "equal": "look at the rollouts: either all is solved (choose harder queries, by pass_rate), or nothing is rewarded",
    "truncated": "raise train.max_completion_length, or give thinking_budgets",
}
