"""Rejection sampling: several answers a query from a model, the unfit dropped, a few of the rest kept.

Who answers is a parameter (`sampler.Sampler`): the stage's own model for fusion, a reasoning teacher for the cold
start, any teacher for distillation. Completions are written chunk by chunk, each from its own seed and complete or
absent, so a killed build goes on after the last whole chunk and ends with the same completions.
"""

from __future__ import annotations

import json
import statistics
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, model_validator

from posttrain.data.funnel import Drop, Funnel, json_line
from posttrain.model.artifacts import write_text
from posttrain.recipe.schema import SamplingSpec, Spec
from posttrain.sft.query_filters import Query, question_of
from posttrain.sft.repetition import units
from posttrain.sft.response_filters import Response, ResponseFilter, Surroundings
from posttrain.sft.sampler import Sampler
from posttrain.sft.samples import Sample, query_columns
from posttrain.tasks.task import derive_seed
from posttrain.templates.families import Mode

CHUNK = 512  # completions written at a time


class RejectionSampling(Spec):
    """`rejection_sampling:` of a sample source."""

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True, validate_by_name=True)

    queries: str | None = Field(default=None, description="a name under `data:`")
    queries_of: str | None = Field(default=None, description="an earlier stage: the queries it trained on")
    model: str = Field(
        default="start",
        alias="from",
        description="start, base, teacher, a stage, a model directory (./...) or a hub id",
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


@dataclass(frozen=True)
class Candidate:
    """One completion of one query, as it is kept on disk.

    Attributes:
        query: the query's place among those asked.
        message: the assistant's message, with `reasoning_content` where it thought.
        truncated: it ran into `max_new_tokens`.
        well_formed: its think block and tool calls are whole.
        tokens: length of the completion; thinking_tokens: of its thinking.
        closed_by: what ended the thinking ("natural", "budget", "eos"), or None.
    """

    query: int
    message: dict[str, Any]
    truncated: bool
    well_formed: bool
    tokens: int
    thinking_tokens: int
    closed_by: str | None

    @property
    def reasoning(self) -> str:
        return str(self.message.get("reasoning_content") or "").strip()

    @property
    def content(self) -> str:
        return str(self.message.get("content") or "").strip()


def fingerprint(*facts: Any) -> str:
    """A short mark of JSON-able facts: equal facts, equal mark."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=False, default=str)
    return f"{zlib.crc32(text.encode()):08x}-{len(text)}"


class Completions:
    """The completions of a list of queries, generated once and read as often as wanted.

    Args:
        queries: rows with `prompt` (messages).
        open_sampler: gives the sampler; called once, and only if something is missing on disk.
        directory: where the chunks lie.
        made_with: what the completions depend on beyond queries, counts, mode and seed: the model's identity, its
            sampling. Chunks made with anything else are generated anew.
    """

    def __init__(
        self,
        queries: Sequence[Query],
        open_sampler: Callable[[], Sampler],
        *,
        directory: Path,
        samples: int,
        mode: Mode,
        seed: int,
        made_with: Any,
        thinking_budget: int | None = None,
        chunk: int = CHUNK,
    ) -> None:
        self.queries, self.samples, self.mode = queries, samples, mode
        self._open, self._directory, self._seed = open_sampler, directory, seed
        self._budget, self._made_with = thinking_budget, made_with
        self._per_chunk = max(1, chunk // samples)  # queries

    def __len__(self) -> int:
        return len(self.queries) * self.samples

    def generate(self, advance: Callable[[int], None] = lambda done: None) -> None:
        """Generate what is missing. `advance` hears of every completion done, those found on disk included."""
        sampler: Sampler | None = None
        for number, first in enumerate(range(0, len(self.queries), self._per_chunk)):
            rows = [self.queries[i] for i in range(first, min(first + self._per_chunk, len(self.queries)))]
            path, mark = self._path(number), self._mark(number, rows)
            if _mark_of(path) == mark:
                advance(len(rows) * self.samples)
                continue
            if sampler is None:
                sampler = self._open()
            write_text(path, self._chunk(sampler, number, first, rows, mark, advance))

    def _chunk(
        self,
        sampler: Sampler,
        number: int,
        first: int,
        rows: Sequence[Query],
        mark: str,
        advance: Callable[[int], None],
    ) -> str:
        from posttrain.model.generation import Prompt

        prompts = [
            Prompt(list(row["prompt"]), mode=self.mode, thinking_budget=self._budget)
            for row in rows
            for _ in range(self.samples)
        ]
        seed = derive_seed(self._seed, number)
        lines = [json.dumps({"made_with": mark, "seed": seed, "completions": len(prompts)})]
        for place, completion in enumerate(sampler(prompts, seed=seed, progress=advance)):
            row = {
                "query": first + place // self.samples,
                "message": completion.message.to_message(),
                "truncated": completion.truncated,
                "well_formed": completion.message.well_formed,
                "tokens": len(completion.completion_ids),
                "thinking_tokens": completion.thinking_tokens,
                "closed_by": completion.closed_by,
            }
            lines.append(json_line(row))
        return "\n".join(lines) + "\n"

    def __iter__(self) -> Iterator[list[Candidate]]:
        """The candidates of every query, in order. `generate` comes first."""
        for number in range(-(-len(self.queries) // self._per_chunk)):
            group: list[Candidate] = []
            for line in self._path(number).read_text(encoding="utf-8").split("\n")[1:-1]:
                candidate = Candidate(**json.loads(line))
                if group and candidate.query != group[0].query:
                    yield group
                    group = []
                group.append(candidate)
            if group:
                yield group

    def _path(self, number: int) -> Path:
        return self._directory / f"chunk-{number:05d}.jsonl"

    def _mark(self, number: int, rows: Sequence[Query]) -> str:
        asked = [[row["id"], row["prompt"]] for row in rows]
        return fingerprint(self._made_with, self._seed, number, self.samples, self.mode, self._budget, asked)


def _mark_of(path: Path) -> str | None:
    """What a chunk was made with; None where it is not there, or not whole (the machine went down, not the process)."""
    if not path.exists():
        return None
    with path.open(encoding="utf-8") as file:
        try:
            head = json.loads(file.readline())
        except ValueError:
            return None
        written = sum(line.endswith("\n") for line in file)
    return str(head["made_with"]) if written == head.get("completions") else None


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
    completions: Completions,
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
