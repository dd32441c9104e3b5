"""Stage kind `grpo`: reinforcement learning on verifiable rewards (Qwen3 report, sections 4.2 and 4.4)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from posttrain.data.funnel import Funnel
from posttrain.errors import PosttrainError, Problem
from posttrain.recipe.schema import Share, Spec
from posttrain.recipe.stage import Fault, Stage, StageContext
from posttrain.rl.health import PolicyHealth
from posttrain.rl.modes import Asking, ThinkingBudgets, mode_faults
from posttrain.rl.queries import QuerySelection, select_queries, write_data
from posttrain.rl.stream import DynamicSampling
from posttrain.rl.vllm_rollouts import open_engine, vllm_faults
from posttrain.templates.families import FAMILIES, Family, Kind, Mode

if TYPE_CHECKING:
    from posttrain.recipe.schema import Recipe
    from posttrain.rl.rewards.column import RewardColumn

_OWN_GENERATOR = "rollouts come from a generator that gives every sample its own mode and thinking budget"
NO_EFFECT: Mapping[str, str] = {
    "use_transformers_continuous_batching": _OWN_GENERATOR,
    "transformers_continuous_batching_config": _OWN_GENERATOR,
    "use_transformers_paged": _OWN_GENERATOR,
    "generation_kwargs": f"{_OWN_GENERATOR}: use temperature, top_p, top_k, max_completion_length",
    "cache_implementation": f"{_OWN_GENERATOR}, with a cache of its own",
    "min_p": f"{_OWN_GENERATOR}: use temperature, top_p, top_k",
    "repetition_penalty": "the policy is sampled as it is trained",
    "max_tool_calling_iterations": "rollouts call no tools",
    "shuffle_dataset": "`queries.order` says in which order the queries come",
}
"""Options of TRL's trainers that per-sample rollouts would silently ignore, or that the stage decides, with reasons."""

