"""Stage kind `grpo`: reinforcement learning on verifiable rewards (Qwen3 report, sections 4.2 and 4.4)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from posttrain.errors import PosttrainError, Problem
from posttrain.recipe.schema import Spec
from posttrain.recipe.stage import Fault, StageContext
from posttrain.rl.health import PolicyHealth
from posttrain.rl.stage import NO_EFFECT, ON_POLICY_SAMPLING, RolloutStage, enough_rows
from posttrain.rl.stream import DynamicSampling
from posttrain.templates.families import Kind

if TYPE_CHECKING:
    from posttrain.recipe.schema import Recipe
    from posttrain.rl.rewards.column import RewardColumn

BOUNDED_RATIOS: Mapping[str, Any] = {"delta": 4.0}
"""Where an advantage is negative, PPO's clip leaves the ratio unbounded above; TRL's second clip bounds it there, too
(INTELLECT-2, arXiv 2505.07291, section 3.4). It matters off-policy alone. `train:` may change it."""


class RewardSpec(Spec):
    """A reward with its weight and its options."""

    weight: float = Field(default=1.0, description="the reward's weight")
    options: dict[str, Any] = Field(default_factory=dict, description="the reward's keyword-only parameters")


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
