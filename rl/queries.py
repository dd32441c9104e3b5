"""The queries of a stage that makes rollouts: which, in what order, and how they ask.

For reasoning RL the report demands of a query that it was not used in the cold start, is learnable for the model that
starts, and is as hard as possible (Qwen3 report, section 4.2). Learnable is measured: a pass rate over a few samples by
that model, neither too low nor too high.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from posttrain.data.funnel import Drop, Funnel
from posttrain.recipe.schema import Share, Spec
from posttrain.recipe.stage import Fault, StageContext
from posttrain.rl.modes import Asking, ask
from posttrain.templates.families import Mode

ALL = "queries"
"""The funnel's source once the data sets are mixed."""


class PassRate(Spec):
    """How often the starting model answers a query rightly; queries outside [low, high] are dropped."""

    samples: int = Field(default=8, ge=1, description="completions a query")
    low: Share = Field(default=0.1, description="queries below it are beyond the model for now")
    high: Share = Field(default=0.9, description="queries above it teach nothing any more")
    mode: Mode | None = Field(
        default=None, description="mode that is measured; default: the one with the largest share"
    )
    max_new_tokens: int | None = Field(default=None, gt=0, description="default: train.max_completion_length")
    batch_size: int = Field(default=64, gt=0, description="completions generated at once")
    chunk: int = Field(default=64, gt=0, description="queries measured between two saves")

    @model_validator(mode="after")
    def _in_order(self) -> PassRate:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) is above high ({self.high})")
        return self


