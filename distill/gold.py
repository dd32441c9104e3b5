"""Stage kind `gold_distillation`: distillation across tokenizers by TRL's GOLD (general on-policy logit distillation).

A teacher whose tokenizer is not the student's cannot be compared with it entry by entry. GOLD aligns the two by the
bytes of the text: tokens that cover the same bytes are merged, entries that both vocabularies have are compared with
each other, all others by rank (universal logit distillation, Boizard et al., arXiv 2402.12030). The texts are the
teacher's answers, as in `off_policy_distillation`, and with a share of `train.lmbda` the student's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from posttrain.distill.off_policy import OffPolicyDistillationStage
from posttrain.errors import PosttrainError, Problem
from posttrain.recipe.stage import Fault, StageContext
from posttrain.templates.families import Kind

if TYPE_CHECKING:
    from posttrain.recipe.schema import Recipe

_ALIGNED = "the texts are aligned byte by byte, sample by sample"


class GoldDistillationStage(OffPolicyDistillationStage):
    """Distillation from a teacher with another tokenizer."""

    trainer_config: ClassVar[str] = "trl.experimental.gold:GOLDConfig"
    owned_options: ClassVar[Mapping[str, str]] = {
        "use_uld_loss": "it is what crosses tokenizers",
        "teacher_tokenizer_name_or_path": "the stage's `teacher` brings its tokenizer",
        "packing": _ALIGNED,
        "padding_free": _ALIGNED,
    }

    kind: Literal["gold_distillation"] = "gold_distillation"  # type: ignore[assignment]

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

    def make_trainer(self, context: StageContext, model: Any, tokenizer: Any, peft_config: Any | None) -> Any:
        """TRL's GOLDTrainer over the teacher's answers."""
        from datasets import Dataset
        from trl.experimental.gold import GOLDConfig, GOLDTrainer

        from posttrain.model.policy import load_model
        from posttrain.model.trainer_defaults import trainer_arguments, with_optimizer

        assert isinstance(context.teacher, Path)
        spec = context.recipe.model
        owned: dict[str, Any] = {"use_uld_loss": True, "teacher_tokenizer_name_or_path": str(context.teacher)}
        args = trainer_arguments(GOLDConfig, context, self, **owned)
        try:
            teacher = load_model(context.teacher, dtype=spec.dtype, attention=spec.attention)
        except Exception as error:  # transformers raises what it likes
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            what = f"the teacher at {context.teacher} could not be loaded: {line}"
            raise PosttrainError(Problem(what, remedy="check the stage's `teacher`")) from error
        lines = (context.dir.data / "samples.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [{"messages": json.loads(line)["messages"]} for line in lines]
        trainer = with_optimizer(GOLDTrainer, self.optimizer)(
            model=model,
            teacher_model=teacher.requires_grad_(False),
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=peft_config,
        )
        # An entry behind the tokenizer's has no text that could be aligned, and the student may sample it.
        padding = range(len(tokenizer), model.config.get_text_config().vocab_size)
        trainer.generation_config.suppress_tokens = list(padding) or None
        return trainer
