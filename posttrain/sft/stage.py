"""Supervised fine-tuning: the long-CoT cold start, thinking-mode fusion, and any other training on given answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from posttrain.errors import PosttrainError
from posttrain.model.artifacts import is_complete
from posttrain.recipe.stage import Fault, Stage
from posttrain.sft.fusion import MODES, Fusion
from posttrain.sft.sampler import check_served, stage_named
from posttrain.sft.sources import Filters, SampleSource
from posttrain.templates.families import Family, Kind, Mode, get_family

if TYPE_CHECKING:
    from datasets import Dataset

    from posttrain.recipe.schema import Recipe
    from posttrain.recipe.stage import StageContext

DEFAULT_MAX_LENGTH = 1024  # TRL's own

_PREPARED = "conversations are rendered, masked, cut and packed before the trainer sees them"


class SftStage(Stage):
    """`kind: sft`."""

    trainer_config: ClassVar[str] = "trl:SFTConfig"
    owned_options: ClassVar[Mapping[str, str]] = {
        "padding_free": "it follows from the stage's `packing:`",
        "packing_strategy": "packing is best-fit, every sample whole",
        "eval_packing": "`evaluation:` scores a stage",
        "assistant_only_loss": "the loss is on assistant turns, always",
        "completion_only_loss": "the loss is on assistant turns, always",
        "truncation_mode": "the stage's `overlong:` says what happens to long samples",
        "shuffle_dataset": "the trainer's sampler shuffles",
        "dataset_num_proc": _PREPARED,
        "eos_token": "the template family names it",
        "pad_token": "the tokenizer names it",
    }

    kind: Literal["sft"] = "sft"
    samples: list[SampleSource] = Field(min_length=1, description="where samples come from, one entry or several")
    size: int | None = Field(default=None, gt=0, description="samples after mixing; default: each once")
    filters: Filters = Field(default=Filters(), description="what is left out of the samples")
    fusion: Fusion | None = Field(default=None, description="mode flags and joined dialogues; makes a hybrid model")
    history: Literal["keep", "strip"] = Field(
        default="keep", description="earlier thinking stays in sight, or every turn is trained as it is served: without"
    )
    overlong: Literal["drop", "truncate"] = Field(default="drop", description="samples longer than train.max_length")
    supervise_empty_think: bool = Field(
        default=True,
        description="the loss is on the empty think block of non-thinking turns too",
    )
    packing: bool = Field(default=False, description="several whole samples a row of train.max_length tokens")

    def modes(self, family: Family) -> set[Mode]:
        """The modes of the samples, as the recipe declares them, else the default of the family."""
        return {source.mode_in(family.default_mode) for source in self.samples}

    def data_references(self) -> list[tuple[tuple[str | int, ...], str]]:
        found: list[tuple[tuple[str | int, ...], str]] = []
        for number, source in enumerate(self.samples):
            if source.data is not None:
                found.append((("samples", number, "data"), source.data))
            elif source.rejection_sampling is not None and source.rejection_sampling.queries is not None:
                found.append((("samples", number, "rejection_sampling", "queries"), source.rejection_sampling.queries))
        return found

    def stage_references(self) -> list[tuple[tuple[str | int, ...], str]]:
        found: list[tuple[tuple[str | int, ...], str]] = []
        for number, source in enumerate(self.samples):
            made = source.rejection_sampling
            if made is None:
                continue
            loc = ("samples", number, "rejection_sampling")
            if made.queries_of is not None:
                found.append(((*loc, "queries_of"), made.queries_of))
            if (stage := stage_named(made.model)) is not None:
                found.append(((*loc, "from"), stage))
        solved = self.filters.queries.not_solved_without_thinking
        if solved is not None and (stage := stage_named(solved.model)) is not None:
            found.append((("filters", "queries", "not_solved_without_thinking", "model"), stage))
        return found

    def result_kind(self, start_kind: Kind) -> Kind:
        """Hybrid with fusion or both modes; else what the samples are, unless the start is hybrid and stays so."""
        modes = {source.mode_in("non_thinking" if start_kind == "instruct" else "thinking") for source in self.samples}
        if self.fusion is not None or len(modes) == 2 or start_kind == "hybrid":
            return "hybrid"
        return "thinking" if modes == {"thinking"} else "instruct"

    def faults(self, recipe: Recipe, start_kind: Kind) -> Iterator[Fault]:
        try:
            family = get_family(recipe.template.family)
        except PosttrainError:
            return  # told where the template is
        yield from self._mode_faults(family, start_kind)
        yield from self._sampler_faults(start_kind)
        if "packing" in self.train:
            yield Fault(
                ("train", "packing"), "packing is the stage's own option", _PREPARED, "write it beside `train:`"
            )
        if self.packing and self.train.get("max_length", DEFAULT_MAX_LENGTH) is None:
            yield Fault(("train", "max_length"), "packing needs a length of rows", remedy="set train.max_length")

    def _mode_faults(self, family: Family, start_kind: Kind) -> Iterator[Fault]:
        modes = self.modes(family)
        for number, source in enumerate(self.samples):
            mode = source.mode_in(family.default_mode)
            if mode not in family.modes:
                yield Fault(
                    ("samples", number),
                    f"{mode.replace('_', '-')} samples, and the family {family.name!r} has no such mode",
                    f"its templates know {' and '.join(family.modes).replace('_', '-')} turns only",
                    "leave these samples out, or choose a hybrid family (qwen3)",
                )
        if self.fusion is not None:
            if not family.flags:
                yield Fault(
                    ("fusion",), f"the family {family.name!r} has no mode flags", "fusion writes them", "use qwen3"
                )
            missing = [mode for mode in MODES if mode not in modes]
            if missing and all(source.mode or source.rejection_sampling for source in self.samples):
                yield Fault(
                    ("fusion",),
                    f"fusion without {missing[0].replace('_', '-')} samples",
                    "a model that sees one mode alone does not learn to choose",
                    f"add a source with `mode: {missing[0]}`",
                )
        if start_kind == "thinking" and modes == {"non_thinking"}:
            yield Fault(
                ("samples",),
                "a thinking model trained on non-thinking samples alone",
                "it forgets how to think, and no flag brings it back",
                "add thinking samples and `fusion:`",
            )

    def _sampler_faults(self, start_kind: Kind) -> Iterator[Fault]:
        cannot: dict[Kind, Mode] = {"thinking": "non_thinking", "instruct": "thinking"}
        for number, source in enumerate(self.samples):
            made = source.rejection_sampling
            if made is None:
                continue
            if made.model == "start" and cannot.get(start_kind) == made.mode:
                yield Fault(
                    ("samples", number, "rejection_sampling", "mode"),
                    f"{made.mode.replace('_', '-')} answers are asked of the start, a model of kind {start_kind}",
                    "all of them would be dropped",
                    "sample `from` a model that has the mode, or take these samples from data",
                )
            if made.model == "teacher" and self.teacher is None:
                yield Fault(
                    ("samples", number, "rejection_sampling", "from"),
                    "answers are asked of the teacher, and the stage has none",
                    remedy="set `teacher:`",
                )

    def check_outside(self, context: StageContext) -> None:
        if not is_complete(context.dir.data):
            asked = [source.rejection_sampling.model for source in self.samples if source.rejection_sampling]
            solved = self.filters.queries.not_solved_without_thinking
            check_served(context, [*asked, *([solved.model] if solved else [])])

    def build_data(self, context: StageContext) -> dict[str, Any]:
        """Sources, filters, mix, fusion, tokens: into data/train, with samples.jsonl, queries.parquet and the funnel.

        Raises:
            PosttrainError: a source has no sample left, or no sample has a supervised token.
        """
        from posttrain.sft.build import build_sft_data

        return build_sft_data(self, context)

    def make_trainer(self, context: StageContext, model: Any, tokenizer: Any, peft_config: Any | None) -> Any:
        """TRL's SFTTrainer over data/train, taken as it is."""
        from datasets import load_from_disk
        from trl import SFTTrainer

        rows = load_from_disk(str(context.dir.data / "train"))
        return self.trainer_over(rows, SFTTrainer, context, model, tokenizer, peft_config)

    def trainer_over(
        self, rows: Dataset, base: type, context: StageContext, model: Any, tokenizer: Any, peft_config: Any | None
    ) -> Any:
        """A trainer over tokenized rows, with this stage's options.

        Args:
            base: TRL's `SFTTrainer`, or a class below it.
        """
        from trl import SFTConfig

        from posttrain.data.packing import check_isolation, packing_problems
        from posttrain.model.sampler import with_epoch_sampler
        from posttrain.model.trainer_defaults import trainer_arguments, with_optimizer

        arguments = trainer_arguments(
            SFTConfig,
            context,
            self,
            defaults={"train_sampling_strategy": "random" if self.packing else "group_by_length"},
            max_length=None,  # the data are cut already
            dataset_kwargs={"skip_prepare_dataset": True},
            padding_free=self.packing,
            remove_unused_columns="row" not in rows.column_names,
        )
        if self.packing:
            problems = packing_problems(vars(arguments), getattr(model.config, "_attn_implementation", None))
            if problems:
                raise PosttrainError(problems)
            check_isolation(model)
        trainer_class = with_optimizer(with_epoch_sampler(base), self.optimizer)
        return trainer_class(
            model=model,
            args=arguments,
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=peft_config,
        )
