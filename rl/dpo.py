"""Stage kind `dpo`: direct preference optimisation, on given pairs or the model's own answers (Qwen2.5's offline RL).

With `pairs.queries` the model that the stage starts from answers every query several times: passed is chosen, failed is
rejected (Qwen2.5 report, section 4.2: the SFT model resamples). With `pairs.data` rows bring both answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from posttrain.recipe.stage import Fault, Stage, StageContext
from posttrain.rl.preferences import PairSource
from posttrain.templates.families import Kind

if TYPE_CHECKING:
    from posttrain.recipe.schema import Recipe


class DpoStage(Stage):
    """Direct preference optimisation with TRL's trainer."""

    trainer_config: ClassVar[str] = "trl:DPOConfig"
    owned_options: ClassVar[Mapping[str, str]] = {
        "pad_token": "the tokenizer names it",
        "eos_token": "the template's end of a turn stands in the data",
    }

    kind: Literal["dpo"] = "dpo"
    pairs: PairSource = Field(description="where chosen and rejected answers come from")

    def faults(self, recipe: Recipe, start_kind: Kind) -> Iterator[Fault]:
        yield from self.pairs.faults(recipe)

    def data_references(self) -> list[tuple[tuple[str | int, ...], str]]:
        return self.pairs.data_references()

    def build_data(self, context: StageContext) -> dict[str, Any]:
        """Write data/train (prompt, chosen, rejected as text), queries.parquet, the funnel and its examples."""
        from datasets import Dataset

        from posttrain.data.funnel import Funnel
        from posttrain.rl.preferences import build_pairs, texts_of, write_queries

        funnel = Funnel(context.seed)
        pairs = build_pairs(self.pairs, context, funnel)
        texts = [
            dict(zip(("prompt", "chosen", "rejected"), texts_of(pair, context.family), strict=True)) for pair in pairs
        ]
        Dataset.from_list(texts).save_to_disk(str(context.dir.data / "train"))
        write_queries(pairs, context.dir.data)
        funnel.write(context.dir.data)
        return funnel.as_json()

    def make_trainer(self, context: StageContext, model: Any, tokenizer: Any, peft_config: Any | None) -> Any:
        from datasets import load_from_disk
        from trl import DPOConfig, DPOTrainer

        from posttrain.model.sampler import with_epoch_sampler
        from posttrain.model.trainer_defaults import trainer_arguments, with_optimizer

        model.config._name_or_path = str(context.start)  # TRL loads the reference by this name
        return with_optimizer(with_epoch_sampler(DPOTrainer), self.optimizer)(
            model=model,
            args=trainer_arguments(DPOConfig, context, self),
            train_dataset=load_from_disk(str(context.dir.data / "train")),
            processing_class=tokenizer,
            peft_config=peft_config,
        )
