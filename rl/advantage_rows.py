"""Rows without an advantage stay out of forward and backward: half of the work may be theirs, and no gradient is.

With no KL term, no entropy bonus and no auxiliary loss, a row's part of TRL's loss is its advantage times something
finite: zero where the advantage is. What such a row does is count in the denominator, so the loss of the others is
scaled as if it were there. Padding that only the dropped rows needed goes, too.
"""

from __future__ import annotations

from typing import Any

import torch

SCALE = "loss_scale"
"""Key of a micro-batch: what its loss is multiplied by, so that dropped rows count in the denominator."""
PER_ROW = ("grpo", "sapo", "dr_grpo", "luspo")  # the mean over rows
PER_TOKEN = ("bnpo",)  # the mean over the micro-batch's tokens
PER_GENERATION = ("dapo", "cispo", "vespo")  # a mean over the generation batch, whose token count stands in it


class RowsWithAdvantage:
    """Mixin just before TRL's `GRPOTrainer`."""

    _scores: torch.Tensor

    def _calculate_rewards(self, *args: Any) -> torch.Tensor:
        scores: torch.Tensor = super()._calculate_rewards(*args)  # type: ignore[misc]
        self._scores = scores
        return scores

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's own, but that the advantage of equal rewards is 0, not the rounding of their mean."""
        trainer: Any = self
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        if trainer.model.training:
            size, rows = trainer.num_generations, len(output["advantages"])
            groups = self._scores.view(-1, size, self._scores.shape[-1])
            how = trainer.multi_objective_aggregation
            different = [differs(group, trainer.reward_weights, how) for group in groups]
            of_row = torch.tensor(different, device=self._scores.device).repeat_interleave(size)
            first = trainer.accelerator.process_index * rows
            own = of_row[first : first + rows].view(-1, *[1] * (output["advantages"].dim() - 1))
            output["advantages"] = output["advantages"] * own
        return output

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        trainer: Any = self
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)  # type: ignore[misc]
        if trainer.model.training and self._only_advantages_count():
            return with_advantage(inputs, trainer.loss_type, least=self._most_anywhere(inputs))
        return inputs

    def _most_anywhere(self, inputs: dict[str, Any]) -> int:
        """Rows with an advantage in the process that has most of them: TRL gathers figures of every row."""
        accelerator: Any = self.accelerator  # type: ignore[attr-defined]
        if accelerator.num_processes == 1:
            return 1
        return int(accelerator.gather(_has_advantage(inputs).sum()[None]).max())

    def _only_advantages_count(self) -> bool:
        trainer: Any = self
        return (
            trainer.beta == 0.0
            and not trainer._entropy_bonus_enabled
            and trainer.top_entropy_quantile == 1.0  # else the quantile is over all rows
            and not trainer.aux_loss_enabled
            and trainer.loss_type in (*PER_ROW, *PER_TOKEN, *PER_GENERATION)
        )

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        return super()._compute_loss(model, inputs) * inputs.get(SCALE, 1.0)  # type: ignore[misc]


def differs(rewards_G_R: torch.Tensor, weights_R: torch.Tensor, aggregation: str) -> bool:
    """Whether the rollouts of a group get different advantages; NaN rewards do not apply."""
    if aggregation == "normalize_then_sum":  # every reward is compared by itself
        columns = rewards_G_R.T
    else:
        total_G = (rewards_G_R * weights_R.to(rewards_G_R.device)).nansum(-1)
        total_G[rewards_G_R.isnan().all(-1)] = torch.nan
        columns = total_G[None]
    scored = [column[~column.isnan()] for column in columns]
    return any(len(column) > 1 and not torch.isclose(column.max(), column.min()) for column in scored)


def with_advantage(inputs: dict[str, Any], loss_type: str, *, least: int = 1) -> dict[str, Any]:
    """A micro-batch of B rows without those whose advantage is 0, but with `least` rows, and with one, in any case."""
    has_B = _has_advantage(inputs)
    rows, count = len(has_B), max(int(has_B.sum()), least, 1)
    if count >= rows or "pixel_values" in inputs:  # images are not one entry a row
        return inputs
    keep = (~has_B).int().argsort(stable=True)[:count].sort().values
    kept = {key: value[keep] if _by_row(value, rows) else value for key, value in inputs.items()}
    kept[SCALE] = _scale(inputs, kept, loss_type)
    _trim(kept, "prompt_mask", ("prompt_ids", "prompt_mask"), left=True)
    by_token = [k for k, v in kept.items() if _by_row(v, len(keep)) and v.shape[1:] == kept["completion_ids"].shape[1:]]
    _trim(kept, "completion_mask", [k for k in by_token if not k.startswith("prompt")], left=False)
    return kept


def _has_advantage(inputs: dict[str, Any]) -> torch.Tensor:
    advantages: torch.Tensor = inputs["advantages"]
    return advantages.reshape(len(advantages), -1).ne(0).any(-1)


def _by_row(value: Any, rows: int) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == rows


def _scale(inputs: dict[str, Any], kept: dict[str, Any], loss_type: str) -> float:
    if loss_type in PER_ROW:
        return len(kept["advantages"]) / len(inputs["advantages"])
    if loss_type in PER_TOKEN:
        return float(_own_tokens(kept).clamp(min=1) / _own_tokens(inputs).clamp(min=1))
    return 1.0


def _own_tokens(inputs: dict[str, Any]) -> torch.Tensor:
    mask: torch.Tensor = inputs["completion_mask"]
    return (mask * inputs["tool_mask"] if "tool_mask" in inputs else mask).sum()


def _trim(inputs: dict[str, Any], mask: str, keys: Any, *, left: bool) -> None:
    """Cut the columns in which every row is padded."""
    used = inputs[mask].bool().any(0).nonzero()
    if not len(used):
        return
    part = slice(int(used[0]), None) if left else slice(None, int(used[-1]) + 1)
    for key in keys:
        inputs[key] = inputs[key][:, part]