ON_POLICY_SAMPLING: Mapping[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
"""Rollouts drawn from the policy as it is: anything else biases the importance ratio. `train:` may change it."""


BOUNDED_RATIOS: Mapping[str, Any] = {"delta": 4.0}
"""Where an advantage is negative, PPO's clip leaves the ratio unbounded above; TRL's second clip bounds it there, too
(INTELLECT-2, arXiv 2505.07291, section 3.4). It matters off-policy alone. `train:` may change it."""


class RewardSpec(Spec):
    """A reward with its weight and its options."""

    weight: float = Field(default=1.0, description="the reward's weight")
    options: dict[str, Any] = Field(default_factory=dict, description="the reward's keyword-only parameters")


class RolloutStage(Stage):
    """What every stage that makes rollouts has: its queries, and how each sample asks."""

    owned_options: ClassVar[Mapping[str, str]] = NO_EFFECT

    queries: QuerySelection = Field(description="which queries are asked, in which order")
    modes: dict[Mode, float] | None = Field(
        default=None, description="share of samples in each mode; default: the family's default mode alone"
    )
    flags: bool = Field(
        default=False, description="ask for the mode by /think and /no_think, not by the template's switch"
    )
    unflagged: Share = Field(default=0.5, description="share of thinking samples without a flag (flags: true)")
    flags_in_system: Share = Field(default=0.0, description="share of flags that stand in the system message")
    thinking_budgets: ThinkingBudgets | None = Field(
        default=None, description="a share of the thinking samples is stopped at a budget"
    )
    rollout_batch_size: int | None = Field(
        default=None, gt=0, description="rollouts generated at once in one process; default: a whole generation batch"
    )

    turn_tokens: int | None = Field(
        default=None,
        gt=0,
        description="a model's own tokens in one turn of an interactive task; default: what is left of the completion",
    )

    def asking(self, family: Family) -> Asking:
        """How the samples ask."""
        return Asking(
            modes=self.modes or {family.default_mode: 1.0},
            flags=self.flags,
            unflagged=self.unflagged,
            in_system=self.flags_in_system,
            thinking_budgets=self.thinking_budgets,
        )

    def faults(self, recipe: Recipe, start_kind: Kind) -> Iterator[Fault]:
        yield from super().faults(recipe, start_kind)
        yield from self.queries.faults()
        family = FAMILIES.get(recipe.template.family)
        if family is not None:
            yield from mode_faults(self.asking(family), family, start_kind)
        yield from vllm_faults(self.train, recipe.engine)
        if self.train.get("temperature") == 0:
            yield Fault(
                ("train", "temperature"), "rollouts cannot be drawn at temperature 0", "they would all be equal"
            )

    def data_references(self) -> list[tuple[tuple[str | int, ...], str]]:
        return self.queries.data_references()

    def stage_references(self) -> list[tuple[tuple[str | int, ...], str]]:
        return self.queries.stage_references()

    def build_data(self, context: StageContext) -> dict[str, Any]:
        asking = self.asking(context.family)
        funnel = Funnel(context.seed)
        main_mode = max(asking.modes, key=lambda mode: asking.modes[mode])
        limit = int(self.train.get("max_completion_length") or 256)
        queries = select_queries(self.queries, context, main_mode, max_new_tokens=limit, funnel=funnel)
        return write_data(context, queries, asking, funnel)

    def decided_options(self) -> dict[str, Any]:
        """Trainer options that `train:` cannot change."""
        decided = {"remove_unused_columns": False, "shuffle_dataset": self.queries.order == "shuffled"}
        # TRL would make an engine of its own, for which all samples of a batch are alike.
        return decided | ({"use_vllm": False} if self.train.get("use_vllm") else {})

    def set_rollouts(self, context: StageContext, trainer: Any, args: Any) -> None:
        """Tell a trainer how this stage makes its rollouts; with `train.use_vllm`, start the engine."""
        engine = open_engine(context, args) if self.train.get("use_vllm") else None
        trainer.set_rollouts(
            context.family,
            seed=context.seed,
            batch_size=self.rollout_batch_size,
            turn_tokens=self.turn_tokens,
            engine=engine,
        )
        # What TRL corrects of a sampler's log-probabilities, it corrects of this one's.
        trainer.use_vllm = engine is not None


class GrpoStage(RolloutStage):
    """Group-relative policy optimisation with TRL's trainer; GRPO's variants by `train.loss_type` and its kin."""

    trainer_config: ClassVar[str] = "trl:GRPOConfig"
    owned_options: ClassVar[Mapping[str, str]] = {
        **NO_EFFECT,
        "reward_weights": "`rewards:` gives every reward its weight",
    }

    kind: Literal["grpo"] = "grpo"
    rewards: dict[str, float | RewardSpec] = Field(
        default={"accuracy": 1.0},
        description="rewards by name (or package.module:function), with weights; `by_task`: what each row's task names",
    )
    combine: Literal["product", "sum"] = Field(
        default="product",
        description="product: mode_following and format, where listed, multiply the others; sum: weights alone",
    )
    dynamic_sampling: DynamicSampling | None = Field(
        default=None, description="fill every batch with groups that carry a difference in reward"
    )
    health: PolicyHealth = Field(default_factory=PolicyHealth, description="the entropy's band; when a run is stopped")

    @field_validator("rewards", mode="before")
    @classmethod
    def _by_task(cls, value: Any) -> Any:
        return {"task": 1.0} if value == "by_task" else value

    def faults(self, recipe: Recipe, start_kind: Kind) -> Iterator[Fault]:
        yield from super().faults(recipe, start_kind)
        for key in ("entropy_coef", "use_adaptive_entropy"):
            if self.health.entropy is not None and self.train.get(key):
                yield Fault(
                    ("train", key),
                    f"{key} and health.entropy both decide over the entropy's coefficient",
                    remedy="leave one of them out",
                )
        if not self.rewards:
            yield Fault(("rewards",), "a stage of RL needs a reward", remedy="as rewards: {accuracy: 1.0}")
        for name, spec in self.rewards.items():
            try:
                column = _column(name, spec)
                for task in self._tasks(recipe) if name == "task" else []:
                    column.reward.function.table_of({"task": task})  # type: ignore[union-attr]
            except PosttrainError as error:
                for problem in error.problems:
                    yield Fault(("rewards", name), problem.what, problem.why, problem.remedy)
        for loc, stage in self._reward_stages():
            if stage in recipe.stages and recipe.stages[stage].leaves_policy:
                what = f"stage `{stage}` trains no reward model"
                yield Fault(loc, what, remedy="name a stage of kind `reward_model`")

    def _tasks(self, recipe: Recipe) -> list[str]:
        """The tasks that the recipe names for this stage's queries; rows of files may name others."""
        specs = [recipe.data[name] for name in self.queries.weights if name in recipe.data]
        return sorted({str(spec.verifier or spec.task) for spec in specs if spec.verifier or spec.task})

    def _reward_stages(self) -> list[tuple[tuple[str | int, ...], str]]:
        """Stages whose models the rewards ask, with their places below the stage."""
        found: list[tuple[tuple[str | int, ...], str]] = []
        for name, spec in self.rewards.items():
            with contextlib.suppress(PosttrainError):  # told by `faults`
                stages = getattr(getattr(_column(name, spec).reward, "function", None), "stages", list)
                found += [(("rewards", name), stage) for stage in stages()]
        return found

    def stage_references(self) -> list[tuple[tuple[str | int, ...], str]]:
        return [*super().stage_references(), *self._reward_stages()]

    def reward_columns(self) -> tuple[list[RewardColumn], list[float]]:
        """The rewards as TRL takes them, each by itself, and their weights.

        Under `product` a score of any other reward is multiplied by those of `mode_following` and `format`, where the
        recipe lists these: nothing is earned in the wrong mode or behind a broken think block.
        """
        from posttrain.rl.rewards import GATES

        columns = [_column(name, spec) for name, spec in self.rewards.items()]
        if self.combine == "product":
            gates = {column.name: column.reward for column in columns if column.name in GATES}
            for column in columns:
                column.gates = {} if column.name in GATES else gates
        weights = [spec.weight if isinstance(spec, RewardSpec) else float(spec) for spec in self.rewards.values()]
        return columns, weights

    def make_trainer(self, context: StageContext, model: Any, tokenizer: Any, peft_config: Any | None) -> Any:
        from datasets import load_from_disk
        from trl import GRPOConfig

        from posttrain.model.trainer_defaults import trainer_arguments, with_optimizer
        from posttrain.rl.rewards.reading import RolloutFile
        from posttrain.rl.trainer import PolicyTrainer

        columns, weights = self.reward_columns()
        for column in columns:
            if (opens := getattr(getattr(column.reward, "function", None), "open", None)) is not None:
                opens(context.run)
        owned = {**self.decided_options(), "reward_weights": weights}
        defaults = {**ON_POLICY_SAMPLING, **BOUNDED_RATIOS}
        args = trainer_arguments(GRPOConfig, context, self, defaults=defaults, **owned)
        rows = load_from_disk(str(context.dir.data / "train"))
        enough_rows(context.name, len(rows), args.generation_batch_size // args.num_generations)
        # With beta > 0 TRL loads the reference by this name: it is the policy as the stage found it.
        model.config._name_or_path = str(context.start)
        trainer = with_optimizer(PolicyTrainer, self.optimizer)(
            model=model,
            reward_funcs=columns,
            args=args,
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=peft_config,
        )
        self.set_rollouts(context, trainer, args)
        trainer.watch(self.health)
        if trainer.is_world_process_zero():
            reading = RolloutFile(context.dir.path / "rollouts.jsonl", len(columns))
            for column in columns:
                column.reading = reading
        if self.dynamic_sampling is not None:
            whole_groups(context.name, args)
            trainer.fill_batches(self.dynamic_sampling, shuffled=self.queries.order == "shuffled", seed=context.seed)
        return trainer


def _column(name: str, spec: float | RewardSpec) -> RewardColumn:
    from posttrain.rl.rewards import resolve_reward
    from posttrain.rl.rewards.column import RewardColumn

    options = spec.options if isinstance(spec, RewardSpec) else {}
    return RewardColumn(name.rpartition(":")[2], resolve_reward(name, options))


def enough_rows(stage: str, rows: int, needed: int) -> None:
    """Refuse data that does not fill one batch of prompts: TRL would drop it, and train on nothing.

    Raises:
        PosttrainError: there are too few.
    """
    if rows < needed:
        raise PosttrainError(
            Problem(
                f"stage {stage}: {rows} queries do not fill one generation batch of {needed} different prompts",
                why="the trainer would drop the batch and train on nothing",
                remedy="give more queries, or lower train.generation_batch_size (or per_device_train_batch_size)",
            )
        )


def whole_groups(stage: str, args: Any) -> None:
    """Refuse dynamic sampling where the rollouts of one query lie on several processes.

    Raises:
        PosttrainError: a process's part of a generation batch is no whole number of groups.
    """
    own = args.per_device_train_batch_size * args.steps_per_generation
    if own % args.num_generations:
        raise PosttrainError(
            Problem(
                f"stage {stage}: {own} rollouts a process are no whole groups of {args.num_generations}",
                why="dynamic_sampling chooses groups, and every process chooses its own",
                remedy="make per_device_train_batch_size * steps_per_generation a multiple of num_generations",
            )
        )
