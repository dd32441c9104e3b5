"""The policy's entropy kept in a band: a bonus where it collapses, a penalty where it blows up.

TRL's adaptive entropy (Skywork-OR1, arXiv 2505.22312) has one target and knows collapse alone: its coefficient is never
negative. Here TRL's own bonus is used with a coefficient of either sign, moved a step after every optimizer step.
Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field, model_validator

from posttrain.recipe.schema import Spec


class EntropyBand(Spec):
    """Where the policy's entropy shall lie, and how strongly it is drawn there; nats a token, forced ones left out."""

    low: float = Field(ge=0.0, description="below it a bonus grows step by step")
    high: float = Field(gt=0.0, description="above it a penalty grows step by step")
    step: float = Field(default=0.005, gt=0.0, description="change of the coefficient after an optimizer step")
    limit: float = Field(default=0.1, gt=0.0, description="size of the coefficient at most")

    @model_validator(mode="after")
    def _in_order(self) -> EntropyBand:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) is not below high ({self.high})")
        return self

    def holds(self, entropy: float) -> bool:
        """Whether an entropy lies inside."""
        return self.low <= entropy <= self.high


@dataclass
class EntropyControl:
    """The coefficient of the entropy in the objective: above 0 a bonus, below 0 a penalty."""

    band: EntropyBand
    coefficient: float = 0.0

    def update(self, entropy: float) -> float:
        """The coefficient of the next step; what was wound up against the other side is let go at once."""
        band, now = self.band, self.coefficient
        if entropy < band.low:
            self.coefficient = min(max(now, 0.0) + band.step, band.limit)
        elif entropy > band.high:
            self.coefficient = max(min(now, 0.0) - band.step, -band.limit)
        else:
            self.coefficient = max(now - band.step, 0.0) if now > 0 else min(now + band.step, 0.0)
        return self.coefficient
