"""On-policy distillation from several teachers, or from served ones: each sample is taught by its own.

A model here is compared on the full vocabulary, a served one on the entries that it tells and one bucket for all
others. Served teachers are asked once a generation batch, about all of its tokens, all of them at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from posttrain.distill.buckets import TopK
from posttrain.distill.divergence import Divergence, divergence, top_k_divergence
from posttrain.distill.heads import whole_head
from posttrain.distill.served_teacher import ServedTeacher, spans_of, told_together
from posttrain.distill.tiles import Projection
from posttrain.distill.trainer import StudentTrainer
from posttrain.rl.rollouts import size_outside_embeddings


class SeveralTeachersTrainer(StudentTrainer):
    """`StudentTrainer` over rows whose column `teacher` is a place in the list of teachers."""

    def learn_from(self, teachers: Sequence[Any], shares: Sequence[float]) -> None:
        """Say who teaches. Called once.

        Args:
            teachers: models of this process, and `ServedTeacher`s.
            shares: of the rows that each of them teaches.
        """
        self._teachers = [
            one if isinstance(one, ServedTeacher) else self.accelerator.prepare_model(one, evaluation_mode=True)
            for one in teachers
        ]
        self._shares = list(shares)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        device = output["completion_ids"].device
        output["teacher"] = torch.tensor([row["teacher"] for row in inputs], device=device)
        return {**output, **{key: value.to(device) for key, value in self._told(output).items()}}

    def _told(self, output: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """What served teachers say of a batch: `told_ids`, `told_log_probs` (B, C, K) and `told_tail` (B, C)."""
        chosen_B_C = _chosen(output)
        told: dict[str, torch.Tensor] = {}
        served = {number: one for number, one in enumerate(self._teachers) if isinstance(one, ServedTeacher)}
        if not served:
            return told
        asked = []
        for number, teacher in served.items():
            rows = (output["teacher"] == number).nonzero().flatten().tolist()
            asked.append((teacher, _sequences(output, chosen_B_C, rows)))
        for number, top in zip(served, told_together(asked), strict=True):
            if not told:
                shape = (*chosen_B_C.shape, top.ids.shape[1])
                told = {"told_ids": torch.zeros(shape, dtype=torch.long), "told_log_probs": torch.zeros(shape)}
                told["told_tail"] = torch.zeros(shape[:2])
            own = chosen_B_C.cpu() & (output["teacher"] == number)[:, None].cpu()
            for key, values in (("told_ids", top.ids), ("told_log_probs", top.log_probs), ("told_tail", top.tail)):
                told[key][own] = values
        return told

    def _compute_loss(self, unwrapped_student: Any, inputs: Any, num_items_in_batch: Any) -> Any:
        """As `StudentTrainer._compute_loss`, teacher by teacher."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        tokens = inputs["completion_ids"].shape[1]
        hidden = self._get_last_hidden_state(unwrapped_student, ids, attention, tokens)
        chosen = _chosen(inputs)
        with whole_head(unwrapped_student, hidden.dtype) as head:
            # Every parameter takes part, whoever teaches.
            total, entropy = hidden.sum() * 0 + head.weight.sum() * 0, hidden.new_zeros(())
            for number, teacher in enumerate(self._teachers):
                rows = inputs["teacher"] == number
                own = chosen & rows[:, None]
                if not own.any():
                    continue
                student = Projection(hidden[own], head)
                if isinstance(teacher, ServedTeacher):
                    told = TopK(*(inputs[key][own] for key in ("told_ids", "told_log_probs", "told_tail")))
                    found = top_k_divergence(student, told, entries=self._entries, beta=self.beta)
                else:
                    found = self._beside(student, teacher, ids[rows], attention[rows], own[rows])
                total, entropy = total + found.total, entropy + found.entropy.sum()
        number_chosen = chosen.sum()
        items = number_chosen.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return total / items, entropy, number_chosen

    def _beside(
        self, student: Projection, teacher: Any, ids: torch.Tensor, attention: torch.Tensor, own: torch.Tensor
    ) -> Divergence:
        model = self.accelerator.unwrap_model(teacher).eval()
        with torch.no_grad():
            theirs = self._get_last_hidden_state(model, ids, attention, own.shape[1])
        with whole_head(model, theirs.dtype) as head:
            return divergence(
                student,
                Projection(theirs[own], head),
                entries=self._entries,
                beta=self.beta,
                temperature=self.temperature,
            )

    def _other_forward_tokens(self) -> float:
        """The forwards of teachers that are here; what a served one computes is not known."""
        sizes = [
            0 if isinstance(one, ServedTeacher) else size_outside_embeddings(self.accelerator.unwrap_model(one))
            for one in self._teachers
        ]
        shares = zip(sizes, self._shares, strict=True)
        return float(sum(size * share for size, share in shares) * self.taught_tokens)


def _chosen(inputs: Mapping[str, Any]) -> torch.Tensor:
    """(B, C) the tokens that the student chose: forced ones are not."""
    chosen: torch.Tensor = (inputs["completion_mask"] * inputs.get("tool_mask", 1)).bool()
    return chosen


def _sequences(
    output: Mapping[str, Any], chosen_B_C: torch.Tensor, rows: Sequence[int]
) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
    """The rows' tokens without padding, and the spans of those that the student chose."""
    sequences, spans = [], []
    for row in rows:
        prompt = output["prompt_ids"][row][output["prompt_mask"][row].bool()].tolist()
        completion = output["completion_ids"][row][output["completion_mask"][row].bool()].tolist()
        sequences.append(prompt + completion)
        spans.append(spans_of(chosen_B_C[row].tolist(), len(prompt)))
    return sequences, spans
