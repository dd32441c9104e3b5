"""A served teacher's distribution: its k most probable entries before given tokens, asked of vLLM's completions.

vLLM tells log-probabilities of a prompt's own tokens (`prompt_logprobs`), so a sequence is sent as a prompt of token
ids and one token is generated, which nobody reads. That takes the same tokenizer on both sides: it is compared entry by
entry with the recipe's own copy, and the server's with that on texts.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from posttrain.distill.buckets import TopK
from posttrain.distill.cache_write import Span
from posttrain.distill.teacher import PROBES, check_tokenizers
from posttrain.errors import PosttrainError, Problem
from posttrain.model.endpoint import Endpoint, Reply
from posttrain.recipe.endpoint import EndpointSpec

SAMPLED = 400
"""Entries whose texts are tried on the server's tokenizer, beside the probes."""
LOWEST = -1e4
SURE = 1e-7
"""A mass of all other entries below this is the rounding of what the server tells, in single precision."""


class ServedTeacher:
    """A served model, asked for its `top_k` most probable entries.

    Args:
        entries: of the vocabulary that mean something. What a server says of the padding behind them is left out.
    """

    def __init__(self, spec: EndpointSpec, *, entries: int, top_k: int) -> None:
        self._endpoint = Endpoint(spec, who="the teacher")
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
        self._endpoint.check()
        own = self._endpoint.spec.tokenizer
        if own is not None:
            from posttrain.model.policy import load_tokenizer

            check_tokenizers(tokenizer, load_tokenizer(own), own)
        for text in [*PROBES, *_texts(tokenizer)]:
            ours = tokenizer(text, add_special_tokens=False).input_ids
            theirs = self._endpoint.tokenize(text)
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
        wanted = [(sequence, own) for sequence, own in zip(sequences, spans, strict=True) if own]
        bodies = [
            {"prompt": list(sequence), "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": self._top_k}
            for sequence, _ in wanted
        ]
        ids, log_probs, tails = [], [], []
        for reply, (sequence, own) in zip(self._endpoint.ask_all("completions", bodies), wanted, strict=True):
            told = self._told(reply, len(sequence))
            self.tokens += len(sequence)
            for start, end in own:
                for position in range(start, end):
                    row = self._row(told[position])
                    ids.append(row[0])
                    log_probs.append(row[1])
                    tails.append(row[2])
        shape = (len(ids), self._top_k)
        return TopK(
            torch.tensor(ids, dtype=torch.long).reshape(shape),
            torch.tensor(log_probs, dtype=torch.float32).reshape(shape),
            torch.tensor(tails, dtype=torch.float32),
        )

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

    def _row(self, told: dict[str, dict[str, Any]]) -> tuple[list[int], list[float], float]:
        """One distribution: ids and logarithms of the most probable entries, and of the mass of all others."""
        known = {int(token): float(entry["logprob"]) for token, entry in told.items() if int(token) < self._entries}
        best = sorted(known, key=lambda token: -known[token])[: self._top_k]
        log_probs = [max(known[token], LOWEST) for token in best]
        # Where padding stood among the most probable ones: entries that are as good as impossible take its place.
        spare = (token for token in range(self._entries) if token not in known)
        while len(best) < self._top_k:
            best.append(next(spare))
            log_probs.append(LOWEST)
        padding = sum(math.exp(entry["logprob"]) for token, entry in told.items() if int(token) >= self._entries)
        rest = 1.0 - math.fsum(map(math.exp, log_probs)) - padding
        return best, log_probs, math.log(rest) if rest > SURE else -math.inf

    @property
    def _named(self) -> str:
        return f"the teacher at {self._endpoint.spec.endpoint}"


def _texts(tokenizer: Any) -> Iterator[str]:
    """Texts of entries drawn over the whole vocabulary, many in one: a server must know them by the same numbers."""
    rng = random.Random(0)
    drawn = rng.sample(range(len(tokenizer)), min(SAMPLED, len(tokenizer)))
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
