"""A served teacher's distribution: its k most probable entries before given tokens, asked of vLLM's completions.

vLLM tells log-probabilities of a prompt's own tokens (`prompt_logprobs`), so a sequence is sent as a prompt of token
ids and one token is generated, which nobody reads. That takes the same tokenizer on both sides: it is compared entry by
entry with the recipe's own copy, and the server's with that on texts.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from posttrain.distill.buckets import TopK
from posttrain.distill.cache_write import Asked, Span
from posttrain.distill.teacher import PROBES, check_tokenizers, loaded_tokenizer
from posttrain.errors import PosttrainError, Problem
from posttrain.model.endpoint import Endpoint, ask_together
from posttrain.model.http import Reply
from posttrain.recipe.endpoint import EndpointSpec

SAMPLED = 400
"""Entries whose texts are tried on the server's tokenizer, beside the probes."""
PATH = "completions"
LOWEST = -1e4
SURE = 1e-7
"""A mass of all other entries below this is the rounding of what the server tells, in single precision."""


class ServedTeacher:
    """A served model, asked for its `top_k` most probable entries.

    Args:
        entries: of the vocabulary that mean something. What a server says of the padding behind them is left out.
    """

    def __init__(self, spec: EndpointSpec, *, entries: int, top_k: int) -> None:
        self.endpoint = Endpoint(spec, who="the teacher")
        self._entries, self._top_k = entries, min(top_k, entries)
        self.tokens = 0
        """Tokens asked about, so far."""

    def check(self, tokenizer: Any) -> None:
        """See that the server is up, has the student's tokenizer, and tells as many log-probabilities as are wanted.

        Args:
            tokenizer: the student's.

        Raises:
            PosttrainError: it is not, has not, or does not.
        """
        self.endpoint.check()
        own = self.endpoint.spec.tokenizer
        if own is not None:
            check_tokenizers(tokenizer, loaded_tokenizer(own, f"the tokenizer {own}"), own)
        for text in [*PROBES, *_texts(tokenizer)]:
            ours = tokenizer(text, add_special_tokens=False).input_ids
            theirs = self.endpoint.tokenize(text)
            if ours != theirs:
                pairs = enumerate(itertools.zip_longest(ours, theirs))
                at, (one, other) = next((at, pair) for at, pair in pairs if pair[0] != pair[1])
                what = f"the tokenizer of {self._named} is not the student's: in {text[:40]!r}... id {at} is {other}, "
                why = "distillation compares their distributions entry by entry"
                remedy = "choose a teacher with the student's tokenizer"
                raise PosttrainError(Problem(f"{what}not {one}", why=why, remedy=remedy))
        self([[1, 2]], [[(1, 2)]])

    def __call__(self, sequences: Sequence[Sequence[int]], spans: Sequence[Sequence[Span]]) -> TopK:
        """The distributions (N) before the tokens of all spans, in order.

        Raises:
            PosttrainError: the server failed for good, or tells fewer log-probabilities than asked for.
        """
        (top,) = self.stream([(sequences, spans)])
        return top

    def stream(self, asked: Iterable[Asked]) -> Iterator[TopK]:
        """The distributions of one batch of sequences after the other (`__call__`).

        The server is asked about the next batches meanwhile, `concurrency` sequences at once, and what it tells is
        read as it comes: a sequence's entries are megabytes of JSON.
        """
        batches = _Batches(self, asked)
        for reply in self.endpoint.ask(PATH, batches.bodies()):
            yield from batches.take(reply)
        yield from batches.rest()

    def body(self, sequence: Sequence[int]) -> dict[str, Any]:
        """The request for what it says of a sequence."""
        return {"prompt": list(sequence), "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": self._top_k}

    def read(self, reply: Reply, sequence: Sequence[int], spans: Sequence[Span]) -> TopK:
        """What it said of the spans of a sequence.

        Raises:
            PosttrainError: it refused, or what it says is no distribution of these tokens.
        """
        self.tokens += len(sequence)
        places = [place for start, end in spans for place in range(start, end)]
        return self._read(self._told(reply, len(sequence)), sequence, places)

    def nothing(self) -> TopK:
        """What it says of no place at all."""
        return top_of([], entries=self._entries, k=self._top_k)

    def _told(self, reply: Reply, length: int) -> list[Any]:
        """What the server says of a sequence, position by position; None at the first."""
        if reply.refused:
            remedy = "start the server with a larger --max-model-len"
            if "logprobs" in reply.refused:
                remedy = f"start the server with --max-logprobs {self._top_k}, or lower `top_k`"
            raise PosttrainError(Problem(f"{self._named} refuses what it is asked: {reply.refused}", remedy=remedy))
        told = reply.body["choices"][0].get("prompt_logprobs")
        if not isinstance(told, list) or len(told) != length:
            what = f"{self._named} does not tell log-probabilities of given tokens"
            remedy = "serve it with vLLM (`prompt_logprobs` of /v1/completions), or learn from its answers alone"
            raise PosttrainError(Problem(what, remedy=remedy))
        return told

    def _read(self, told: Sequence[Any], sequence: Sequence[int], places: Sequence[int]) -> TopK:
        """What was told of these places of a sequence.

        Raises:
            PosttrainError: it cannot be of these tokens, or is no distribution.
        """
        remedy = "see that it is vLLM with the student's tokenizer, and look into its log"
        for place in places:
            here = told[place]
            if not isinstance(here, dict):
                raise PosttrainError(
                    Problem(f"{self._named} tells no log-probabilities at place {place}", remedy=remedy)
                )
            if str(sequence[place]) not in here:
                said = ", ".join(list(here)[:5])
                what = f"{self._named} was sent entry {sequence[place]} at place {place}, and tells of {said} there"
                raise PosttrainError(Problem(what, why="it reads other tokens than it is sent", remedy=remedy))
            if len(here) < self._top_k:
                what = f"{self._named} tells {len(here)} log-probabilities where {self._top_k} are asked for"
                fewer = f"start it with --max-logprobs {self._top_k}, or lower `top_k`"
                raise PosttrainError(Problem(what, remedy=fewer))
        try:
            return top_of([told[place] for place in places], entries=self._entries, k=self._top_k)
        except (TypeError, ValueError, KeyError) as error:
            what = f"{self._named} tells log-probabilities that are none: {error}"
            raise PosttrainError(Problem(what, remedy=remedy)) from error

    @property
    def _named(self) -> str:
        return f"the teacher at {self.endpoint.spec.endpoint}"


