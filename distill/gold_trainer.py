"""TRL's GOLD trainer on tokens of ours: own answers in each sample's mode and budget, and a resume that is exact.

What is TRL's: the loop, the schedule between the teacher's answers and the student's own, the alignment by bytes and
the loss. What TRL 1.16 lacks, and is added here:

- Own answers are generated from the prompt as the sample asks it, in its mode and under its budget. What a budget
  forced is part of what both models read, and out of the loss and of every denominator.
- Which micro-steps take own answers follows from seed and step. TRL draws it, and the answers, from the process's
  random state, and its sampler starts every process with the first epoch's order.
- Its loss is a mean over a micro-batch, and transformers has to be told so: it would take the mean for a share of the
  step's tokens, and N accumulated micro-batches would weigh N times as much.
"""

from __future__ import annotations

import codecs
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import send_to_device
from trl.distributed import DistributedBackend
from trl.experimental.gold import GOLDTrainer
from trl.experimental.gold.gold_trainer import ULDLoss
from trl.experimental.utils import DataCollatorForChatML

from posttrain.data.tokens import IGNORED
from posttrain.model.generation import Completion, Generator, Prompt
from posttrain.rl.resume import ResumableRollouts
from posttrain.rl.rollouts import PerSampleRollouts, size_outside_embeddings
from posttrain.templates.families import Family

FORCED = -1
"""Where a forced token begins, in byte offsets: nowhere, as nobody chose it. Where it ends is told as of any other."""


