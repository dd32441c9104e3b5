"""Stage kind `on_policy_distillation`: the student samples, the teacher's distribution teaches (Qwen3 report, 4.5).

The student answers in either mode, sample by sample, and its distribution is drawn to the teacher's at every token of
its own answer. `train.beta` chooses the divergence: 0 forward KL, 1 reverse KL (the default here), between them the
generalised Jensen-Shannon divergence (Agarwal et al., arXiv 2306.13649). The report discloses neither direction nor
top-k; reverse KL on the full vocabulary is the usual reading of aligning a student's logits on its own samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from posttrain.distill.schedule import OffPolicyShare
from posttrain.recipe.endpoint import EndpointSpec
from posttrain.recipe.stage import Fault, Stage, StageContext
from posttrain.recipe.teacher import each_teacher
from posttrain.rl.health import Health
from posttrain.rl.modes import LACKING
from posttrain.rl.stage import ON_POLICY_SAMPLING, RolloutStage, enough_rows
from posttrain.sft.routing import check_routes
from posttrain.templates.families import FAMILIES, Kind, Mode

if TYPE_CHECKING:
    from posttrain.recipe.schema import Recipe


def teacher_faults(stage: Stage, recipe: Recipe, modes: Iterable[Mode]) -> Iterator[Fault]:
    """A distillation cannot be built without its teacher, nor be taught a mode that the teacher does not have."""
    from posttrain.recipe.references import kinds_of

    if not list(each_teacher(stage.teacher)):
        yield Fault(
            ("teacher",),
            "a distillation stage has no teacher",
            remedy="name an earlier stage, a model directory, a hub id or a served model under `teacher`",
        )
    for teacher in {str(one): None for _, one in each_teacher(stage.teacher) if one in recipe.stages}:
        kind = kinds_of(recipe).get(teacher, (None, None))[1]
        for mode in sorted(LACKING.get(str(kind), set()) & set(modes)):
            yield Fault(
                ("modes", mode),
                f"the teacher, stage `{teacher}`, leaves a model of kind {kind!r}, which has no {mode} mode",
                "what it cannot do it cannot teach",
                "choose a fused (hybrid) teacher, or the teacher's own mode alone",
            )


class OnPolicyDistillationStage(RolloutStage):
    """On-policy distillation with TRL's trainer."""

    trainer_config: ClassVar[str] = "trl:DistillationConfig"

    kind: Literal["on_policy_distillation"] = "on_policy_distillation"
    top_k: int = Field(
        default=20, ge=1, description="entries that a served teacher tells of each position; all others are one bucket"
    )
    health: Health = Field(default_factory=Health, description="when a sick run is stopped")
    off_policy: OffPolicyShare | None = Field(
        default=None, description="a share of the steps learns from stored answers; default: every step is on-policy"
    )

    def stage_references(self) -> list[tuple[tuple[str | int, ...], str]]:
        own = [] if self.off_policy is None else [(("off_policy", "stage"), self.off_policy.stage)]
        return [*super().stage_references(), *own]

    def _off_policy_faults(self, recipe: Recipe, share: OffPolicyShare) -> Iterator[Fault]:
        stage = recipe.stages.get(share.stage)
        logits = getattr(stage, "logits", None)
        if stage is not None and logits is None:
            what = f"stage `{share.stage}` stores no log-probabilities"
            yield Fault(("off_policy", "stage"), what, remedy="name an off_policy_distillation stage with `logits`")
        elif logits is not None and logits.temperature != self.train.get("temperature", 1.0):
            yield Fault(
                ("off_policy", "stage"),
                f"stage `{share.stage}` stores log-probabilities at temperature {logits.temperature}",
                "this stage's divergence is at train.temperature",
                "make the two equal",
            )

    def faults(self, recipe: Recipe, start_kind: Kind) -> Iterator[Fault]:
        family = FAMILIES.get(recipe.template.family)
        yield from self._other_teacher_faults(recipe)
        yield from teacher_faults(self, recipe, self.asking(family).modes if family else {})
        yield from super().faults(recipe, start_kind)
        if self.off_policy is not None:
            yield from self._off_policy_faults(recipe, self.off_policy)

    def _other_teacher_faults(self, recipe: Recipe) -> Iterator[Fault]:
        """What several teachers, or served ones, cannot do."""
        if isinstance(self.teacher, str | None):
            return
        served = any(isinstance(one, EndpointSpec) for _, one in each_teacher(self.teacher))
        if served and self.train.get("temperature", 1.0) != 1.0:
            why = "it tells its most probable entries as they are, and their softened tail cannot be worked out"
            what = "a served teacher goes with temperature 1 alone"
            yield Fault(("train", "temperature"), what, why, "remove it")
        if recipe.engine.strategy != "ddp" and any(isinstance(one, str) for _, one in each_teacher(self.teacher)):
            what = f"several teachers are not sharded: engine.strategy {recipe.engine.strategy}"
            yield Fault(("teacher",), what, remedy="use ddp, or serve the teachers")

    def check_outside(self, context: StageContext) -> None:
        from posttrain.distill.cache_stage import check_stored
        from posttrain.distill.teacher import check_teachers

        check_routes(context)
        self._enough_queries(context)
        check_teachers(context, self.top_k)
        if self.off_policy is not None:
            check_stored(context, self.off_policy.stage)

    def _enough_queries(self, context: StageContext) -> None:
        """See that there are queries for one step, before an earlier stage is paid for: filters may leave fewer."""
        from datasets import load_from_disk

        rows = sum(len(load_from_disk(str(context.run.data(name)))) for name in self.queries.weights)
        batch = int(self.train.get("per_device_train_batch_size", 8))
        needed = batch * int(self.train.get("gradient_accumulation_steps", 1)) * context.recipe.engine.processes
        enough_rows(context.name, min(rows, self.queries.limit or rows), needed)

    def build_data(self, context: StageContext) -> dict[str, Any]:
        from posttrain.distill.teacher import check_tokenizers
        from posttrain.model.policy import load_tokenizer

        # Before rollouts and pass rates are paid for.
        for _, one in each_teacher(context.teacher if not isinstance(context.teacher, Path) else str(context.teacher)):
            if isinstance(one, str):
                check_tokenizers(load_tokenizer(context.start), load_tokenizer(one), one)
        return super().build_data(context)

    def examine(self, context: StageContext) -> None:
        from posttrain.distill.agreement import examine

        examine(context)

    def make_trainer(self, context: StageContext, model: Any, tokenizer: Any, peft_config: Any | None) -> Any:
        from datasets import load_from_disk
        from trl import DistillationConfig

        from posttrain.distill.several_teachers import SeveralTeachersTrainer
        from posttrain.distill.teacher import entries_of, load_teachers
        from posttrain.distill.trainer import StudentTrainer
        from posttrain.model.trainer_defaults import trainer_arguments, with_optimizer

        defaults = {"beta": 1.0, **ON_POLICY_SAMPLING}
        args = trainer_arguments(DistillationConfig, context, self, defaults=defaults, **self.decided_options())
        rows = load_from_disk(str(context.dir.data / "train"))
        per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        enough_rows(context.name, len(rows), per_step)
        stored = None if self.off_policy is None else self._stored(self.off_policy, context, args, tokenizer, model)
        several = None
        if not isinstance(context.teacher, Path):
            several = load_teachers(context, tokenizer, self.top_k)
            rows = rows.add_column("teacher", several.of(rows))
        alone = several is not None or self._teaches_itself(context, peft_config)
        teacher = None if alone else self._load_teacher(context, model, tokenizer)
        trainer = with_optimizer(SeveralTeachersTrainer if several else StudentTrainer, self.optimizer)(
            model=model,
            teacher_model=teacher,
            args=args,
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=peft_config,
        )
        if several is not None:
            trainer.learn_from(several.teachers, several.shares(rows["teacher"]))
        self.set_rollouts(context, trainer, args)
        trainer.watch(self.health, entries=entries_of(tokenizer))
        trainer.stored = stored
        return trainer

    def _teaches_itself(self, context: StageContext, peft_config: Any | None) -> bool:
        """Whether the teacher is the model that the stage starts from, below an adapter: no second copy is loaded."""
        if peft_config is None or not isinstance(context.teacher, Path):
            return False
        return context.teacher.expanduser().resolve() == context.start.resolve()

    def _load_teacher(self, context: StageContext, model: Any, tokenizer: Any) -> Any:
        from posttrain.distill.teacher import entries_of, load_teacher, match_vocabulary

        settings = context.recipe.model
        teacher = load_teacher(str(context.teacher), tokenizer, dtype=settings.dtype, attention=settings.attention)
        match_vocabulary(model, teacher, entries_of(tokenizer))
        return teacher

    def _stored(self, share: OffPolicyShare, context: StageContext, args: Any, tokenizer: Any, model: Any) -> Any:
        from posttrain.data.packing import check_isolation
        from posttrain.distill.schedule import StoredAnswers
        from posttrain.distill.teacher import check_tokenizers
        from posttrain.model.policy import load_tokenizer

        other = context.run.stage(share.stage)
        check_tokenizers(tokenizer, load_tokenizer(other.model), f"of stage {share.stage}")
        stored = StoredAnswers(
            other.data,
            share,
            pad_token_id=tokenizer.pad_token_id,
            batch=args.per_device_train_batch_size,
            micro_steps=args.gradient_accumulation_steps,
            processes=args.world_size,
            seed=context.seed,
        )
        if stored.packed:
            check_isolation(model)
        return stored
