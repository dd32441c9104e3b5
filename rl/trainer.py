"""The policy trainer: TRL's GRPO with per-sample modes and budgets, alarms, and a resume that is exact."""

from __future__ import annotations

from typing import Any

from trl import GRPOTrainer

from posttrain.rl.advantage_rows import RowsWithAdvantage
from posttrain.rl.filled_batches import FilledBatches
from posttrain.rl.health import Health, Watch
from posttrain.rl.resume import ResumableRollouts
from posttrain.rl.rollouts import PerSampleRollouts, size_outside_embeddings


class PolicyTrainer(FilledBatches, PerSampleRollouts, ResumableRollouts, RowsWithAdvantage, GRPOTrainer):  # type: ignore[misc]
    """`GRPOTrainer` over rows with the columns `prompt`, `mode`, `switch` and `thinking_budget`."""

    def watch(self, health: Health) -> None:
        """Raise alarms as `health` says. Called once, after construction."""
        self._watch = Watch(health)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple[list[list[int]], None]:
        return super()._generate_single_turn(*args, **kwargs), None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if self.model.training:
            figures = self._metrics["train"]
            alarms = self._watch.look(
                truncated=figures["completions/clipped_ratio"][-1],
                trained_tokens=int(output["num_items_in_batch"]),
                flat_groups=figures["frac_reward_zero_std"][-1],
                reward=figures["reward"][-1],
            )
            for name, value in alarms.items():
                figures[name].append(value)
        return output

    def _other_forward_tokens(self) -> float:
        """The reference's forward and the one for the old log-probabilities, where there are any."""
        args = self.args
        passes = int(self.beta != 0.0) + int(args.gradient_accumulation_steps % self._generate_every() != 0)
        policy = self.accelerator.unwrap_model(self.model)
        return float(passes * size_outside_embeddings(policy) * self.rollout_tokens)
