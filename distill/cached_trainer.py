"""TRL's SFT loop with a teacher's stored log-probabilities in place of the labels alone: no teacher is in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from trl import SFTTrainer
from trl.models.utils import _ForwardRedirection

from posttrain.distill.buckets import TopK
from posttrain.distill.cache import LogprobCache
from posttrain.distill.divergence import Divergence, top_k_divergence
from posttrain.distill.heads import whole_head
from posttrain.distill.local_teacher import backbone_of
from posttrain.distill.tiles import Projection
from posttrain.errors import PosttrainError, Problem

IGNORED = -100
COLUMNS = ("ids", "log_probs", "tail")


class CachedCollator:
    """A collator of the trainer's own, and beside its batch what the teacher said of the batch's supervised tokens."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]], cache: LogprobCache) -> None:
        self._collate, self._cache = collate, cache

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self._collate(rows)
        top = self._cache.read([row["row"] for row in rows])
        supervised = int((batch["labels"][:, 1:] != IGNORED).sum())
        if len(top) != supervised:
            what = f"rows {rows[0]['row']}...: {len(top)} positions are stored, the batch has {supervised}"
            raise PosttrainError(Problem(what, str(self._cache.directory), remedy="remove the cache: it is made anew"))
        return batch | {f"teacher_{name}": getattr(top, name) for name in COLUMNS}


def stored_divergence(
    student: Any, inputs: dict[str, Any], *, entries: int, beta: float, temperature: float, cross_entropy: float = 0.0
) -> Divergence:
    """The divergence over a batch of `CachedCollator`'s. To be called within the student's forward."""
    labels = inputs["labels"][:, 1:]
    supervised = labels != IGNORED
    passed = {name: value for name, value in inputs.items() if name != "labels" and not name.startswith("teacher_")}
    states = backbone_of(student)(**passed, use_cache=False).last_hidden_state
    hidden = states[:, :-1][supervised.to(states.device)]
    with whole_head(student, hidden.dtype) as head:
        return top_k_divergence(
            Projection(hidden.to(head.weight.device), head),
            TopK(inputs["teacher_ids"], inputs["teacher_log_probs"], inputs["teacher_tail"]),
            entries=entries,
            beta=beta,
            temperature=temperature,
            labels=labels[supervised] if temperature == 1.0 else None,
            weights=(1.0, cross_entropy),
        )


class CachedTeacherTrainer(SFTTrainer):  # type: ignore[misc]
    """`SFTTrainer` over rows with the column `row`, their places in a cache. `teach` is called once."""

    def teach(
        self, cache: LogprobCache, *, entries: int, beta: float, temperature: float, cross_entropy: float
    ) -> None:
        """Say what is minimised: the divergence, and the labels' cross-entropy times `cross_entropy`."""
        trainer: Any = self  # untyped below this class
        trainer.data_collator = CachedCollator(trainer.data_collator, cache)
        self._wanted = {
            "entries": entries, "beta": beta, "temperature": temperature, "cross_entropy": cross_entropy
        }  # fmt: skip
        self._redirection = _ForwardRedirection()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if return_outputs:
            raise NotImplementedError("no logits are made that could be returned")
        student = self.accelerator.unwrap_model(model)
        # Within the student's own forward, where DDP waits for gradients and sharded weights are at hand.
        found = self._redirection(model, student, stored_divergence, student, inputs, **self._wanted)
        tokens = len(found.per_token)
        if num_items_in_batch is None:
            loss = found.total / max(1, tokens)
        else:
            loss = found.total / num_items_in_batch
            if self.args.average_tokens_across_devices:  # they are counted over all processes, which are averaged
                loss = loss * self.accelerator.num_processes
        self._note(found, inputs)
        return loss

    def _note(self, found: Divergence, inputs: dict[str, Any]) -> None:
        sums = {"divergence": found.per_token, "entropy": found.entropy, "teacher_tail": inputs["teacher_tail"].exp()}
        if found.cross_entropy is not None:
            sums["cross_entropy"] = found.cross_entropy
        read = inputs["attention_mask"] if "attention_mask" in inputs else torch.ones_like(inputs["input_ids"])
        local = torch.stack([torch.as_tensor(float(len(found.per_token))).to(read.device), read.sum().float()])
        local = torch.cat([local, torch.stack([value.sum().float() for value in sums.values()])])
        tokens, tokens_read, *totals = self.accelerator.reduce(local, reduction="sum").tolist()
        self._total_train_tokens += int(tokens_read)
        figures = self._metrics["train" if self.model.training else "eval"]
        for name, total in zip(sums, totals, strict=True):
            figures[name].append(total / max(1.0, tokens))
        figures["num_tokens"] = [self._total_train_tokens]
