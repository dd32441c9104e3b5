"""Players that keep every hidden state that the replies still allow, and ask what splits these best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from typing import TypeVar

Candidate = TypeVar("Candidate")
Question = TypeVar("Question")

LOOKED_AT = 60  # candidates that a question is tried on, evenly spread: more would take long and choose no better


def pin_down(
    candidates: Sequence[Candidate],
    questions: Sequence[Question],
    reply: Callable[[Candidate, Question], Hashable],
    written: Callable[[Question], str],
    read: Callable[[str], Hashable],
    answer: Callable[[Candidate], Hashable],
) -> Generator[str, str, Candidate]:
    """Ask until every candidate that is left has the same answer; gives one of them.

    Args:
        candidates: the hidden states that are possible at first, the true one among them.
        questions: what may be asked.
        reply: what a game with that hidden state replies, as `read` reads it.
        written: a question as a move.
        read: what counts of a reply.
        answer: what has to be found of a hidden state.
    """
    left = list(candidates)
    while len({answer(candidate) for candidate in left}) > 1:
        question = most_telling(left, questions, reply)
        said = read((yield written(question)))
        left = [candidate for candidate in left if reply(candidate, question) == said]
    return left[0]


def most_telling(
    candidates: Sequence[Candidate], questions: Iterable[Question], reply: Callable[[Candidate, Question], Hashable]
) -> Question:
    """The question whose most frequent reply leaves fewest candidates; among equals the one with most replies."""
    tried = candidates[:: -(-len(candidates) // LOOKED_AT)]

    def left_over(question: Question) -> tuple[int, int]:
        replies = Counter(reply(candidate, question) for candidate in tried)
        return max(replies.values()), -len(replies)

    return min(questions, key=left_over)
