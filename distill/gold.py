"""Stage kind `gold_distillation`: distillation across tokenizers by TRL's GOLD (general on-policy logit distillation).

A teacher whose tokenizer is not the student's cannot be compared with it entry by entry. GOLD aligns the two by the
bytes of the text: tokens that cover the same bytes are merged, entries that both vocabularies have are compared with
each other, all others by rank (universal logit distillation, Boizard et al., arXiv 2402.12030). The texts are the
teacher's answers, as in `off_policy_distillation`, and with a share of `train.lmbda` the student's own, each in the
mode of its sample and under its thinking budget.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from posttrain.distill.off_policy import OffPolicyDistillationStage
from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import is_complete
from posttrain.recipe.stage import Fault, StageContext
from posttrain.rl.modes import ThinkingBudgets, budget_faults, deal_budgets
from posttrain.rl.stage import enough_rows
from posttrain.sft.stage import SftStage
from posttrain.templates.families import Family, Kind, Mode

if TYPE_CHECKING:
    from datasets import Dataset

    from posttrain.recipe.schema import Recipe

log = logging.getLogger("posttrain")

LMBDA = 0.5  # TRL's own
_ALIGNED = "the texts are aligned byte by byte, sample by sample"
_LOSS = "GOLD's loss is its own"


class GoldDistillationStage(OffPolicyDistillationStage):
    """Distillation from a teacher with another tokenizer."""

    trainer_config: ClassVar[str] = "trl.experimental.gold:GOLDConfig"
    owned_options: ClassVar[Mapping[str, str]] = {
        **SftStage.owned_options,
        "use_uld_loss": "it is what crosses tokenizers",
        "teacher_tokenizer_name_or_path": "the stage's `teacher` brings its tokenizer",
        "seq_kd": "the texts are the teacher's answers already",
        "packing": _ALIGNED,
        "padding_free": _ALIGNED,
        "loss_type": _LOSS,
        "label_smoothing_factor": _LOSS,
        "use_liger_kernel": _LOSS,
    }

    kind: Literal["gold_distillation"] = "gold_distillation"  # type: ignore[assignment]
    thinking_budgets: ThinkingBudgets | None = Field(
        default=None, description="a share of the thinking samples stops the student's own answers at a budget"
    )

    def as_sft(self) -> SftStage:
        # Each turn is a sample, after the history that a server would show: own answers begin there too.
        return super().as_sft().model_copy(update={"history": "strip"})

    def faults(self, recipe: Recipe, start_kind: Kind) -> Iterator[Fault]:
        yield from (fault for fault in super().faults(recipe, start_kind) if fault.loc[:1] != ("train",))
        if self.teacher is not None and not isinstance(self.teacher, str):
            what = "GOLD takes one teacher, whose model is here"
            yield Fault(("teacher",), what, remedy="name a stage, a model directory or a hub id")
        if self.logits is not None:
            what = "log-probabilities of another tokenizer's entries cannot be stored for this student"
            yield Fault(("logits",), what, remedy="remove it: GOLD asks the teacher at every step")
        if self.packing:
            yield Fault(("packing",), "GOLD does not pack", _ALIGNED, "remove it")
        if "beta" in self.train and self.train.get("uld_use_hybrid_loss") is False:
            what = "train.beta has no effect without uld_use_hybrid_loss"
            yield Fault(
                ("train", "beta"), what, "entries compared by rank have an L1 distance", "remove one of the two"
            )
        yield from self._vllm_faults()
        yield from self._own_answer_faults()

    def _vllm_faults(self) -> Iterator[Fault]:
        asked = [key for key in self.train if key == "use_vllm" or key.startswith("vllm_")]
        for key in asked:
            if self.train[key] is not False:
                yield Fault(
                    ("train", key),
                    "GOLD's own answers are not sampled by vLLM",
                    "TRL's engine there knows no mode and no thinking budget of a single sample",
                    "remove it: transformers samples them; with one tokenizer, on_policy_distillation takes use_vllm",
                )

    def _own_answer_faults(self) -> Iterator[Fault]:
        answers_itself = self.train.get("lmbda", LMBDA) != 0
        if answers_itself and self.train.get("temperature") == 0:
            what = "own answers cannot be drawn at temperature 0"
            yield Fault(("train", "temperature"), what, remedy="set it above 0, or train.lmbda to 0")
        if self.thinking_budgets is None:
            return
        yield from budget_faults(self.thinking_budgets, {mode for mode, share in self.modes.items() if share > 0})
        if not answers_itself:
            what = "a budget stops the student's own answers, and with train.lmbda 0 there are none"
            yield Fault(("thinking_budgets",), what, remedy="remove it, or set train.lmbda above 0")
        if self.train.get("uld_token_merge_strategy") == "observed":
            why = "it reads the distribution behind each token, and so would learn what a budget forced"
            what = "thinking budgets do not go with train.uld_token_merge_strategy observed"
            yield Fault(("thinking_budgets",), what, why, "remove one of the two")
        if self.train.get("use_extended_uld") is False:
            why = "which of the teacher's tokens cover what a budget forced is told by bytes, and then is not known"
            what = "thinking budgets go with train.use_extended_uld alone"
            yield Fault(("thinking_budgets",), what, why, "remove one of the two")

    def check_outside(self, context: StageContext) -> None:
        from posttrain.distill.teacher import root_of, teachers_tokenizer
        from posttrain.model.policy import load_tokenizer

        super().check_outside(context)
        if not is_complete(context.dir.data):  # before anything is paid for
            teacher = teachers_tokenizer(context, str(self.teacher))
            self._check_tokenizers(context, load_tokenizer(root_of(context, context.name)), teacher)

    def _check_tokenizers(self, context: StageContext, student: Any, teacher: Any) -> None:
        from trl.experimental.utils import is_byte_level_tokenizer

        if student.get_vocab() == teacher.get_vocab():
            log.warning(
                "%s: student and teacher have one tokenizer; on_policy_distillation would compare them entry by entry",
                context.name,
            )
        if self.train.get("use_extended_uld") is False:
            return
        for who, one in (("student", student), ("teacher", teacher)):
            if getattr(one, "backend_tokenizer", None) is None or not is_byte_level_tokenizer(one.backend_tokenizer):
                raise PosttrainError(
                    Problem(
                        f"the {who}'s tokenizer is not a byte-level one",
                        f"stages.{context.name}",
                        "texts are aligned by the bytes that each token covers",
                        "set train.use_extended_uld to false: tokens are then compared place by place",
                    )
                )

    def make_trainer(self, context: StageContext, model: Any, tokenizer: Any, peft_config: Any | None) -> Any:
        """TRL's GOLDTrainer over the teacher's answers and the student's own."""
        from datasets import load_from_disk
        from trl.experimental.gold import GOLDConfig

        from posttrain.distill.gold_trainer import GoldCollator, GoldTrainer
        from posttrain.distill.teacher import load_teacher
        from posttrain.model.trainer_defaults import trainer_arguments, with_optimizer

        assert isinstance(context.teacher, Path)
        # TRL's defaults compare all entries by rank, whatever they say, and "observed" reads the distribution behind a
        # token, not the one before it: an answer's first token, which decides its mode, would not be learned. And a
        # text bears its end marker: the student's last token is one to learn, what TRL adds to the teacher's is not.
        observed = self.train.get("uld_token_merge_strategy") == "observed"
        defaults = {
            "uld_use_hybrid_loss": True,
            "uld_token_merge_strategy": "bayesian",
            "uld_skip_student_eos": observed,
        }
        args = trainer_arguments(
            GOLDConfig,
            context,
            self,
            defaults=defaults,
            use_uld_loss=True,
            teacher_tokenizer_name_or_path=str(context.teacher),
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
        )
        spec = context.recipe.model
        rows = load_from_disk(str(context.dir.data / "train"))
        enough_rows(context.name, len(rows), args.generation_batch_size * args.world_size)
        trainer = with_optimizer(GoldTrainer, self.optimizer)(
            model=model,
            teacher_model=load_teacher(context.teacher, None, dtype=spec.dtype, attention=spec.attention),
            args=args,
            train_dataset=self.with_modes(rows, tokenizer, context.family, context.seed),
            data_collator=GoldCollator(tokenizer, family=context.family, room=args.max_length),
            processing_class=tokenizer,
            peft_config=peft_config,
        )
        trainer.set_rollouts(context.family, seed=context.seed)
        return trainer

    def with_modes(self, rows: Dataset, tokenizer: Any, family: Family, seed: int) -> Dataset:
        """Rows with how the student is asked where it answers itself.

        Args:
            rows: `input_ids` and `labels`, one assistant turn inside the loss.

        Returns:
            The rows with the columns `mode`, `prefix` (what asks for it behind the assistant's header; "" where a flag
            in the text does, or nothing has to) and `thinking_budget` (-1: none).
        """
        from posttrain.data.tokens import IGNORED

        modes: list[Mode] = []
        for batch in rows.select_columns(["input_ids", "labels"]).iter(1000):
            answers = [[token for token in labels if token != IGNORED] for labels in batch["labels"]]
            texts = tokenizer.batch_decode(answers, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            modes += [mode_of(text, family) for text in texts]
        budgets = iter(deal_budgets(modes.count("thinking"), self.thinking_budgets, random.Random(seed)))
        flagged = self._fusion() is not None
        return (
            rows.add_column("mode", modes)
            .add_column("prefix", ["" if flagged else family.prefill[mode] for mode in modes])
            .add_column("thinking_budget", [next(budgets) if mode == "thinking" else -1 for mode in modes])
        )


def mode_of(answer: str, family: Family) -> Mode:
    """The mode of an assistant's turn, its text after what the prompt gives; it may be cut."""
    if len(family.modes) == 1:
        return family.modes[0]
    thought, closed, _ = answer.partition(family.think_close)
    if not closed and not thought.startswith(family.think_open):
        return "non_thinking"  # its empty block stands in the prompt
    return "thinking" if thought.removeprefix(family.think_open).strip() else "non_thinking"