class _Batches:
    """Batches of sequences that a served teacher is asked about, put together from its replies in any order."""

    def __init__(self, teacher: ServedTeacher, asked: Iterable[Asked]) -> None:
        self._teacher, self._asked = teacher, asked
        self._parts: dict[int, list[TopK | None]] = {}  # of a batch
        self._missing: dict[int, int] = {}  # sequences of a batch
        self._places: dict[int, tuple[int, int, Sequence[int], Sequence[Span]]] = {}  # of a request
        self._following = 0  # the batch that is given next

    def bodies(self) -> Iterator[dict[str, Any]]:
        """The requests, read only as far as they are sent."""
        numbers = itertools.count()
        for batch, (sequences, spans) in enumerate(self._asked):
            wanted = [(sequence, own) for sequence, own in zip(sequences, spans, strict=True) if own]
            self._parts[batch], self._missing[batch] = [None] * len(wanted), len(wanted)
            for at, (sequence, own) in enumerate(wanted):
                self._places[next(numbers)] = batch, at, sequence, own
                yield self._teacher.body(sequence)

    def take(self, reply: Reply) -> Iterator[TopK]:
        """Take a reply; the batches that are whole with it, in order."""
        batch, at, sequence, own = self._places.pop(reply.place)
        self._parts[batch][at] = self._teacher.read(reply, sequence, own)
        self._missing[batch] -= 1
        while self._missing.get(self._following) == 0:
            yield self._whole(self._parts.pop(self._following))
            self._following += 1

    def rest(self) -> Iterator[TopK]:
        """The batches at the end that nothing was asked about."""
        for batch in sorted(self._parts):
            yield self._whole(self._parts[batch])

    def _whole(self, parts: Sequence[TopK | None]) -> TopK:
        return TopK.concatenate([part for part in parts if part is not None] or [self._teacher.nothing()])


