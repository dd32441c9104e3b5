"""On-policy distillation: TRL's trainer with per-sample modes and budgets, alarms, and a resume that is exact."""

from __future__ import annotations

from typing import Any

from trl import DistillationTrainer

from posttrain.distill.padding import without_padding
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
        teacher = self.accelerator.unwrap_model(self.teacher_model)
        with without_padding(unwrapped_student, self._entries), without_padding(teacher, self._entries):
            return super()._compute_loss(unwrapped_student, inputs, num_items_in_batch)

    def _other_forward_tokens(self) -> float:
        """The teacher's forward over every trained token."""
        teacher = self.accelerator.unwrap_model(self.teacher_model)
        return float(size_outside_embeddings(teacher) * self.train_tokens)
