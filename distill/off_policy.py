"""Stage kind `off_policy_distillation`: SFT on a teacher's answers in both modes (Qwen3 report, section 4.5).

Nothing here samples, filters or trains: the stage says what it wants as an SFT stage, whose pieces do the rest. With
`logits` it learns from the teacher's stored distribution at every token of these answers, not from the tokens alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from posttrain.distill import cache_stage
from posttrain.distill.cache_stage import StoredLogits
from posttrain.distill.on_policy import teacher_faults
from posttrain.model.artifacts import is_complete
from posttrain.recipe.endpoint import EndpointSpec
from posttrain.recipe.schema import SamplingSpec, Weight
from posttrain.recipe.stage import Fault, Stage, StageContext
from posttrain.recipe.teacher import Teachers
from posttrain.rl.queries import QuerySources
from posttrain.sft.fusion import Flags, Fusion, MultiTurn
from posttrain.sft.rejection_sampling import RejectionSampling
from posttrain.sft.response_filters import ResponseFilters
from posttrain.sft.routing import check_routes
from posttrain.sft.sources import Filters, SampleSource
from posttrain.sft.stage import SftStage
from posttrain.templates.families import FAMILIES, Kind, Mode

if TYPE_CHECKING:
    from posttrain.recipe.schema import Recipe


class OffPolicyDistillationStage(Stage):
    """Supervised fine-tuning on what a teacher answers."""

    trainer_config: ClassVar[str] = SftStage.trainer_config
    owned_options: ClassVar[Mapping[str, str]] = SftStage.owned_options

    kind: Literal["off_policy_distillation"] = "off_policy_distillation"
    queries: QuerySources = Field(description="which queries the teacher answers")
    modes: dict[Mode, Weight] = Field(
        default={"thinking": 0.5, "non_thinking": 0.5}, description="share of samples in each mode"
    )
    answers: int = Field(default=1, ge=1, description="teacher answers a query and mode")
    keep: Literal["correct", "all"] = Field(
        default="correct", description="correct: what the query's verifier scores below 1 goes; all: every whole answer"
    )
    keep_per_query: int = Field(default=1, ge=1, description="answers kept a query and mode")
    logits: StoredLogits | None = Field(
        default=None, description="learn from the teacher's stored log-probabilities; default: from its tokens alone"
    )
    distinct: bool = Field(default=False, description="each problem is asked once, however often it stands in the data")
    filters: Filters | None = Field(default=None, description="the cold start's filters, in place of `keep`")
    flags: Flags | bool = Field(default=True, description="mode flags as in fusion; false: none")
    multi_turn: MultiTurn | None = Field(default=None, description="dialogues joined from single answers, as in fusion")
    size: int | None = Field(
        default=None, gt=0, description="samples after mixing; default: as many as the shares allow"
    )
    max_new_tokens: int = Field(default=1024, gt=0, description="of a teacher's answer")
    batch_size: int = Field(default=64, gt=0, description="answers generated at once")
    sampling: dict[Mode, SamplingSpec] = Field(default_factory=dict, description="default: the family's for the mode")
    overlong: Literal["drop", "truncate"] = Field(default="drop", description="samples longer than train.max_length")
    supervise_empty_think: bool = Field(default=True, description="the loss is on empty think blocks too")
    packing: bool = Field(default=False, description="several whole samples a row of `train.max_length` tokens")

    @model_validator(mode="after")
    def _fits(self) -> OffPolicyDistillationStage:
        if self.keep_per_query > self.answers:
            raise ValueError(f"keep_per_query ({self.keep_per_query}) is more than answers ({self.answers})")
        if not any(share > 0 for share in self.modes.values()):
            raise ValueError("modes: give at least one a share above 0")
        return self

    def as_sft(self) -> SftStage:
        """The SFT stage that this is."""
        return SftStage(
            start_from=self.start_from,
            model=self.model,
            teacher=self.teacher,
            train=self.train,
            optimizer=self.optimizer,
            evaluate_every=self.evaluate_every,
            samples=[
                self._source(name, mode, weight * share)
                for name, weight in self.queries.weights.items()
                for mode, share in self.modes.items()
                if share > 0
            ],
            size=self.size,
            filters=self._filters(),
            fusion=self._fusion(),
            overlong=self.overlong,
            supervise_empty_think=self.supervise_empty_think,
            packing=self.packing,
        )

    def _filters(self) -> Filters:
        filters = self.filters or Filters(responses=_only_correct(self.keep == "correct"))
        queries = filters.queries.model_copy(update={"distinct": self.distinct or filters.queries.distinct})
        return filters.model_copy(update={"queries": queries})

    def _source(self, name: str, mode: Mode, weight: float) -> SampleSource:
        limit = self.queries.limit
        sampling = {
            "queries": name,
            "from": "teacher",
            "samples": self.answers,
            "keep": self.keep_per_query,
            "mode": mode,
            "limit": limit and max(1, round(limit * self.queries.weights[name] / sum(self.queries.weights.values()))),
            "max_new_tokens": self.max_new_tokens,
            "batch_size": self.batch_size,
            "sampling": self.sampling.get(mode),
        }
        return SampleSource(rejection_sampling=RejectionSampling.model_validate(sampling), weight=weight)

    def _fusion(self) -> Fusion | None:
        """Flags and dialogues, where both modes are there to choose from."""
        both = sum(share > 0 for share in self.modes.values()) > 1
        if not both or self.flags is False:
            return None
        return Fusion(flags=Flags() if self.flags is True else self.flags, multi_turn=self.multi_turn)

    def faults(self, recipe: Recipe, start_kind: Kind) -> Iterator[Fault]:
        modes = [mode for mode, share in self.modes.items() if share > 0]
        yield from teacher_faults(self, recipe, modes)
        family = FAMILIES.get(recipe.template.family)
        for mode in modes:
            if family is not None and mode not in family.modes:
                yield Fault(
                    ("modes", mode),
                    f"the template family {family.name!r} has no {mode} mode",
                    remedy=f"it has {', '.join(family.modes)}",
                )
        if self.multi_turn is not None and self._fusion() is None:
            yield Fault(
                ("multi_turn",), "dialogues are joined with mode flags alone", remedy="ask for both modes and flags"
            )
        yield from (fault for fault in self.as_sft().faults(recipe, start_kind) if fault.loc[:1] == ("train",))
        if self.logits is not None:
            yield from self._logits_faults(self.logits)

    def _logits_faults(self, logits: StoredLogits) -> Iterator[Fault]:
        if isinstance(self.teacher, Teachers):
            what = "log-probabilities are stored of one teacher, here or served"
            yield Fault(("logits",), what, remedy="name one teacher, or leave `logits` out")
        if isinstance(self.teacher, EndpointSpec) and logits.temperature != 1.0:
            why = "it tells its most probable entries as they are, and their softened tail cannot be worked out"
            what = "a served teacher goes with temperature 1 alone"
            yield Fault(("logits", "temperature"), what, why, "remove it")
        if logits.cross_entropy and logits.temperature != 1.0:
            yield Fault(
                ("logits", "cross_entropy"),
                "a cross-entropy beside a divergence at another temperature than 1",
                "the one is of the distribution as it is, the other of a softened one",
                "set one of the two to its default",
            )
        for key in cache_stage.NO_EFFECT:
            if self.train.get(key) not in (None, False, 0, "nll"):
                yield Fault(
                    ("train", key), f"train.{key} has no effect", "`logits` says what the loss is", "leave it out"
                )

    def data_references(self) -> list[tuple[tuple[str | int, ...], str]]:
        return self.queries.data_references()

    def result_kind(self, start_kind: Kind) -> Kind:
        return self.as_sft().result_kind(start_kind)

    def check_outside(self, context: StageContext) -> None:
        check_routes(context)
        self.as_sft().check_outside(context)
        if self.logits is not None and not is_complete(context.dir.data):
            from posttrain.distill.teacher import check_teachers

            check_teachers(context, self.logits.top_k)

    def build_data(self, context: StageContext) -> dict[str, Any]:
        if self.logits is not None:
            return cache_stage.build_data(self.as_sft(), self.logits, context)
        return self.as_sft().build_data(context)

    def mend_data(self, context: StageContext) -> None:
        if self.logits is not None:
            cache_stage.mend_data(self.logits, context)

    def examine(self, context: StageContext) -> None:
        from posttrain.distill.agreement import examine

        examine(context)

    def make_trainer(self, context: StageContext, model: Any, tokenizer: Any, peft_config: Any | None) -> Any:
        if self.logits is not None:
            return cache_stage.make_trainer(self.as_sft(), self.logits, context, model, tokenizer, peft_config)
        return self.as_sft().make_trainer(context, model, tokenizer, peft_config)


def _only_correct(correct: bool) -> ResponseFilters:
    """No filter but the verifier, or none at all: a teacher's answers are wanted as they are."""
    off = dict.fromkeys(ResponseFilters.model_fields, False)
    return ResponseFilters.model_validate({**off, "wrong_answer": correct})
