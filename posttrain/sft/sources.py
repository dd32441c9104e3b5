"""Where samples come from: data of the recipe, or answers sampled from a model; filtered, each source into one pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from posttrain.data.funnel import Drop, Funnel
from posttrain.errors import PosttrainError, Problem
from posttrain.progress import progress
from posttrain.recipe.endpoint import EndpointSpec
from posttrain.recipe.schema import Spec
from posttrain.recipe.teacher import Teachers, each_teacher
from posttrain.sft.completions import Completions, generate_together
from posttrain.sft.queries import QuerySelector, chunk_directory, limited, made_with, query_rows
from posttrain.sft.query_filters import QueryFilters
from posttrain.sft.rejection_sampling import (
    RejectionSampling,
    response_of,
    select,
    typical_thinking,
    unusable,
    why_drop,
)
from posttrain.sft.reserved import data_behind, method_of, open_reserved
from posttrain.sft.response_filters import Response, ResponseFilters, Surroundings, score_with_task
from posttrain.sft.routing import RoutedCompletions, by_teacher
from posttrain.sft.rows import iterate
from posttrain.sft.sampler import Models, model_place, sampling_of
from posttrain.sft.samples import Sample, is_query_row, read_sample, responses_of, write_pool
from posttrain.tasks.task import derive_seed
from posttrain.templates.families import Mode

if TYPE_CHECKING:
    from datasets import Dataset

    from posttrain.recipe.stage import StageContext


class SampleSource(Spec):
    """One entry of `samples:`."""

    data: str | None = Field(
        default=None, description="a name under `data:`, of conversations or of queries with a solution"
    )
    rejection_sampling: RejectionSampling | None = Field(
        default=None, description="answers sampled from a model, in place of `data`"
    )
    mode: Mode | None = Field(
        default=None, description="non_thinking: reasoning is left out; thinking: demanded; default: each row as it is"
    )
    weight: float | None = Field(
        default=None, gt=0.0, le=1e9, description="share in the mix, relative to the other sources'"
    )
    limit: int | None = Field(default=None, gt=0, description="samples at most, drawn at random after the filters")
    filters: bool = Field(default=True, description="false: the stage's filters leave this source alone")

    @model_validator(mode="after")
    def _one_origin(self) -> SampleSource:
        if (self.data is None) == (self.rejection_sampling is None):
            raise ValueError("give either `data` or `rejection_sampling`, not both or neither")
        if self.rejection_sampling is not None and self.mode not in (None, self.rejection_sampling.mode):
            raise ValueError(f"mode {self.mode} contradicts rejection_sampling.mode {self.rejection_sampling.mode}")
        return self

    def mode_in(self, default: Mode) -> Mode:
        """The mode of this source's samples; `default` for data that do not declare one."""
        return (self.rejection_sampling.mode if self.rejection_sampling else self.mode) or default

    @property
    def label(self) -> str:
        """What the funnel calls it."""
        made = self.rejection_sampling
        if made is None:
            return f"{self.data}" + (f" ({self.mode})" if self.mode else "")
        who = made.model if isinstance(made.model, str) else made.model.model
        return f"{made.queries or f'queries of {made.queries_of}'} answered by {who} ({made.mode})"


class Filters(Spec):
    """`filters:` of a stage."""

    queries: QueryFilters = Field(default=QueryFilters(), description="filters of queries")
    responses: ResponseFilters = Field(default=ResponseFilters(), description="filters of responses")


NO_FILTERS = Filters(
    queries=QueryFilters(),
    responses=ResponseFilters.model_validate(dict.fromkeys(ResponseFilters.model_fields, False)),
)


REMEDIES = {
    "truncated": "raise `max_new_tokens`, if the answers there would end; a base model's never do",
    "malformed": "read the answers there: it may be a base model, or speak another dialect (`template.family`)",
    "empty": "read the answers there: it may be a base model, or speak another dialect (`template.family`)",
    "wrong_mode": "it may not have this mode: ask it for the other one alone (`modes`, or the source's `mode`)",
}
"""By what most answers were no sample of their mode for, whatever the filters."""


