"""The one schema of a recipe: what a user may write, with its meaning.

A recipe is model, template, data, stages, evaluation and engine. Unknown keys are refused. Options of a trainer are not
declared again: they stand under a stage's `train:` and are checked against that trainer's own config class
(`recipe/trainer_options.py`). Nothing here imports torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, model_validator

from posttrain.recipe.stage import Stage
from posttrain.templates.families import Kind, Mode

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0, le=1e9)]  # relative to others', whose sum must not be infinite


class Spec(BaseModel):
    """A part of a recipe: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants")


class TrainedTokenizer(Spec):
    """A byte-level BPE tokenizer with the template's special tokens, trained on the text of the recipe's own data."""

    train_on: list[str] = Field(min_length=1, description="names under `data:` whose text it is trained on")
    vocab_size: int = Field(ge=264, description="entries wanted, the special tokens included")
    samples: int = Field(default=2000, gt=0, description="rows of each data set that are read")
    split: str | None = Field(default=None, description="pattern of what is merged at most; default: as Qwen splits")


class Adapter(Spec):
    """A LoRA adapter. `lora` holds options of `peft.LoraConfig`, checked against that class."""

    lora: dict[str, Any] = Field(description="options of peft.LoraConfig")
    at_boundary: Literal["merge", "continue"] = Field(
        default="merge",
        description="at a stage's end: merge the adapter into the weights, or hand it on for the next stage to train",
    )


