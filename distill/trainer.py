"""On-policy distillation: TRL's trainer with our rollouts, alarms and divergence, and a resume that is exact."""

from __future__ import annotations

from typing import Any

import torch
from trl import DistillationTrainer

from posttrain.distill.divergence import divergence
from posttrain.distill.heads import whole_head
from posttrain.distill.tiles import Projection
from posttrain.rl.health import Health, Watch
from posttrain.rl.resume import ResumableRollouts
from posttrain.rl.rollouts import PerSampleRollouts, size_outside_embeddings


class StudentTrainer(PerSampleRollouts, ResumableRollouts, DistillationTrainer):  # type: ignore[misc]
    """`DistillationTrainer` over rows with the columns `prompt`, `mode`, `switch` and `thinking_budget`."""

    def watch(self, health: Health, *, entries: int) -> None:
        """Raise alarms as `health` says, and compare the first `entries` of the vocabulary. Called once."""
        self._watch = Watch(health)
        self._entries = entries

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if self.model.training:
            figures = self._metrics["train"]
            alarms = self._watch.look(
                truncated=figures["completions/clipped_ratio"][-1],
                trained_tokens=int(output["num_items_in_batch"]),
                flat_groups=None,
                reward=None,
            )
            for name, value in alarms.items():
                figures[name].append(value)
        return output

    def _compute_loss(self, unwrapped_student: Any, inputs: Any, num_items_in_batch: Any) -> Any:
        """The mean divergence over the tokens that the student chose, and for the figures the sum of its entropy over
        them and their number. Called by TRL within the student's forward, where sharded weights are at hand."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        kept = inputs["completion_mask"] * inputs.get("tool_mask", 1)  # forced tokens are not the student's
        tokens = inputs["completion_ids"].shape[1]
        hidden = self._get_last_hidden_state(unwrapped_student, ids, attention, tokens)
        self.teacher_model.eval()
        teacher = self.accelerator.unwrap_model(self.teacher_model)
        with torch.no_grad():
            read = self._get_last_hidden_state
            theirs = self._forward_redirection(self.teacher_model, teacher, read, teacher, ids, attention, tokens)
        chosen = kept.bool()
        with whole_head(unwrapped_student, hidden.dtype) as head, whole_head(teacher, theirs.dtype) as teachers_head:
            found = divergence(
                Projection(hidden[chosen], head),
                Projection(theirs[chosen], teachers_head),
                entries=self._entries,
                beta=self.beta,
                temperature=self.temperature,
            )
        number = chosen.sum()
        items = number.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return found.total / items, found.entropy.sum(), number

    def _other_forward_tokens(self) -> float:
        """The teacher's forward over every trained token."""
        teacher = self.accelerator.unwrap_model(self.teacher_model)
        return float(size_outside_embeddings(teacher) * self.train_tokens)