@dataclass(frozen=True)
class Collector:
    """Fills the pools of a stage."""

    context: StageContext
    filters: Filters
    funnel: Funnel
    models: Models
    _asked: dict[tuple[str | None, str | None, int | None], int] = field(default_factory=dict)
    _prepared: dict[int, Completions | RoutedCompletions | None] = field(default_factory=dict)

    def collect(self, sources: Sequence[SampleSource]) -> dict[str, Dataset]:
        """One pool (`samples.write_pool`) a source, by label, in order.

        Raises:
            PosttrainError: a source has no sample left, with what took most of them.
        """
        pools: dict[str, Dataset] = {}
        problems = []
        names = [source.label for source in sources]
        labels = [label if names.count(label) == 1 else f"{label} #{number}" for number, label in enumerate(names)]
        self._ask_servers(sources, labels)
        for number, (source, label) in enumerate(zip(sources, labels, strict=True)):
            path = self.context.dir.data / "work" / f"pool-{number}.arrow"
            pool = write_pool(self._samples(source, number, label), path)
            pools[label] = limited(pool, source.limit, self._seed("limit", number))
            if not len(pool):
                problems.append(self._nothing_left(label, number))
        if problems:
            raise PosttrainError(problems)
        return pools

    def _ask_servers(self, sources: Sequence[SampleSource], labels: Sequence[str]) -> None:
        """Served models answer for all sources at once: none waits for a source's last answers, nor for its filters."""
        served: list[Completions] = []
        for number, (source, label) in enumerate(zip(sources, labels, strict=True)):
            spec = source.rejection_sampling
            if spec is None:
                continue
            self.draw(spec, number)  # sources are numbered in the recipe's order, whoever answers
            if self._is_served(spec):
                filters = self.filters if source.filters else NO_FILTERS
                prepared = self._prepared[number] = self._prepare(spec, filters, number, label)
                served += [part for part in (prepared.parts if prepared else []) if part.endpoint]
        what = f"sampling: {', '.join(sorted({part.endpoint.model for part in served if part.endpoint}))}"
        if served:
            with progress(what, sum(map(len, served)), quiet=self.context.quiet) as advance:
                generate_together(served, advance)

    def _is_served(self, spec: RejectionSampling) -> bool:
        """Whether a server answers, or one of several teachers is one."""
        if spec.model == "teacher" and isinstance(self.context.teacher, Teachers):
            return any(isinstance(one, EndpointSpec) for _, one in each_teacher(self.context.teacher))
        return isinstance(model_place(self.context, spec.model), EndpointSpec)

    def _seed(self, *parts: str | int) -> int:
        return derive_seed(self.context.seed, *parts)

    def _samples(self, source: SampleSource, number: int, label: str) -> Iterator[Sample]:
        filters = self.filters if source.filters else NO_FILTERS
        if source.rejection_sampling is None:
            return self._from_data(source, filters, number, label)
        return self._sampled(source.rejection_sampling, filters, number, label)

    def _from_data(self, source: SampleSource, filters: Filters, number: int, label: str) -> Iterator[Sample]:
        from datasets import load_from_disk

        rows = load_from_disk(str(self.context.run.data(str(source.data))))
        if is_query_row(rows.column_names):
            rows = QuerySelector(self.context, filters.queries, self.funnel, self.models, number, label).select(rows)
        around = self._around(
            filters.responses,
            [str(source.data)],
            lambda: (r for sample in self._read(rows, source, label) for r in responses_of(sample)),
        )
        active = filters.responses.active()
        with progress(f"reading {label}", len(rows), quiet=self.context.quiet) as advance:
            for sample in self._read(rows, source, label, self.funnel, advance):
                responses = list(responses_of(sample))
                if all(why_drop(one, active, around, self.funnel, label) is None for one in responses):
                    self.funnel.record(label, "kept", None, responses[-1].shown())
                    yield sample

    def _read(
        self,
        rows: Dataset,
        source: SampleSource,
        label: str,
        funnel: Funnel | None = None,
        advance: Callable[[int], None] = lambda done: None,
    ) -> Iterator[Sample]:
        """The rows that can be read as samples of the source's mode; the others are counted in the funnel, if given."""
        for place, row in enumerate(iterate(rows)):
            sample = read_sample(row, place, label, source.mode, self.context.family)
            drop = sample if isinstance(sample, Drop) else None
            if funnel is not None:
                funnel.record(label, "readable", drop, {"row": place} if drop else None)
            if isinstance(sample, Sample):
                yield sample
            advance(1)

    def _prepare(
        self, spec: RejectionSampling, filters: Filters, number: int, label: str
    ) -> Completions | RoutedCompletions | None:
        """The queries of a source, filtered, and their completions, not generated yet; None where no query is left."""
        queries = query_rows(self.context, spec.queries, spec.queries_of)
        queries = QuerySelector(self.context, filters.queries, self.funnel, self.models, number, label).select(queries)
        # Balanced queries take turns by domain: their first part is balanced too.
        queries = limited(queries, spec.limit, None if filters.queries.balance_domains else self.draw(spec, number))
        return self._completions(queries, spec, number) if len(queries) else None

    def _sampled(self, spec: RejectionSampling, filters: Filters, number: int, label: str) -> Iterator[Sample]:
        ready = number in self._prepared
        completions = self._prepared.pop(number) if ready else self._prepare(spec, filters, number, label)
        if completions is None:
            return
        if not all(part.endpoint for part in completions.parts):  # servers have answered already
            with progress(f"sampling: {label}", len(completions), quiet=self.context.quiet) as advance:
                completions.generate(advance)
        data = [spec.queries] if spec.queries else data_behind(self.context.recipe, str(spec.queries_of))
        around = self._around(
            filters.responses,
            data,
            lambda: (
                response_of(completions.queries[one.query], one, spec.mode)
                for group in completions
                for one in group
                if unusable(one, spec.mode) is None
            ),
        )
        active = filters.responses.active()
        yield from select(completions, active, around, keep=spec.keep, source=label, funnel=self.funnel)

    def draw(self, spec: RejectionSampling, number: int) -> int:
        """The seed of a source's choice of queries. Sources that differ in mode alone choose the same ones."""
        first = self._asked.setdefault((spec.queries, spec.queries_of, spec.limit), number)
        return self._seed("queries", first)

    def _completions(self, queries: Dataset, spec: RejectionSampling, number: int) -> Completions | RoutedCompletions:
        teachers = self.context.teacher
        if spec.model != "teacher" or not isinstance(teachers, Teachers):
            return self._asked_of(spec.model, queries, spec, number, "responses")
        own = by_teacher(teachers, queries, spec.queries, self.context.name)
        return RoutedCompletions(
            queries,
            [
                (places, self._asked_of(teacher, queries.select(places), spec, number, f"responses-{place}"))
                for place, (teacher, places) in enumerate(own.items())
            ],
        )

    def _asked_of(
        self, model: str | EndpointSpec, queries: Dataset, spec: RejectionSampling, number: int, folder: str
    ) -> Completions:
        place = model_place(self.context, model)
        return Completions(
            queries,
            lambda: self.models.sampler(
                model,
                max_new_tokens=spec.max_new_tokens,
                batch_size=spec.batch_size,
                sampling=sampling_of({spec.mode: spec.sampling}) if spec.sampling else None,
            ),
            directory=chunk_directory(self.context, number, folder),
            samples=spec.samples,
            mode=spec.mode,
            seed=self._seed("rejection sampling", number),
            made_with=made_with(self.context, model, spec.max_new_tokens, spec.sampling),
            thinking_budget=spec.thinking_budget,
            chunk=spec.chunk,
            endpoint=place if isinstance(place, EndpointSpec) else None,
        )

    def _around(
        self, filters: ResponseFilters, data: Sequence[str], responses: Callable[[], Iterator[Response]]
    ) -> Surroundings:
        """What the filters may know; only what an active one asks for is worked out."""
        typical: dict[int, float] = {}
        if filters.guessing is not None and filters.guessing.of_typical:
            typical = typical_thinking(responses())
        similar = filters.too_similar
        if similar is None:
            return Surroundings(score_with_task, typical)
        method = similar.method or method_of(self.context.recipe, data)
        return Surroundings(score_with_task, typical, open_reserved(self.context, method, similar.quoted))

    def _nothing_left(self, label: str, number: int) -> Problem:
        steps = [step for step in self.funnel.as_json()["steps"] if step["source"] == label]
        worst = max(steps, key=lambda step: step["dropped"], default=None)
        why, remedy = "", "read the examples there; loosen or switch off that filter, or sample more"
        if worst is not None and worst["dropped"]:
            rules = ", ".join(f"{rule} {count}" for rule, count in worst["why"].items())
            why = f"{worst['step']} dropped {worst['dropped']} of {worst['in']}: {rules}"
            if worst["step"] == "usable":
                remedy = REMEDIES[max(worst["why"], key=worst["why"].__getitem__)]
        return Problem(
            f"stage {self.context.name}: samples[{number}] ({label}) has no sample left",
            where=str(self.context.dir.data / "examples.jsonl"),
            why=why,
            remedy=remedy,
        )