class ModelSpec(Spec):
    """A model: a hub id or a local directory (`path`), or an `architecture` built from its configuration."""

    path: str | None = Field(default=None, description="a hub id or a directory; what looks local never goes to a hub")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub's model")
    gguf_file: str | None = Field(default=None, description="the GGUF file below `path` that holds the weights")
    made_by: str | None = Field(default=None, description="the command that makes `path`, told where that is missing")
    architecture: str | None = Field(default=None, description="a transformers class, as Qwen3ForCausalLM")
    config: dict[str, Any] = Field(default_factory=dict, description="options of the architecture's own config class")
    tokenizer: str | TrainedTokenizer | None = Field(
        default=None, description="default: the one at `path`; for a stage's own architecture, the recipe's"
    )
    kind: Kind = Field(default="base", description="hybrid, thinking, instruct or base: gates what a stage may do")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="float32", description="the type of the weights")
    attention: str = Field(default="sdpa", description="attn_implementation of transformers")
    adapter: Adapter | None = Field(
        default=None, description="train a LoRA adapter, in every stage that goes back to this model"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSpec:
        if (self.path is None) == (self.architecture is None):
            raise ValueError("give either `path` (hub id or directory) or `architecture` with `config`, one of the two")
        return self


class TemplateSpec(Spec):
    """The chat dialect. Its markers, sampling and stop text come from the family unless said otherwise here."""

    family: str = Field(default="qwen3", description="the template family, see [Template families](#template-families)")
    stop_thinking: str | None = Field(default=None, description="the text forced when a thinking budget is spent")


class DataSpec(Spec):
    """One named data set: a file (`path`), a `datasets` name (`dataset`), or a procedural `task`."""

    path: str | None = Field(default=None, description="JSONL or parquet file, directory or glob")
    dataset: str | None = Field(default=None, description="a name that `datasets.load_dataset` knows")
    split: str = Field(default="train", description="the split of a `dataset`")
    task: str | None = Field(default=None, description="a registered task, as arithmetic or reasoning_gym:chain_sum")
    size: int | None = Field(default=None, gt=0, description="rows to make (tasks)")
    seed: int = Field(default=0, ge=0, lt=2**63, description="the task's seed")
    options: dict[str, Any] = Field(default_factory=dict, description="the task's own options")
    format: Literal["auto", "conversational", "prompt_completion", "queries", "preference"] = Field(
        default="auto", description="what the rows are; `auto` tells by the columns, see [Data formats](#data-formats)"
    )
    map: dict[str, str] = Field(default_factory=dict, description="new column: existing column, or template string")
    filter: str | None = Field(
        default=None, description="an expression over the columns; rows where it is false are left out"
    )
    limit: int | None = Field(default=None, gt=0, description="rows read at most, after the filter")
    verifier: str | None = Field(default=None, description="the task that scores answers to these rows")
    on_bad_rows: Literal["refuse", "skip"] = Field(
        default="refuse",
        description="`refuse`: every bad row is named and nothing is begun; `skip`: counted, logged, left out",
    )
    reserve: int = Field(default=0, ge=0, description="rows set aside for evaluation before any generation")
    decontaminate: Literal["key", "text", "lcs", "off"] = Field(
        default="lcs", description="how training rows too close to any reserved row are found (Qwen2.5: LCS)"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> DataSpec:
        given = [key for key in ("path", "dataset", "task") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of `path`, `dataset`, `task` (given: {', '.join(given) or 'none'})")
        if self.task and self.size is None:
            raise ValueError("a procedural task needs `size`: how many rows to make")
        return self


class SamplingSpec(Spec):
    """How tokens are drawn. The report's values for each mode are the family's defaults (Qwen3 report, section 4)."""

    temperature: float = Field(ge=0.0, description="0: the most probable token")
    top_p: float = Field(default=1.0, gt=0.0, le=1.0, description="nucleus sampling; 1: off")
    top_k: int = Field(default=0, ge=0, description="0: off")
    presence_penalty: float = Field(
        default=0.0, description="taken from the score of every token that occurred already"
    )


class ThinkFollow(Spec):
    """Dialogues of several turns with flags at random turns, scored on mode (Qwen3 report, Table 22)."""

    dialogues: int = Field(default=64, ge=0, description="dialogues held; 0: none")
    turns: int = Field(default=3, ge=1, description="turns of a dialogue")


class EvaluationSpec(Spec):
    """What every checkpoint is scored on: the rows reserved from `data`, in every mode of the template's family."""

    data: list[str] = Field(min_length=1, description="names under `data:` with `reserve`")
    samples: int = Field(default=1, ge=1, description="completions a query; pass@k is reported up to this k")
    max_new_tokens: int = Field(
        default=1024,
        gt=0,
        description="the model's own tokens in a completion, or in one turn of a game; one that needs more is wrong",
    )
    batch_size: int = Field(default=64, gt=0, description="completions generated at once")
    budgets: list[int] = Field(default_factory=list, description="thinking budgets of the budget curve, in tokens")
    budget_stages: list[str] = Field(
        default_factory=list, description="stages it is drawn for; default: the last hybrid flagship"
    )
    think_follow: ThinkFollow = Field(default_factory=ThinkFollow, description="mode following over several turns")
    sampling: dict[Mode, SamplingSpec] = Field(default_factory=dict, description="default: the family's")
    curve_queries: int = Field(
        default=128, gt=0, description="reserved queries used by `evaluate_every` during training"
    )
    suites: list[str] = Field(
        default_factory=list,
        description="evaluation suites whose headline figure every stage shows, see [suites.md](suites.md)",
    )
    suite_limit: int | None = Field(default=None, gt=0, description="items of each suite, drawn once and for all")
    seed: int = Field(default=1234, ge=0, lt=2**63, description="of all sampling in the evaluation")


class EngineSpec(Spec):
    """Where trainers run. The recipe stays; the engine changes."""

    launcher: Literal["none", "accelerate"] = Field(
        default="none", description="`none`: this process; `accelerate`: `accelerate launch`"
    )
    processes: int = Field(default=1, ge=1, description="processes in all, over all machines")
    machines: int = Field(default=1, ge=1, description="machines; each runs the same command on a shared run directory")
    machine_rank: int | None = Field(default=None, ge=0, description="default: $POSTTRAIN_MACHINE_RANK or 0")
    main_address: str | None = Field(default=None, description="rank 0's address; default: $POSTTRAIN_MAIN_ADDRESS")
    main_port: int = Field(
        default=29500,
        ge=1,
        le=65535,
        description="the port of machine 0 that the other machines connect to; on one machine any free port is taken",
    )
    strategy: Literal["ddp", "zero2", "zero3", "fsdp2"] = Field(
        default="ddp", description="`ddp`: whole copies; `zero2`, `zero3`: DeepSpeed; `fsdp2`: PyTorch's FSDP2"
    )
    deepspeed: dict[str, Any] = Field(default_factory=dict, description="DeepSpeed's own options over our defaults")
    cpu: bool = Field(default=False, description="train on the CPU even where there is an accelerator")
    threads: int | None = Field(default=None, ge=1, description="torch threads a process; default: torch's")
    sampler: Literal["transformers", "vllm"] = Field(
        default="transformers",
        description="what samples from a model that a stage's data or an evaluation loads; rollouts: train.use_vllm",
    )

    @model_validator(mode="after")
    def _launchable(self) -> EngineSpec:
        if self.launcher == "none" and (self.processes > 1 or self.machines > 1 or self.strategy != "ddp"):
            raise ValueError("several processes or a sharding strategy need `launcher: accelerate`")
        if self.processes % self.machines:
            raise ValueError(f"processes ({self.processes}) must be a multiple of machines ({self.machines})")
        return self


Stage.model_rebuild(_types_namespace={"ModelSpec": ModelSpec})  # stage.py names it and cannot import it


class Recipe(Spec):
    """A whole run. Stages run in the order written; each starts from the one before unless it says otherwise."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="the run's name; its directory is `runs/NAME` unless `--output` says otherwise",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="every seed of the run is drawn from it")
    model: ModelSpec = Field(description="the model that the first stage starts from")
    template: TemplateSpec = Field(default_factory=TemplateSpec, description="the chat dialect")
    data: dict[str, DataSpec] = Field(min_length=1, description="the data sets, by names of your own")
    evaluation: EvaluationSpec = Field(description="what every checkpoint is scored on")
    engine: EngineSpec = Field(default_factory=EngineSpec, description="where trainers run")
    stages: dict[str, SerializeAsAny[Stage]] = Field(
        min_length=1, description="the stages, by names of your own, run in the order written"
    )
