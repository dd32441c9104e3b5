"""What every stage that makes rollouts has: queries, modes and budgets by sample, who samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from posttrain.data.funnel import Funnel
from posttrain.errors import PosttrainError, Problem
from posttrain.recipe.schema import Share, Weight
from posttrain.recipe.stage import Fault, Stage, StageContext
from posttrain.rl.modes import Asking, ThinkingBudgets, mode_faults
from posttrain.rl.queries import QuerySelection, select_queries, write_data
from posttrain.rl.vllm_rollouts import open_engine, vllm_faults
from posttrain.templates.families import FAMILIES, Family, Kind, Mode

if TYPE_CHECKING:
    from posttrain.recipe.schema import Recipe

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


class RolloutStage(Stage):
    """What every stage that makes rollouts has: its queries, and how each sample asks."""

    owned_options: ClassVar[Mapping[str, str]] = NO_EFFECT

    queries: QuerySelection = Field(description="which queries are asked, in which order")
    modes: dict[Mode, Weight] | None = Field(
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
