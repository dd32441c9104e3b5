"""Rejection sampling: several answers a query from a model, the unfit dropped, a few of the rest kept.

Who answers is a parameter (`sampler.Sampler`): the stage's own model for fusion, a reasoning teacher for the cold
start, any teacher for distillation. How the answers are kept while they come is `completions.Completions`'.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, Field, model_validator

from posttrain.data.funnel import Drop, Funnel
from posttrain.recipe.endpoint import EndpointSpec
from posttrain.recipe.schema import SamplingSpec, Spec
from posttrain.sft.completions import CHUNK, Candidate, Completions
from posttrain.sft.query_filters import Query, question_of
from posttrain.sft.repetition import units
from posttrain.sft.response_filters import Response, ResponseFilter, Surroundings
from posttrain.sft.routing import RoutedCompletions
from posttrain.sft.samples import Sample, query_columns
from posttrain.templates.families import Mode


class RejectionSampling(Spec):
    """`rejection_sampling:` of a sample source."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, serialize_by_alias=True, validate_by_name=True
    )

    queries: str | None = Field(default=None, description="a name under `data:`")
    queries_of: str | None = Field(default=None, description="an earlier stage: the queries it trained on")
    model: str | EndpointSpec = Field(
        default="start",
        alias="from",
        description="start, base, teacher, a stage, a model directory (./...), a hub id, or a served model",
    )
    samples: int = Field(default=4, ge=1, description="candidates a query (the report does not disclose its N)")
    keep: int = Field(default=1, ge=1, description="candidates kept a query, of those that pass the filters")
    mode: Mode = Field(default="thinking", description="the mode that is asked for; answers in the other are dropped")
    thinking_budget: int | None = Field(default=None, ge=0, description="in tokens; default: no limit")
    limit: int | None = Field(default=None, gt=0, description="queries at most, drawn after the query filters")
    max_new_tokens: int = Field(default=1024, gt=0, description="of an answer; longer ones are dropped")
    batch_size: int = Field(default=64, gt=0, description="answers generated at once")
    sampling: SamplingSpec | None = Field(default=None, description="default: the family's for the mode")
    chunk: int = Field(default=CHUNK, gt=0, description="completions written at a time: what a kill can cost")

    @model_validator(mode="after")
    def _fits(self) -> RejectionSampling:
        if (self.queries is None) == (self.queries_of is None):
            raise ValueError(
                "give either `queries` (a name under data) or `queries_of` (an earlier stage), not both or neither"
            )
        if self.keep > self.samples:
            raise ValueError(f"keep ({self.keep}) is more than samples ({self.samples})")
        if self.thinking_budget is not None and self.mode == "non_thinking":
            raise ValueError("a thinking_budget has no meaning in mode non_thinking")
        return self


def unusable(candidate: Candidate, mode: Mode) -> Drop | None:
    """Why a completion is no sample of its mode, before any filter looks at it."""
    if candidate.truncated:
        return Drop("truncated", f"cut off after {candidate.tokens} tokens")
    if not candidate.well_formed:
        return Drop("malformed", "its think block or a tool call is broken")
    if not candidate.content and not candidate.message.get("tool_calls"):
        return Drop("empty", "no final message")
    if (mode == "thinking") != bool(candidate.reasoning):
        return Drop("wrong_mode", "it does not think" if mode == "thinking" else "it thinks")
    return None


def response_of(query: Query, candidate: Candidate, mode: Mode) -> Response:
    """A candidate as the response filters look at it."""
    return Response(query, question_of(query), candidate.reasoning, candidate.content, mode)


def typical_thinking(responses: Iterable[Response]) -> dict[int, float]:
    """Median words of thinking by difficulty, thinking responses only."""
    lengths: defaultdict[int, list[int]] = defaultdict(list)
    for response in responses:
        if response.mode == "thinking":
            lengths[int(response.query.get("difficulty") or 0)].append(len(units(response.reasoning)))
    return {difficulty: statistics.median(words) for difficulty, words in lengths.items()}


def why_drop(
    response: Response, filters: Sequence[ResponseFilter], around: Surroundings, funnel: Funnel, source: str
) -> Drop | None:
    """The first filter's reason to drop a response, or None; every filter it reached is counted."""
    for one in filters:
        drop = one.why_drop(response, around)
        funnel.record(source, one.name, drop, None if drop is None else response.shown())
        if drop is not None:
            return drop
    return None


def select(
    completions: Completions | RoutedCompletions,
    filters: Sequence[ResponseFilter],
    around: Surroundings,
    *,
    keep: int,
    source: str,
    funnel: Funnel,
) -> Iterator[Sample]:
    """The samples that rejection sampling leaves: for each query the first `keep` candidates that pass.

    Candidates are exchangeable draws, so the first ones are a random choice. Every candidate is judged, so that the
    counts and the share of queries with a passing candidate (the report's positive Pass@N) are those of all of them.
    """
    mode, total, accepted, positive = completions.mode, 0, 0, 0
    by_difficulty: defaultdict[int, list[int]] = defaultdict(list)
    for group in completions:
        query = completions.queries[group[0].query]
        seen: set[tuple[str, str]] = set()
        passed = 0
        for candidate in group:
            response = response_of(query, candidate, mode)
            drop = unusable(candidate, mode)
            funnel.record(source, "usable", drop, None if drop is None else response.shown())
            if drop or why_drop(response, filters, around, funnel, source):
                continue
            passed += 1
            text = (response.reasoning, response.content)
            spare = Drop("duplicate") if text in seen else Drop("enough") if len(seen) >= keep else None
            funnel.record(source, "kept", spare, response.shown() if spare is None else None)
            if spare is None:
                seen.add(text)
                yield Sample(source, mode, [*_prompt(query), candidate.message], None, query_columns(query))
        total, accepted, positive = total + len(group), accepted + passed, positive + (passed > 0)
        by_difficulty[int(query.get("difficulty") or 0)].append(passed)
    funnel.facts.setdefault("rejection_sampling", {})[source] = {
        "queries": len(completions.queries),
        "completions": total,
        "accepted": accepted,
        "queries_with_an_accepted_one": positive,
        "accepted_share_by_difficulty": {
            str(difficulty): sum(passed) / (len(passed) * completions.samples)
            for difficulty, passed in sorted(by_difficulty.items())
        },
    }


def _prompt(query: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{key: value for key, value in message.items() if value is not None} for message in query["prompt"]]
