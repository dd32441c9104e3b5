"""Completions of a list of queries, kept while they come.

They are written chunk by chunk, each from its own seed and complete or absent, so a killed build goes on after the last
whole chunk and ends with the same completions. A served model answers many requests at once, in any order
(`sampler.StreamingSampler`): every answer is written down as it comes, beside its chunk, and chunks follow each other
without a pause, those of other lists too (`generate_together`). What was answered is never asked again.
"""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from posttrain.data.funnel import json_line
from posttrain.model.artifacts import write_text
from posttrain.model.generation import Completion, Prompt, seed_of
from posttrain.model.served import ServedGenerator, stream_together
from posttrain.recipe.endpoint import EndpointSpec
from posttrain.sft.query_filters import Query
from posttrain.sft.sampler import Sampler, StreamingSampler
from posttrain.tasks.task import derive_seed
from posttrain.templates.families import Mode

CHUNK = 512  # completions written at a time


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
        endpoint: the server that answers; None: a model here does.
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
        endpoint: EndpointSpec | None = None,
    ) -> None:
        self.queries, self.samples, self.mode, self.endpoint = queries, samples, mode, endpoint
        self._open, self._directory, self._seed = open_sampler, directory, seed
        self._budget, self._made_with = thinking_budget, made_with
        self._per_chunk = max(1, chunk // samples)  # queries

    def __len__(self) -> int:
        return len(self.queries) * self.samples

    @property
    def parts(self) -> list[Completions]:
        return [self]

    def generate(self, advance: Callable[[int], None] = lambda done: None) -> None:
        """Generate what is missing. `advance` hears of every completion done, those found on disk included."""
        missing = self._missing(advance)
        if not missing:
            return
        sampler = self._open()
        chunks = ((sampler, self._chunk(*place)) for place in missing)
        if isinstance(sampler, StreamingSampler):
            kept = _Kept(chunks, advance)
            for number, completion in sampler.stream((prompt, seed) for _, prompt, seed in kept.asking()):
                kept.take(number, completion)
        else:
            for _, chunk in chunks:
                done = sampler(chunk.prompts, seed=chunk.seed, progress=advance)
                chunk.write([chunk.row(place, completion) for place, completion in enumerate(done)])

    def _missing(self, advance: Callable[[int], None]) -> list[tuple[int, int]]:
        """Number and first query of every chunk that is not there."""
        missing = []
        for number, first in enumerate(range(0, len(self.queries), self._per_chunk)):
            chunk = self._chunk(number, first)
            if _mark_of(chunk.path) == chunk.mark:
                advance(len(chunk.prompts))
            else:
                missing.append((number, first))
        return missing

    def asked_of_a_server(self, advance: Callable[[int], None]) -> Iterator[tuple[ServedGenerator, Chunk]]:
        """What is missing, with the served model that is to answer it, which is looked for at once."""
        if not (missing := self._missing(advance)):
            return iter(())
        sampler = self._open()
        assert isinstance(sampler, ServedGenerator)
        return ((sampler, self._chunk(*place)) for place in missing)

    def _chunk(self, number: int, first: int) -> Chunk:
        rows = [self.queries[i] for i in range(first, min(first + self._per_chunk, len(self.queries)))]
        prompts = [
            Prompt(list(row["prompt"]), mode=self.mode, thinking_budget=self._budget)
            for row in rows
            for _ in range(self.samples)
        ]
        return Chunk(
            path=self._path(number),
            mark=self._mark(number, rows),
            seed=derive_seed(self._seed, number),
            first=first,
            samples=self.samples,
            prompts=prompts,
        )

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


@dataclass(frozen=True)
class Chunk:
    """Some queries' completions, written at once.

    Attributes:
        mark: what they are made with. seed: of all of them.
        first: place of the first query; samples: completions of each.
        prompts: one a completion.
    """

    path: Path
    mark: str
    seed: int
    first: int
    samples: int
    prompts: list[Prompt]

    @property
    def _head(self) -> str:
        return json.dumps({"made_with": self.mark, "seed": self.seed, "completions": len(self.prompts)})

    def row(self, place: int, completion: Completion) -> str:
        """A completion as the line that is kept of it."""
        row = {
            "query": self.first + place // self.samples,
            "message": completion.message.to_message(),
            "truncated": completion.truncated,
            "well_formed": completion.message.well_formed,
            "tokens": completion.tokens,
            "thinking_tokens": completion.thinking_tokens,
            "closed_by": completion.closed_by,
        }
        return json_line(row)

    def write(self, rows: Sequence[str]) -> None:
        write_text(self.path, "\n".join([self._head, *rows]) + "\n")
        self._journal.unlink(missing_ok=True)

    @property
    def _journal(self) -> Path:
        return self.path.with_suffix(".partial")

    def answered(self) -> dict[int, str]:
        """The lines by place that a broken-off run wrote down; one that it did not finish is left out."""
        if not self._journal.exists():
            return {}
        head, *lines = self._journal.read_text(encoding="utf-8").split("\n")[:-1] or [""]
        known = lines if head == self._head else []
        return {int(place): row for place, _, row in (line.partition("\t") for line in known)}

    def begin_journal(self, answered: Mapping[int, str]) -> None:
        write_text(self._journal, "\n".join([self._head, *(f"{at}\t{row}" for at, row in answered.items()), ""]))

    def note(self, place: int, row: str) -> None:
        with self._journal.open("a", encoding="utf-8") as file:
            file.write(f"{place}\t{row}\n")


def generate_together(lists: Iterable[Completions], advance: Callable[[int], None] = lambda done: None) -> None:
    """Generate what is missing of all of these, which servers answer (`Completions.endpoint`), all servers at once.

    What one server is asked shares its requests in flight, so that the end of a list leaves none of them unused.
    Thinking goes first: its answers are the longest, and short ones fill the end.
    """
    by_server: dict[EndpointSpec | None, list[Completions]] = {}
    for one in sorted(lists, key=lambda one: one.mode != "thinking"):
        by_server.setdefault(one.endpoint, []).append(one)
    kept = [
        _Kept(itertools.chain.from_iterable([one.asked_of_a_server(advance) for one in own]), advance)
        for own in by_server.values()
    ]
    asked = [((generator, prompt) for generator, prompt, _ in one.asking()) for one in kept]
    for server, number, completion in stream_together(asked):
        kept[server].take(number, completion)


S = TypeVar("S")


class _Kept(Generic[S]):
    """Chunks asked one after the other without a pause: every answer is written down, and every whole chunk."""

    def __init__(self, chunks: Iterator[tuple[S, Chunk]], advance: Callable[[int], None]) -> None:
        self._chunks, self._advance = chunks, advance
        self._waiting: dict[int, tuple[Chunk, dict[int, str], int]] = {}

    def asking(self) -> Iterator[tuple[S, Prompt, int]]:
        """What is missing: sampler, prompt and seed. A completion's number is its place here."""
        numbers = itertools.count()
        for sampler, chunk in self._chunks:
            rows = chunk.answered()
            self._advance(len(rows))
            chunk.begin_journal(rows)
            for place in [place for place in range(len(chunk.prompts)) if place not in rows]:
                self._waiting[next(numbers)] = chunk, rows, place
                yield sampler, chunk.prompts[place], seed_of(chunk.seed, place)
            _write_whole(chunk, rows)  # a run was broken off between the last answer and this

    def take(self, number: int, completion: Completion) -> None:
        """Keep the completion of that number."""
        chunk, rows, place = self._waiting.pop(number)
        rows[place] = chunk.row(place, completion)
        chunk.note(place, rows[place])
        self._advance(1)
        _write_whole(chunk, rows)


def _write_whole(chunk: Chunk, rows: Mapping[int, str]) -> None:
    if len(rows) == len(chunk.prompts):
        chunk.write([rows[place] for place in range(len(rows))])


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
