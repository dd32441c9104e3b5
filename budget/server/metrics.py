"""Counters of the thinking budget, beside vLLM's own on `/metrics`.

They live in prometheus_client's own registry, where vLLM's live. With several API servers vLLM switches
prometheus_client to files that all processes share, and its `/metrics` adds them up: these counters with the others.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from posttrain.budget.server.usage import Choice


class Metrics:
    """The counters of this process. Take them from `metrics()`: they can be registered only once."""

    def __init__(self) -> None:
        from prometheus_client import Counter

        self._limited = Counter("posttrain:thinking_budget_completions", "Completions with a limit on thinking.")
        self._tokens = Counter("posttrain:thinking_tokens", "Thinking tokens of the models' own.")
        self._forced = Counter("posttrain:thinking_forced_tokens", "Tokens forced by thinking budgets.")
        self._closed = Counter(
            "posttrain:thinking_closed", "Completions that thought, by how the thinking was closed.", ["reason"]
        )
        self._refused = Counter(
            "posttrain:thinking_requests_refused", "Requests refused for their thinking fields.", ["reason"]
        )
        self._unenforced = Counter(
            "posttrain:thinking_budget_unenforced", "Completions in which the engine did not obey the budget."
        )

    def completion(self, choice: Choice) -> None:
        """Count one completion, finished or given up."""
        if choice.request.limited:
            self._limited.inc()
        self._tokens.inc(choice.tokens)
        self._forced.inc(choice.forced_tokens)
        if choice.closed_by is not None:
            self._closed.labels(choice.closed_by).inc()
        if not choice.obeyed:
            self._unenforced.inc()

    def refusal(self, reasons: Iterable[str]) -> None:
        """Count one refused request, under each reason once."""
        for reason in set(reasons):
            self._refused.labels(reason).inc()


@functools.cache
def metrics() -> Metrics:
    """The counters, registered at the first call."""
    return Metrics()
