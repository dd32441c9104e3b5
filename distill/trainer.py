"""On-policy distillation: TRL's trainer with our rollouts, alarms and divergence, and a resume that is exact."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate.utils import send_to_device

from posttrain.distill.cached_trainer import stored_divergence
from posttrain.distill.divergence import divergence
from posttrain.distill.heads import whole_head
from posttrain.distill.schedule import StoredAnswers
from posttrain.distill.tiles import Projection
from posttrain.model.trl_trainers import DistillationTrainer
from posttrain.rl.health import Health, Watch
from posttrain.rl.resume import ResumableRollouts
from posttrain.rl.rollouts import PerSampleRollouts, size_outside_embeddings


class StudentTrainer(PerSampleRollouts, ResumableRollouts, DistillationTrainer):  # type: ignore[misc]
    """`DistillationTrainer` over rows with the columns `prompt`, `mode`, `switch` and `thinking_budget`.

    Without a teacher's model the student, which then bears an adapter, teaches itself with the adapter off.
    """

    stored: StoredAnswers | None = None
    """What off-policy steps learn from, where there are any."""

    def watch(self, health: Health, *, entries: int) -> None:
        """Raise alarms as `health` says, and compare the first `entries` of the vocabulary. Called once."""
        self._watch = Watch(health)
        self._entries = entries
        self._off_policy_batches: list[Any] | None = None

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
        chosen = kept.bool()
        with ExitStack() as gathered:
            head = gathered.enter_context(whole_head(unwrapped_student, hidden.dtype))
            with torch.no_grad(), self._teaching(unwrapped_student) as (wrapped, teacher):
                read = self._get_last_hidden_state
                theirs = self._forward_redirection(wrapped, teacher, read, teacher, ids, attention, tokens)
                teachers_head = gathered.enter_context(whole_head(teacher, theirs.dtype))
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

    @contextmanager
    def _teaching(self, student: Any) -> Iterator[tuple[Any, Any]]:
        """The teacher as the engine wraps it, and bare."""
        if self.teacher_model is not None:
            self.teacher_model.eval()
            yield self.teacher_model, self.accelerator.unwrap_model(self.teacher_model)
            return
        training = student.training
        with student.disable_adapter():
            try:
                yield student.eval(), student
            finally:
                student.train(training)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        step, steps = self.state.global_step, self.state.max_steps
        if self.stored is None or not self.model.training or not self.stored.share.is_off_policy(step, steps):
            return super()._prepare_inputs(generation_batch)
        micro_steps = self.args.gradient_accumulation_steps
        if self._step % micro_steps == 0 or self._off_policy_batches is None:
            process = self.accelerator.process_index
            self._off_policy_batches = self.stored.of_step(step, steps, process, self._summed)
        inputs = send_to_device(self._off_policy_batches[self._step % micro_steps], self.accelerator.device)
        read = inputs["attention_mask"] if "attention_mask" in inputs else torch.ones_like(inputs["input_ids"])
        tokens = int(self._summed([int(read.sum())])[0])
        self.counters["train_tokens"] += tokens
        self.counters["stored_tokens"] = self.counters.get("stored_tokens", 0) + tokens
        return inputs

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if "teacher_ids" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        tokens = max(1, inputs.pop("supervised")) / self.accelerator.num_processes
        student = self.accelerator.unwrap_model(model)
        wanted = {"entries": self._entries, "beta": self.beta, "temperature": self.temperature}
        found = self._forward_redirection(model, student, stored_divergence, student, inputs, **wanted)
        if len(found.per_token):
            self._metrics["train"]["off_policy/divergence"].append(found.per_token.mean().item())
        return found.total / tokens

    @property
    def taught_tokens(self) -> int:
        """Trained tokens that a teacher was asked about at the step itself."""
        return self.train_tokens - self.counters.get("stored_tokens", 0)

    def _other_forward_tokens(self) -> float:
        """The teacher's forward over every token that it taught."""
        teacher = self.accelerator.unwrap_model(self.model if self.teacher_model is None else self.teacher_model)
        return float(size_outside_embeddings(teacher) * self.taught_tokens)
