"""Alarms: what goes wrong silently in training on rollouts is said aloud, and stops the run if the recipe says so."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from pydantic import Field

from posttrain.errors import PosttrainError, Problem
from posttrain.recipe.schema import Spec
from posttrain.rl.entropy import EntropyBand

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


class PolicyHealth(Health):
    """What a stage of RL watches beyond that. Steps are optimizer steps, batches are micro-batches."""

    entropy: EntropyBand | None = Field(default=None, description="the band that the policy's entropy is kept in")
    stop_if_outside: int = Field(
        default=0, ge=0, description="stop when the entropy lies outside its band so many steps in a row; 0: only warn"
    )
    max_ratio: float = Field(
        default=10.0, gt=1.0, description="alarm when a token's importance ratio, before clipping, is larger"
    )
    stop_if_exploding: int = Field(
        default=0, ge=0, description="stop when ratios are that large in so many batches in a row; 0: only warn"
    )
    max_probe_difference: float = Field(
        default=0.2,
        gt=0.0,
        description="stop when an engine's log-probs of its own tokens differ by more from the policy's, on average",
    )


@dataclass
class Watch:
    """Looks at every generation batch of a run, and at the steps on it."""

    health: Health
    streaks: dict[str, int] = field(default_factory=dict)

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

    def ratio(self, highest: float) -> float:
        """Judge a micro-batch's largest importance ratio before clipping; as `look`."""
        assert isinstance(self.health, PolicyHealth)
        sick = not highest <= self.health.max_ratio
        text = (
            f"a token's importance ratio is {highest:.3g} before clipping (health.max_ratio: {self.health.max_ratio:g})"
        )
        self._streak("ratio", sick, text, self.health.stop_if_exploding)
        return float(sick)

    def entropy(self, entropy: float, coefficient: float) -> float:
        """Judge the entropy of an optimizer step, whose answer is a coefficient; as `look`."""
        assert isinstance(self.health, PolicyHealth)
        band = self.health.entropy
        assert band is not None
        sick = not band.holds(entropy)
        text = (
            f"the policy's entropy is {entropy:.3g} nats a token, outside {band.low:g} to {band.high:g}; "
            f"the coefficient that draws it back is {coefficient:+.3g}"
        )
        self._streak("entropy", sick, text, self.health.stop_if_outside)
        return float(sick)

    def _streak(self, kind: str, sick: bool, text: str, limit: int) -> None:
        self.streaks[kind] = self.streaks.get(kind, 0) + 1 if sick else 0
        length = self.streaks[kind]
        if limit and length >= limit:
            raise PosttrainError(Problem(f"{text}, {length} batches in a row", why=_WHY[kind], remedy=_REMEDY[kind]))
        # At 1, 2, 4, 8, ... in a row: a long streak is told without flooding the log.
        if length and length & (length - 1) == 0:
            log.warning("%s (%d in a row)", text, length)


_WHY = {
    "equal": "a batch without differences in reward has no gradient",
    "truncated": "no answer is ever finished, so none is ever right",
    "ratio": "the policy has left the rollouts that it learns from",
    "entropy": "a policy that always says the same explores nothing, and one that says anything has learnt nothing",
}
_REMEDY = {
    "equal": "look at the rollouts: either all is solved (choose harder queries, by pass_rate), or nothing is rewarded",
    "truncated": "raise train.max_completion_length, or give thinking_budgets",
    "ratio": "lower the learning rate, train.num_iterations or train.steps_per_generation",
    "entropy": "raise health.entropy.limit or step, lower the learning rate, or widen the band",
}
