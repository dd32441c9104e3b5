"""The queries that a source samples answers to, or takes solutions of: read, filtered, balanced, limited."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.data.funnel import Drop, Funnel
from posttrain.errors import PosttrainError, Problem
from posttrain.progress import progress
from posttrain.recipe.endpoint import EndpointSpec
from posttrain.sft.completions import Completions
from posttrain.sft.query_filters import (
    BalanceDomains,
    NotSolvedWithoutThinking,
    Query,
    QueryFilters,
    balanced,
    domains_of,
    not_verifiable,
    question_of,
    several_questions,
)
from posttrain.sft.response_filters import score_with_task
from posttrain.sft.sampler import Models, identity, model_place
from posttrain.tasks.registry import get_task
from posttrain.tasks.task import derive_seed, text_key

if TYPE_CHECKING:
    from datasets import Dataset

    from posttrain.recipe.stage import StageContext


def query_rows(context: StageContext, data: str | None, stage: str | None) -> Dataset:
    """The rows of a data set, or the queries an earlier stage trained on.

    Raises:
        PosttrainError: the rows have no prompts.
    """
    from datasets import Dataset, load_from_disk

    if data is not None:
        rows, what = load_from_disk(str(context.run.data(data))), f"data {data}"
    else:
        import pyarrow.parquet  # type: ignore[import-untyped,unused-ignore]

        table = pyarrow.parquet.read_table(context.run.stage(str(stage)).data / "queries.parquet")
        rows, what = Dataset(table), f"the queries of stage {stage}"
    if "prompt" not in rows.column_names:
        raise PosttrainError(
            Problem(
                f"stage {context.name}: {what} has no column `prompt` to sample answers to",
                remedy="give queries (`format: queries`, or a `task`)",
            )
        )
    return rows


def limited(rows: Dataset, limit: int | None, seed: int | None) -> Dataset:
    """At most `limit` rows: drawn at random from the seed, or the first ones without a seed."""
    if limit is None or len(rows) <= limit:
        return rows
    places = range(limit) if seed is None else sorted(random.Random(seed).sample(range(len(rows)), limit))
    return rows.select(places)


def chunk_directory(context: StageContext, number: int, what: str) -> Path:
    """Where the completions of a source are kept, chunk by chunk."""
    return context.dir.data / "completions" / f"{number}-{what}"


def made_with(context: StageContext, reference: str | EndpointSpec, *settings: Any) -> Any:
    """What completions of a model depend on: its weights, the dialect, how it is sampled."""
    return [identity(model_place(context, reference)), context.family.name, *map(str, settings)]


@dataclass(frozen=True)
class QuerySelector:
    """Applies the query filters to the queries of one source, each step counted.

    Attributes:
        models: what is sampled from.
        number, label: the source's place in the recipe, and its name in the funnel.
    """

    context: StageContext
    filters: QueryFilters
    funnel: Funnel
    models: Models
    number: int
    label: str

    def select(self, rows: Dataset) -> Dataset:
        """The queries that pass, in order; balanced ones take turns by domain."""
        kept = list(range(len(rows)))
        if self.filters.verifiable:
            kept = self._passing(rows, kept, "verifiable", lambda query: not_verifiable(query, get_task))
        if self.filters.single_question:
            kept = self._passing(rows, kept, "single_question", several_questions)
        if self.filters.distinct:
            kept = self._distinct(rows, kept)
        if self.filters.not_solved_without_thinking is not None:
            kept = self._unsolved(rows, kept, self.filters.not_solved_without_thinking)
        if self.filters.balance_domains is not None:
            kept = self._balanced(rows, kept, self.filters.balance_domains)
        return rows if len(kept) == len(rows) and not self.filters.balance_domains else rows.select(kept)

    def _passing(self, rows: Dataset, places: list[int], step: str, why: Callable[[Query], Drop | None]) -> list[int]:
        kept = []
        with progress(f"{step}: {self.label}", len(places), quiet=self.context.quiet) as advance:
            for place in places:
                query = rows[place]
                drop = why(query)
                self.funnel.record(self.label, step, drop, {"query": question_of(query)} if drop else None)
                if drop is None:
                    kept.append(place)
                advance(1)
        return kept

    def _distinct(self, rows: Dataset, places: list[int]) -> list[int]:
        seen: set[str] = set()

        def seen_before(query: Query) -> Drop | None:
            key = str(query.get("key") or text_key(question_of(query)))
            again = key in seen
            seen.add(key)
            return Drop("same_key", "the same problem stood before") if again else None

        return self._passing(rows, places, "distinct", seen_before)

    def _unsolved(self, rows: Dataset, places: list[int], spec: NotSolvedWithoutThinking) -> list[int]:
        completions = Completions(
            rows.select(places),
            lambda: self.models.sampler(spec.model, max_new_tokens=spec.max_new_tokens, batch_size=spec.batch_size),
            directory=chunk_directory(self.context, self.number, "without-thinking"),
            samples=spec.samples,
            mode="non_thinking",
            seed=derive_seed(self.context.seed, "without thinking", self.number),
            made_with=made_with(self.context, spec.model, spec.max_new_tokens),
        )
        what = f"sampling: {self.label}, without thinking"
        with progress(what, len(completions), quiet=self.context.quiet) as advance:
            completions.generate(advance)
        kept = []
        for place, group in zip(places, completions, strict=True):
            query = rows[place]
            solved = sum((score_with_task(one.content, query) or 0.0) >= 1.0 for one in group) / len(group)
            drop = Drop("solved", f"{solved:.0%} right without thinking") if solved > spec.at_most else None
            shown = {"query": question_of(query), "content": group[0].content} if drop else None
            self.funnel.record(self.label, "not_solved_without_thinking", drop, shown)
            if drop is None:
                kept.append(place)
        return kept

    def _balanced(self, rows: Dataset, places: list[int], spec: BalanceDomains) -> list[int]:
        domains = domains_of(rows[place] for place in places)
        chosen = balanced(domains, spec, derive_seed(self.context.seed, "balance", self.number))
        left_out = {name: domains.count(name) for name in dict.fromkeys(domains)}
        for place in chosen:
            left_out[domains[place]] -= 1
        self.funnel.count(self.label, "balance_domains", len(chosen), left_out)
        kept = {name: domains.count(name) - left_out[name] for name in left_out}
        self.funnel.facts.setdefault("domains", {})[self.label] = kept
        return [places[place] for place in chosen]