@dataclass
class GoldCollator(DataCollatorForChatML):  # type: ignore[misc]
    """Tokens and labels as GOLD's batches: padded, with texts and byte offsets, and the prompts of own answers.

    Args (beside the tokenizer):
        family: whose header ends a prompt.
        room: tokens of a prompt and its answer together, or None.
    """

    family: Family = field(kw_only=True)
    room: int | None = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._bytes = bytes_of(self.tokenizer)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch.

        Args:
            examples: `input_ids` and `labels` (-100 in the prompt and at forced tokens); rows of data also have `mode`,
                `prefix` (what asks for the mode behind the assistant's header, or "") and `thinking_budget`.
        """
        batch: dict[str, Any] = super().__call__([self._aligned(row["input_ids"], row["labels"]) for row in examples])
        batch["labels"][batch["byte_offsets"][..., 0] == FORCED] = IGNORED
        return batch | {"_prompts": [self._prompt(row) for row in examples if "mode" in row]}

    def _aligned(self, ids: Sequence[int], labels: Sequence[int]) -> dict[str, Any]:
        """An example as TRL's collator takes it. The completion begins at the first token that somebody chose."""
        start = first_chosen(labels)
        ends = list(ends_of([self._bytes[token] for token in ids[start:]]))
        begins = [
            FORCED if label == IGNORED else begin for begin, label in zip([0, *ends], labels[start:], strict=False)
        ]
        return {
            "input_ids": list(ids),
            "completion_mask": [0] * start + [1] * (len(ids) - start),
            "byte_offsets": [(0, 0)] * start + list(zip(begins, ends, strict=True)),
            "original_prompt_text": self._text(ids[:start]),
            "original_completion_text": self._text(ids[start:]),
        }

    def _prompt(self, row: dict[str, Any]) -> Prompt:
        """What the student is asked where it answers itself: the row's prompt, as its mode is asked for."""
        ids = list(row["input_ids"][: first_chosen(row["labels"])])
        written = self._text(ids).rpartition(f"{self.family.message_start}assistant\n")[2]
        if not written.endswith(row["prefix"]):
            ids += self.tokenizer(row["prefix"], add_special_tokens=False)["input_ids"]
            written += row["prefix"]
        budget = row["thinking_budget"]
        return Prompt(
            messages=[],
            mode=row["mode"],
            thinking_budget=None if budget < 0 else budget,
            ids=ids,
            prefilled=written,
            max_new_tokens=None if self.room is None else max(1, self.room - len(ids)),
        )

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def first_chosen(labels: Sequence[int]) -> int:
    """Place of the first token inside the loss; behind the last where there is none."""
    return next((place for place, label in enumerate(labels) if label != IGNORED), len(labels))


def bytes_of(tokenizer: Any) -> list[bytes]:
    """The bytes of every entry's text. A byte-level tokenizer writes each as a character; an added token is text."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    written = {character: byte for byte, character in bytes_to_unicode().items()}
    added = tokenizer.added_tokens_decoder
    pieces = tokenizer.convert_ids_to_tokens(list(range(max(tokenizer.get_vocab().values()) + 1)))
    return [
        str(added[index]).encode()
        if index in added or not written.keys() >= set(piece or "")
        else bytes(written[character] for character in piece or "")
        for index, piece in enumerate(pieces)
    ]


def ends_of(pieces: Sequence[bytes]) -> Iterator[int]:
    """Where each piece ends in the text of all, in bytes: what is no character becomes U+FFFD there, of three bytes."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    written = 0
    for place, piece in enumerate(pieces, 1):
        written += len(decoder.decode(piece, place == len(pieces)).encode())
        yield written + len(decoder.getstate()[0])  # a character may end in a later piece


class ChosenTokensLoss(ULDLoss):  # type: ignore[misc]
    """`ULDLoss` over what the student chose.

    Where a group of tokens that cover the same bytes holds a forced one, it is left out, and the mean is over the other
    groups, and over the samples that have any. Entries behind a tokenizer's last are padding and have no probability.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._entries = [max(t.get_vocab().values()) + 1 for t in (self.student_tokenizer, self.teacher_tokenizer)]

    def __call__(self, student_logits: Any, teacher_logits: Any, *others: Any, **offsets: Any) -> Any:
        ours, theirs = self._entries
        return super().__call__(student_logits[..., :ours], teacher_logits[..., :theirs], *others, **offsets)

    def _compute_distillation_loss(
        self, ours: Any, theirs: Any, labels: Any, their_labels: Any, ids: Any, their_ids: Any, **offsets: Any
    ) -> Any:
        # An answer's region is told by its first label and their number: without gaps.
        whole = torch.where(offsets["student_byte_offsets"][..., 0] == FORCED, ids, labels)
        self._compared = 0
        mean = super()._compute_distillation_loss(ours, theirs, whole, their_labels, ids, their_ids, **offsets)
        return mean * len(labels) / self._compared if self._compared else mean

    def _align_by_byte_offsets(self, ours: Any, theirs: Any) -> tuple[list[list[int]], list[list[int]]]:
        pairs = [
            (own, other)
            for own, other in zip(*super()._align_by_byte_offsets(ours, theirs), strict=True)
            if own and other and all(ours[place][0] != FORCED for place in own)
        ]
        self._compared += bool(pairs)
        return [own for own, _ in pairs], [other for _, other in pairs]

    def _merge_probabilities_with_alignment_groups(self, probs: Any, groups: Any, token_ids: Any = None) -> Any:
        if not groups:  # nothing to compare: both sides alike, and no gradient
            return probs[:1] * 0.0
        return super()._merge_probabilities_with_alignment_groups(probs, groups, token_ids)


class GoldTrainer(PerSampleRollouts, ResumableRollouts, GOLDTrainer):  # type: ignore[misc]
    """`GOLDTrainer` with a `GoldCollator` over rows that `distill/gold.py` makes."""

    loss_is_scaled_for_ga = False
    _SUMS = (
        "_on_policy_loss_total", "_off_policy_loss_total", "_on_policy_step_equiv", "_off_policy_step_equiv",
        "_matched_sum", "_unmatched_sum", "_matched_step_eq", "_unmatched_step_eq",
    )  # fmt: skip
    """Figures that are not logged yet."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.uld_loss_fn = ChosenTokensLoss(
            self.args, self._tokenizer, self.teacher_tokenizer, device=self.accelerator.device
        )
        self._dist = DistributedBackend(self.accelerator)
        self.top_k, self.max_completion_length = self.args.top_k, self.args.max_completion_length
        self.teacher_model.register_forward_pre_hook(self._count_teacher, with_kwargs=True)

    def _fill_buffer(self, generation_batch: Any, buffer_steps: int) -> None:
        before = random.getstate()
        random.seed(self._seed(training=True))
        try:
            super()._fill_buffer(generation_batch, buffer_steps)
        finally:
            random.setstate(before)

    def _generate_on_policy_for_slices(self, slices: list[dict[str, Any]], on_policy_indices: list[int]) -> None:
        self._rows = [{"prompt": prompt} for index in on_policy_indices for prompt in slices[index]["_prompts"]]
        self._completions = self._sample()
        self._log_rollouts()
        done = iter(self._completions)
        for index in on_policy_indices:
            own = [next(done) for _ in slices[index]["_prompts"]]
            batch = self.data_collator([_example(completion) for completion in own])
            self._buffered_inputs[index] = send_to_device(batch, self.accelerator.device)
            self._buffered_text_logs[index] = (batch["original_prompt_text"], batch["original_completion_text"])

    def _completed(self, generator: Generator, sharded: bool = False) -> list[Completion]:
        return generator([row["prompt"] for row in self._rows], seed=self._seed(training=True))

    def _tokens_of(self, inputs: dict[str, Any]) -> int:
        return int(inputs["attention_mask"].sum())

    def _rollout_state(self) -> dict[str, Any]:
        return super()._rollout_state() | {"sums": {name: getattr(self, name) for name in self._SUMS}}

    def _restore_rollouts(self, state: dict[str, Any]) -> None:
        super()._restore_rollouts(state)
        self.__dict__.update(state["sums"])

    def _count_teacher(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if self.model.training:
            tokens = int(self._summed([int(kwargs["attention_mask"].sum())])[0])
            self.counters["teacher_tokens"] = self.counters.get("teacher_tokens", 0) + tokens

    def _other_forward_tokens(self) -> float:
        """The teacher's forward, over tokens of its own."""
        teacher = self.accelerator.unwrap_model(self.teacher_model)
        return float(size_outside_embeddings(teacher) * self.counters.get("teacher_tokens", 0))


def _example(completion: Completion) -> dict[str, Any]:
    """An own answer as a row of data."""
    forced = zip(completion.completion_ids, completion.forced, strict=True)
    return {
        "input_ids": completion.prompt_ids + completion.completion_ids,
        "labels": [IGNORED] * len(completion.prompt_ids) + [IGNORED if not_own else token for token, not_own in forced],
    }
