"""What a vLLM request asks of the budget, and what the server adds: the same in the frontend and in the worker.

The server's settings are the JSON object in the environment variable `POSTTRAIN_BUDGET` (`posttrain.budget.request`,
`BudgetServer`), because that is what vLLM's frontend, which refuses requests, and its worker both see.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

from posttrain.budget.request import BudgetRequest, BudgetRequestError, BudgetServer, parse_request
from posttrain.templates.families import FAMILIES

SETTINGS = "POSTTRAIN_BUDGET"

# The frontend does not know which model is served, and the markers are the same in all families that think.
_CLOSE = FAMILIES["qwen3"].think_close
_MARKERS = sorted(
    {
        marker
        for each in FAMILIES.values()
        for marker in (
            each.think_open, each.think_close, each.message_start, each.message_end, each.end_of_text,
            each.tool_call_open, each.tool_call_close,
        )
    }
)  # fmt: skip


def server_settings() -> BudgetServer:
    """The settings of this server. Raises BudgetRequestError where they make no sense."""
    return _read(os.environ.get(SETTINGS))


def request_of(sampling_params: Any) -> BudgetRequest:
    """What a request's `extra_args` ask for, checked already (`check_request`)."""
    return parse_request(sampling_params.extra_args or {}, server=server_settings())


def check_request(sampling_params: Any) -> None:
    """Raise BudgetRequestError, a ValueError, with everything that is wrong with a request's arguments."""
    problems: list[str] = []
    try:
        parse_request(sampling_params.extra_args or {}, server=server_settings(), max_tokens=sampling_params.max_tokens)
    except BudgetRequestError as error:
        problems += error.problems
    problems += _marker_problems("thinking_stop_text", (sampling_params.extra_args or {}).get("thinking_stop_text"))
    if getattr(sampling_params, "thinking_token_budget", None) is not None:
        problems.append(
            "thinking_token_budget is vLLM's own budget, and this server enforces another one: give thinking_budget "
            "in vllm_xargs, or in SamplingParams(extra_args=...)"
        )
    if problems:
        raise BudgetRequestError(problems)


def read_server(source: str | Mapping[str, object] | None) -> BudgetServer:
    """A server's settings, as `BudgetServer.read`, held to the same stop texts as its requests.

    Raises:
        BudgetRequestError: they make no sense.
    """
    server = BudgetServer.read(source)
    if problems := _marker_problems("stop_text", server.stop_text):
        raise BudgetRequestError(problems)
    return server


_read = functools.cache(read_server)


def _marker_problems(name: str, text: object) -> list[str]:
    """A marker in a stop text would end the turn, or open and close blocks of its own."""
    said = [marker for marker in _MARKERS if marker in text.replace(_CLOSE, "", 1)] if isinstance(text, str) else []
    return [f"{name} may contain {_CLOSE} once and no other marker, and contains {', '.join(said)}"] if said else []
