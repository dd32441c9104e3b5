"""What every stage is: its options in the recipe, what it is given when it runs, and what it must do.

A kind of stage is one file with one subclass of `Stage` and one line in `recipe/kinds.py`. The options are pydantic
fields; heavy libraries are imported inside the methods, so that a recipe is read without torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from posttrain.recipe.endpoint import EndpointSpec
from posttrain.recipe.teacher import Teacher, Teachers
from posttrain.templates.families import Family, Kind

if TYPE_CHECKING:
    from posttrain.model.artifacts import RunDir, StageDir
    from posttrain.recipe.schema import ModelSpec, Recipe


@dataclass(frozen=True)
class Fault:
    """A fault found by a stage in its own options. `loc` is the path below the stage, as ("queries", "from")."""

    loc: tuple[str | int, ...]
    what: str
    why: str = ""
    remedy: str = ""


class Optimizer(BaseModel):
    """`muon`: Muon on the matrices inside the blocks, AdamW (the trainer's own settings) on the rest."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Literal["muon"] = Field(default="muon", description="the one there is")
    learning_rate: float = Field(gt=0.0, description="Muon's, for the matrices; AdamW's is train.learning_rate")
    momentum: float = Field(default=0.95, description="Muon's")
    weight_decay: float = Field(default=0.01, description="Muon's")


@dataclass(frozen=True)
class StageContext:
    """What a running stage is given.

    Attributes:
        recipe: the whole recipe.
        name: the stage's name; `recipe.stages[name]` is the stage itself.
        run: the run's directory; `run.stage(other)` gives an earlier stage's artefacts.
        dir: this stage's own directory.
        start: directory of the model that the stage starts from (saved as transformers and vLLM load it).
        teacher: where its teacher is: a model's directory or hub id, a server, several of these by what they teach
            (their texts are directories or hub ids, no names of stages), or None.
        family: the template family, with the recipe's overrides.
        kind: kind of the model that the stage starts from.
        quiet: print no progress bars.
    """

    recipe: Recipe
    name: str
    run: RunDir
    dir: StageDir
    start: Path
    teacher: Path | EndpointSpec | Teachers | None
    family: Family
    kind: Kind
    quiet: bool = False

    @property
    def seed(self) -> int:
        """A seed of this stage's own: stable when stages are added or moved."""
        import zlib

        return (self.recipe.seed * 1_000_003 + zlib.crc32(self.name.encode())) % (2**31)


class Stage(BaseModel):
    """Options that every kind of stage has."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants")

    trainer_config: ClassVar[str] = ""
    """`module:Class` of the config class that `train:` is checked against."""
    leaves_policy: ClassVar[bool] = True
    """Whether the model that it leaves answers prompts; one that does not is nobody's start or teacher."""
    owned_options: ClassVar[Mapping[str, str]] = {}
    """Options of that class which this kind of stage sets itself, each with the reason told to a user who gives it."""

    kind: str = Field(description="the kind of the stage")
    start_from: str | None = Field(
        default=None, description="an earlier stage, or `base`; default: the last stage before that leaves a policy"
    )
    model: ModelSpec | None = Field(default=None, description="start from this model instead (a student, say)")
    teacher: Teacher | None = Field(
        default=None, description="an earlier stage, a model directory, a hub id, a served model, or several of these"
    )
    train: dict[str, Any] = Field(default_factory=dict, description="options of the trainer's own config class")
    optimizer: Optimizer | None = Field(default=None, description="default: the trainer's own")
    evaluate_every: int = Field(
        default=0, ge=0, description="optimizer steps between two points of the accuracy curve; 0: none"
    )
    require: dict[str, str] = Field(
        default_factory=dict, description='figures demanded of the evaluation, as {think_follow: ">= 0.95"}'
    )

    def faults(self, recipe: Recipe, start_kind: Kind) -> Iterator[Fault]:
        """Faults that only the whole recipe shows. Called before anything heavy is imported."""
        return iter(())

    def data_references(self) -> list[tuple[tuple[str | int, ...], str]]:
        """Every name under `data:` this stage uses, with its place below the stage."""
        return []

    def stage_references(self) -> list[tuple[tuple[str | int, ...], str]]:
        """Every other stage this stage's data is built with (not start_from and teacher), with its place."""
        return []

    def result_kind(self, start_kind: Kind) -> Kind:
        """The kind of the model this stage leaves."""
        return start_kind

    def check_outside(self, context: StageContext) -> None:
        """Look at what lies outside the recipe, as servers do: called before the first stage of a run begins.

        Raises:
            PosttrainError: something that the stage will need is not as it has to be.
        """

    def build_data(self, context: StageContext) -> dict[str, Any]:
        """Write what the stage trains on into `context.dir.data`; return the funnel (counts) as JSON-able data."""
        raise NotImplementedError

    def mend_data(self, context: StageContext) -> None:
        """Make whole what the stage's built data lean on outside their own folder. Called before a training goes on."""

    def evaluate(self, context: StageContext) -> tuple[dict[str, Any], str] | None:
        """Its figures (`scores`, `budget_curve`) and samples, if it is not scored as a policy is; else None."""
        return None

    def examine(self, context: StageContext) -> None:
        """Look at what the stage has made, beyond the evaluation that every stage has. Called once it is evaluated."""

    def make_trainer(self, context: StageContext, model: Any, tokenizer: Any, peft_config: Any | None) -> Any:
        """A `transformers.Trainer` over the built data, ready for `train(resume_from_checkpoint=...)`."""
        raise NotImplementedError
