"""What TRL's GRPO trainer does not tell of its policy: entropy, raw importance ratios, the sampler's log-probs."""

from __future__ import annotations

import math
from typing import Any

import torch

from posttrain.errors import PosttrainError, Problem
from posttrain.rl.entropy import EntropyControl
from posttrain.rl.health import PolicyHealth, Watch

PROBED_ROWS = 8
"""Rollouts whose log-probabilities are held against the sampler's, where TRL does not do so for all."""


class WatchedPolicy:
    """Mixin before TRL's `GRPOTrainer`, and before what drops rows. `watch` is called once, after construction."""

    _control: EntropyControl | None = None
    _log_probs: torch.Tensor

    def watch(self, health: PolicyHealth) -> None:
        """Raise alarms as `health` says, and keep the entropy in its band."""
        trainer: Any = self
        self._health, self._watch = health, Watch(health)
        self._entropies: list[float] = []
        if health.entropy is not None:
            self._control = EntropyControl(health.entropy)
            trainer._entropy_bonus_enabled, trainer.entropy_coef = True, 0.0

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        output = super()._get_per_token_logps_and_entropies(*args, **kwargs)  # type: ignore[misc]
        self._log_probs = output[0].detach()
        return output

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        trainer: Any = self
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        if trainer.model.training:
            figures = trainer._metrics["train"]
            alarms = self._watch.look(
                truncated=figures["completions/clipped_ratio"][-1],
                trained_tokens=int(output["num_items_in_batch"]),
                flat_groups=figures["frac_reward_zero_std"][-1],
                reward=figures["reward"][-1],
            )
            for name, value in alarms.items():
                figures[name].append(value)
            if "sampling_per_token_logps" in output:
                self._probe(output)
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        trainer: Any = self
        loss = super()._compute_loss(model, inputs)  # type: ignore[misc]
        if trainer.model.training:
            if "old_per_token_logps" in inputs:
                self._look_at_ratios(self._log_probs - inputs["old_per_token_logps"], own_tokens(inputs))
            self._entropies.append(trainer._metrics["train"]["entropy"][-1])
            if trainer.accelerator.sync_gradients:
                self._look_at_entropy(sum(self._entropies) / len(self._entropies))
                self._entropies.clear()
        return loss

    def _look_at_ratios(self, log_ratio_B_T: torch.Tensor, own_B_T: torch.Tensor) -> None:
        """Log the ratios of policy to rollout policy before any clipping, and tell of exploding ones."""
        trainer: Any = self
        values = log_ratio_B_T[own_B_T]
        if not len(values):
            values = log_ratio_B_T.new_zeros(1)
        ratio = values.exp()
        local = torch.stack([ratio.max(), ratio.min(), ratio.mean()])
        highest, lowest, mean = trainer.accelerator.gather(local).view(-1, 3).T
        figures = trainer._metrics["train"]
        # TRL logs means of what is collected; of extremes the extreme is wanted.
        figures["ratio/max"] = [max([*figures["ratio/max"], float(highest.max())])]
        figures["ratio/min"] = [min([*figures["ratio/min"], float(lowest.min())])]
        figures["ratio/mean"].append(float(mean.mean()))
        figures["alarm/ratio"].append(self._watch.ratio(float(highest.max())))

    def _look_at_entropy(self, entropy: float) -> None:
        trainer: Any = self
        if self._control is None:
            return
        trainer.entropy_coef = self._control.update(entropy)
        alarm = self._watch.entropy(entropy, trainer.entropy_coef)
        trainer._metrics["train"]["alarm/entropy"].append(alarm)

    def _probe(self, output: dict[str, Any]) -> None:
        """Hold the sampler's log-probabilities of its own tokens against the trainer's.

        Raises:
            PosttrainError: they differ by more than the recipe allows: the sampler has other weights.
        """
        trainer: Any = self
        ours = output["old_per_token_logps"] if "old_per_token_logps" in output else self._scored(output)
        rows = len(ours)
        own, told = own_tokens(output)[:rows], output["sampling_per_token_logps"][:rows]
        # Where vLLM gives no number there is none to compare.
        difference = (ours - told)[own & ~told.isnan()]
        sums = [difference.abs().sum(), difference.exp().sum(), difference.new_tensor(len(difference)), own.sum()]
        apart, ratio, count, chosen = trainer.accelerator.gather(torch.stack(sums)).view(-1, 4).sum(0).tolist()
        if not chosen:  # all of these rollouts are masked, which says nothing of the weights
            return
        figures = trainer._metrics["train"]
        mean = apart / count if count else math.nan
        figures["probe/difference"].append(mean)
        figures["probe/ratio"].append(ratio / count if count else math.nan)
        sick = not mean <= self._health.max_probe_difference
        figures["alarm/probe"].append(float(sick))
        if sick:
            raise PosttrainError(
                Problem(
                    f"the sampler's log-probabilities of its own tokens differ from the policy's by {mean:.3g} nats on "
                    f"average (health.max_probe_difference: {self._health.max_probe_difference:g})",
                    why="it samples with other weights than those that are trained, so every update would be wrong",
                    remedy="look whether the weights reach it; a lower precision alone gives a few hundredths",
                )
            )

    def _scored(self, output: dict[str, Any]) -> torch.Tensor:
        """The policy's log-probabilities of the first rollouts' tokens, (rows, T)."""
        trainer: Any = self
        part = {key: output[key][:PROBED_ROWS] for key in ("prompt_ids", "prompt_mask", "completion_ids")}
        mask = torch.cat([part["prompt_mask"], output["completion_mask"][:PROBED_ROWS]], 1)
        ids = torch.cat([part["prompt_ids"], part["completion_ids"]], 1)
        with torch.no_grad():
            scored = trainer._get_per_token_logps_and_entropies(
                trainer.model, ids, mask, part["completion_ids"].size(1)
            )
        log_probs: torch.Tensor = scored[0]
        return log_probs

    def _rollout_state(self) -> dict[str, Any]:
        state: dict[str, Any] = super()._rollout_state()  # type: ignore[misc]
        return {**state, "streaks": dict(self._watch.streaks)} | (
            {"entropy_coefficient": self._control.coefficient} if self._control else {}
        )

    def _restore_rollouts(self, state: dict[str, Any]) -> None:
        trainer: Any = self
        super()._restore_rollouts(state)  # type: ignore[misc]
        self._watch.streaks.update(state.get("streaks", {}))
        if self._control is not None:
            trainer.entropy_coef = self._control.coefficient = state["entropy_coefficient"]


def own_tokens(inputs: dict[str, Any]) -> torch.Tensor:
    """(B, T), true where the policy chose the token: neither padding nor forced nor of a masked completion."""
    mask: torch.Tensor = inputs["completion_mask"]
    return (mask * inputs["tool_mask"] if "tool_mask" in inputs else mask).bool()
