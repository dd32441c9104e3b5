"""The policy trainer: TRL's GRPO with per-sample modes and budgets, alarms, and a resume that is exact."""

from __future__ import annotations

from typing import Any

from posttrain.model.trl_trainers import GRPOTrainer
from posttrain.rl.advantage_rows import RowsWithAdvantage
from posttrain.rl.filled_batches import FilledBatches
from posttrain.rl.policy_health import WatchedPolicy
from posttrain.rl.resume import ResumableRollouts
from posttrain.rl.rollouts import PerSampleRollouts, size_outside_embeddings


class PolicyTrainer(
    FilledBatches,
    PerSampleRollouts,
    WatchedPolicy,
    ResumableRollouts,
    RowsWithAdvantage,
    GRPOTrainer,  # type: ignore[misc]
):
    """`GRPOTrainer` over rows with the columns `prompt`, `mode`, `switch` and `thinking_budget`."""

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple[list[list[int]], Any]:
        ids = super()._generate_single_turn(*args, **kwargs)
        if self._engine is None:
            return ids, None
        # None: not told, as of what an environment said; TRL and the probe leave these tokens alone.
        return ids, [done.log_probs or [None] * len(done.completion_ids) for done in self._completions]

    def _other_forward_tokens(self) -> float:
        """The reference's forward and the one for the old log-probabilities, where there are any."""
        args = self.args
        passes = int(self.beta != 0.0) + int(args.gradient_accumulation_steps % self._generate_every() != 0)
        policy = self.accelerator.unwrap_model(self.model)
        return float(passes * size_outside_embeddings(policy) * self.rollout_tokens)