class QuerySources(Spec):
    """Where queries come from."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, serialize_by_alias=True, validate_by_name=True
    )

    from_: str | list[str] | dict[str, float] = Field(
        alias="from", description="a name under `data:`, several, or several with weights"
    )
    limit: int | None = Field(default=None, gt=0, description="queries used at most")

    @model_validator(mode="after")
    def _weighed(self) -> QuerySources:
        if not self.weights:
            raise ValueError("`from` names no data set")
        if not all(0 < weight <= 1e9 for weight in self.weights.values()):
            raise ValueError("a weight under `from` must be above 0, and at most 1e9")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """Names under `data:` with their weights."""
        if isinstance(self.from_, str):
            return {self.from_: 1.0}
        return dict.fromkeys(self.from_, 1.0) if isinstance(self.from_, list) else dict(self.from_)

    def data_references(self) -> list[tuple[tuple[str | int, ...], str]]:
        return [(("queries", "from"), name) for name in self.weights]


class QuerySelection(QuerySources):
    """Which queries a stage uses, in which order."""

    exclude_queries_of: list[str] = Field(
        default_factory=list, description="earlier stages whose queries are left out, by key"
    )
    only_queries_of: list[str] = Field(
        default_factory=list, description="earlier stages whose queries alone are used, by key"
    )
    pass_rate: PassRate | None = Field(
        default=None, description="measure how often the starting model is right, and keep what it can learn"
    )
    order: Literal["hardest_first", "variance", "shuffled", "as_is"] = Field(
        default="shuffled",
        description="`hardest_first` and `variance` (the most uncertain first: p (1 - p)) need `pass_rate`",
    )
    pool: int | None = Field(
        default=None, gt=0, description="queries looked at (their pass rate measured); default: all"
    )

    def stage_references(self) -> list[tuple[tuple[str | int, ...], str]]:
        return [
            (("queries", key, i), name)
            for key in ("exclude_queries_of", "only_queries_of")
            for i, name in enumerate(getattr(self, key))
        ]

    def faults(self) -> Iterator[Fault]:
        """Faults within the selection."""
        if self.order in ("hardest_first", "variance") and self.pass_rate is None:
            yield Fault(
                ("queries", "order"),
                f"{self.order} needs a pass rate to order by",
                remedy="give pass_rate, as pass_rate: {samples: 8, low: 0.1, high: 0.9}",
            )


def _readable(row: Mapping[str, Any]) -> dict[str, Any]:
    shown = {key: row[key] for key in ("id", "answer", "task", "pass_rate", "mode", "thinking_budget") if key in row}
    return {"prompt": row["prompt"][-1]["content"], **shown}


def _sift(
    rows: Sequence[dict[str, Any]],
    funnel: Funnel,
    source: str,
    step: str,
    why: Callable[[dict[str, Any]], Drop | None],
) -> list[dict[str, Any]]:
    """The rows for which there is no reason to go; every row is counted."""
    kept = []
    for row in rows:
        drop = why(row)
        funnel.record(source, step, drop, _readable(row))
        if drop is None:
            kept.append(row)
    return kept


def _first(rows: list[dict[str, Any]], count: int | None, funnel: Funnel, step: str) -> list[dict[str, Any]]:
    """The first `count` rows; the rest is counted."""
    if count is None or len(rows) <= count:
        return rows
    funnel.count(ALL, step, count, {"not_needed": len(rows) - count})
    return rows[:count]


def select_queries(
    selection: QuerySelection, context: StageContext, mode: Mode, *, max_new_tokens: int, funnel: Funnel
) -> list[dict[str, Any]]:
    """The queries of a stage, in the order in which they are to be used.

    Args:
        mode: the mode in which pass rates are measured, unless the selection names one.
        max_new_tokens: tokens a completion, unless the selection says otherwise.

    Raises:
        PosttrainError: none is left.
    """
    order = random.Random(context.seed)
    rows = _mixed(selection, context, order, funnel)
    rows = _unused(selection, context, rows, funnel)
    rows = _first(rows, selection.pool, funnel, "pool")
    if selection.pass_rate is not None:
        rows = _learnable(selection.pass_rate, context, rows, mode, max_new_tokens, funnel)
    if selection.order == "hardest_first":
        rows = sorted(rows, key=lambda row: row["pass_rate"])
    elif selection.order == "variance":  # of a right or wrong answer's score (Qwen2.5 report, section 4.3)
        rows = sorted(rows, key=lambda row: -row["pass_rate"] * (1.0 - row["pass_rate"]))
    rows = _first(rows, selection.limit, funnel, "limit")
    if not rows:
        raise _none_left(context.name, funnel)
    return rows


def _none_left(stage: str, funnel: Funnel) -> Exception:
    from posttrain.errors import PosttrainError, Problem

    path = "; ".join(f"{step['step']}: {step['in']} -> {step['kept']}" for step in funnel.as_json()["steps"])
    return PosttrainError(
        Problem(
            f"stage {stage}: no query is left ({path})",
            remedy="widen pass_rate, exclude fewer stages, or give more data",
        )
    )


def _mixed(
    selection: QuerySelection, context: StageContext, order: random.Random, funnel: Funnel
) -> list[dict[str, Any]]:
    """Rows of every source in the shares that the weights give, each key once."""
    from datasets import load_from_disk

    sources: dict[str, list[dict[str, Any]]] = {}
    seen: set[str] = set()

    def seen_before(row: dict[str, Any]) -> Drop | None:
        if row["key"] in seen:
            return Drop("same_key", "the same problem stands in the data already")
        seen.add(row["key"])
        return None

    for name in selection.weights:
        rows = list(load_from_disk(str(context.run.data(name))))
        sources[name] = _sift(rows, funnel, name, "distinct", seen_before)
        if selection.order != "as_is":
            order.shuffle(sources[name])
    if len(sources) == 1:
        return next(iter(sources.values()))
    whole = sum(selection.weights.values())
    # As many as the scarcest source allows at these weights.
    total = min(len(rows) * whole / selection.weights[name] for name, rows in sources.items())
    mixed = []
    for name, rows in sources.items():
        taken = rows[: round(total * selection.weights[name] / whole)]
        funnel.count(name, "weights", len(taken), {"beyond_its_weight": len(rows) - len(taken)})
        mixed += taken
    order.shuffle(mixed)
    return mixed


def _unused(
    selection: QuerySelection, context: StageContext, rows: list[dict[str, Any]], funnel: Funnel
) -> list[dict[str, Any]]:
    excluded = {key: stage for stage in selection.exclude_queries_of for key in queries_of(context, stage)}
    if selection.exclude_queries_of:

        def used(row: dict[str, Any]) -> Drop | None:
            stage = excluded.get(row["key"])
            return Drop("used_before", f"used by {stage}") if stage else None

        rows = _sift(rows, funnel, ALL, "unused", used)
    if selection.only_queries_of:
        wanted = {key for stage in selection.only_queries_of for key in queries_of(context, stage)}
        rows = _sift(
            rows, funnel, ALL, "used before", lambda row: None if row["key"] in wanted else Drop("not_used_before")
        )
    return rows


def queries_of(context: StageContext, stage: str) -> set[str]:
    """Keys of the queries that an earlier stage used."""
    import pyarrow.parquet as parquet

    table = parquet.read_table(context.run.stage(stage).data / "queries.parquet", columns=["key"])
    return set(table["key"].to_pylist())


def _learnable(
    spec: PassRate,
    context: StageContext,
    rows: list[dict[str, Any]],
    mode: Mode,
    max_new_tokens: int,
    funnel: Funnel,
) -> list[dict[str, Any]]:
    from posttrain.rl.pass_rate import measure_pass_rates

    rates = measure_pass_rates(spec, context, rows, spec.mode or mode, spec.max_new_tokens or max_new_tokens)
    rated = [{**row, "pass_rate": rate} for row, rate in zip(rows, rates, strict=True)]

    def unlearnable(row: dict[str, Any]) -> Drop | None:
        if row["pass_rate"] < spec.low:
            return Drop("too_hard", f"pass rate {row['pass_rate']:.2f}, at least {spec.low} wanted")
        if row["pass_rate"] > spec.high:
            return Drop("too_easy", f"pass rate {row['pass_rate']:.2f}, at most {spec.high} wanted")
        return None

    return _sift(rated, funnel, ALL, "learnable", unlearnable)


def write_data(
    context: StageContext, queries: Sequence[dict[str, Any]], asking: Asking, funnel: Funnel
) -> dict[str, Any]:
    """Write what a stage of rollouts trains on: its rows as they ask, its queries, funnel and examples.

    Returns:
        The funnel.
    """
    from datasets import Dataset

    rows = list(ask(queries, asking, context.family, context.seed))
    Dataset.from_list(rows).save_to_disk(str(context.dir.data / "train"))
    Dataset.from_list([dict(query) for query in queries]).to_parquet(str(context.dir.data / "queries.parquet"))
    for row in rows:
        funnel.record(ALL, "asked", None, {**_readable(row), "switch": row["switch"]})
    funnel.facts |= {
        "samples": len(rows),
        "modes": {mode: sum(row["mode"] == mode for row in rows) for mode in asking.modes},
        "switches": {key: sum(row["switch"] == key for row in rows) for key in ("template", "flag", "default")},
        "with_budget": sum(row["thinking_budget"] >= 0 for row in rows),
    }
    funnel.write(context.dir.data)
    return funnel.as_json()