def told_together(asked: Sequence[tuple[ServedTeacher, Asked]]) -> list[TopK]:
    """What several served teachers say, each of its own batch, asked at the same time.

    Raises:
        PosttrainError: as `ServedTeacher`.
    """
    batches = [_Batches(teacher, [own]) for teacher, own in asked]
    whole: list[list[TopK]] = [[] for _ in asked]
    servers = zip(asked, batches, strict=True)
    for place, reply in ask_together([(teacher.endpoint, PATH, own.bodies()) for (teacher, _), own in servers]):
        whole[place] += batches[place].take(reply)
    return [TopK.concatenate([*found, *own.rest()]) for found, own in zip(whole, batches, strict=True)]


def top_of(told: Sequence[Mapping[str, Mapping[str, Any]]], *, entries: int, k: int) -> TopK:
    """The distributions (N) that a server tells as {id: {"logprob": nats}}, at least k entries each, in any order.

    Args:
        entries: what stands at these ids and above is padding: its mass is left out of the tail.

    Raises:
        TypeError, ValueError, KeyError: an id is none, or a log-probability no number.
    """
    counts = np.fromiter(map(len, told), np.int64, len(told))
    shape = (len(told), max(k, *counts)) if told else (0, k)
    there_N_W = np.arange(shape[1]) < counts[:, None]
    ids_N_W, logs_N_W = np.full(shape, entries), np.full(shape, -np.inf)
    ids_N_W[there_N_W] = np.fromiter((int(token) for row in told for token in row), np.int64)
    logs_N_W[there_N_W] = np.fromiter((entry["logprob"] for row in told for entry in row.values()), np.float64)
    if np.isnan(logs_N_W).any() or (ids_N_W < 0).any():
        raise ValueError("NaN, or an id below 0")
    with np.errstate(over="ignore"):
        if (np.exp(logs_N_W).sum(1) > 1.05).any():
            raise ValueError("their masses add up to more than 1, as those of raw logits do")
    known_N_W = ids_N_W < entries
    padding = np.exp(np.where(known_N_W, -np.inf, logs_N_W)).sum(1)
    logs_N_W = np.where(known_N_W, logs_N_W.clip(min=LOWEST), -np.inf)
    best_N_K = np.argsort(-logs_N_W, axis=1, kind="stable")[:, :k]
    ids_N_K, logs_N_K = (np.take_along_axis(each, best_N_K, axis=1) for each in (ids_N_W, logs_N_W))
    # Where padding stood among the most probable ones: entries that are as good as impossible take its place.
    for row in np.flatnonzero((ids_N_K >= entries).any(1)):
        known = set(ids_N_W[row].tolist())
        spare = (token for token in range(entries) if token not in known)
        for at in np.flatnonzero(ids_N_K[row] >= entries):
            ids_N_K[row, at], logs_N_K[row, at] = next(spare), LOWEST
    rest = 1.0 - np.exp(logs_N_K).sum(1) - padding
    tail = np.where(rest > SURE, np.log(rest.clip(min=SURE)), -np.inf)
    return TopK(torch.from_numpy(ids_N_K), torch.from_numpy(logs_N_K).float(), torch.from_numpy(tail).float())


def _texts(tokenizer: Any) -> Iterator[str]:
    """Texts of entries drawn over the whole vocabulary, many in one: a server must know them by the same numbers."""
    rng = random.Random(0)
    entries = sorted(tokenizer.get_vocab().values())
    drawn = rng.sample(entries, min(SAMPLED, len(entries)))
    for first in range(0, len(drawn), 100):
        text = tokenizer.decode(drawn[first : first + 100], clean_up_tokenization_spaces=False)
        yield text.replace("\ufffd", "")  # entries that are pieces of a character


def spans_of(chosen: Sequence[bool], offset: int) -> list[Span]:
    """Runs of chosen tokens, as positions in a sequence in which the first of them stands at `offset`."""
    spans: list[Span] = []
    begin: int | None = None
    for at, one in enumerate([*chosen, False], start=offset):
        if one and begin is None:
            begin = at
        elif not one and begin is not None:
            spans.append((begin, at))
            begin = None
    return spans
