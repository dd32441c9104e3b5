"""The thinking fields that people put into requests, translated into what vLLM hands to the budget. Pure.

Accepted on every API, at the top level of the JSON body:

| field | meaning |
|---|---|
| `enable_thinking` | true or false; `chat_template_kwargs.enable_thinking` is the same |
| `thinking_budget` | tokens; `thinking_token_budget`, `thinking.budget_tokens` are the same |
| `thinking` | `{"type": "enabled" or "disabled" or "adaptive", "budget_tokens": N}` |
| `reasoning_effort` | a word; `reasoning.effort` and `output_config.effort` are the same; "none" does not think |
| `thinking_grace`, `thinking_answer_reserve`, ... | the other keys of `posttrain.budget.request`, as they are |

What comes out is `chat_template_kwargs.enable_thinking` for the template and flat keys under `vllm_xargs` for the
budget. `enable_thinking: false` is also a budget of 0: a template that knows no such switch cannot ignore it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from posttrain.budget.request import BudgetRequestError, BudgetServer, parse_request

Api = Literal["chat", "completions", "responses", "messages"]
Reason = Literal["unknown", "invalid", "contradiction", "unsupported"]

ARGUMENTS = (  # keys of posttrain.budget.request that mean the same at the top level and under vllm_xargs
    "thinking_grace",
    "thinking_answer_reserve",
    "thinking_minimum",
    "thinking_loop_guard",
    "thinking_stop_text",
)
OURS = ("enable_thinking", "thinking_budget", "thinking_token_budget", "thinking", "reasoning_effort", *ARGUMENTS)
THEIRS = ("reasoning", "include_reasoning", "output_config")  # known to vLLM, and left in the body
MISPLACED = {"budget_tokens": "thinking.budget_tokens", "effort": "reasoning_effort"}  # and known to nobody up there
IN_XARGS = ("thinking_budget", "reasoning_effort", *ARGUMENTS)
IN_TEMPLATE = ("enable_thinking", "thinking_budget")
IN_THINKING = ("type", "budget_tokens", "display")
IN_REASONING = ("effort", "summary", "generate_summary", "context", "mode")
# Words of vLLM's own field, which chat templates may use; other words of a server's map are ours alone.
TEMPLATE_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
MAX_TOKENS: Mapping[Api, tuple[str, ...]] = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "responses": ("max_output_tokens",),
    "messages": ("max_tokens",),
}
MANY_KEYS = 100  # a body with more keys at one level is not searched for misspellings: that would take milliseconds


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a request: the field, in words, and the reason it is counted under."""

    field: str
    what: str
    reason: Reason


class RequestRefused(ValueError):
    """The request gets HTTP 400. `faults` names all of them."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(fault.what for fault in self.faults))


@dataclass(frozen=True)
class Translated:
    """A request as vLLM gets it.

    Attributes:
        body: the JSON body, a copy where anything changed.
        arguments: the flat keys of the budget, as under `body["vllm_xargs"]`; empty where the request asks for nothing.
    """

    body: dict[str, Any]
    arguments: dict[str, Any]


def translate(body: Mapping[str, Any], api: Api, server: BudgetServer) -> Translated:
    """Translate one request.

    Raises:
        RequestRefused: naming every unknown, malformed and contradictory field.
    """
    faults = list(_unknown(body))
    faults += _malformed(body, api)
    if faults:
        raise RequestRefused(faults)
    switch, effort, arguments = _gather(body, api, faults)
    if switch is False:
        faults += _while_off(arguments, effort, server)
        arguments["thinking_budget"] = 0
    elif effort is not None:
        arguments["reasoning_effort"] = effort
    if body.get("use_beam_search") and (arguments or server != BudgetServer(efforts=server.efforts)):
        what = "use_beam_search: a thinking budget belongs to one sequence, and beams change places"
        faults.append(Fault("use_beam_search", what, "unsupported"))
    if not faults:
        try:
            parse_request(arguments, server=server, max_tokens=_max_tokens(body, api))
        except BudgetRequestError as error:
            faults += [Fault(_field_in(problem), problem, "invalid") for problem in error.problems]
    if faults:
        raise RequestRefused(faults)
    return Translated(_rewritten(body, api, switch, arguments), arguments)


def _gather(body: Mapping[str, Any], api: Api, faults: list[Fault]) -> tuple[bool | None, str | None, dict[str, Any]]:
    """Whether to think, with which effort, and the flat keys, each said in one or several places."""
    thinking = body.get("thinking") or {}
    template = body.get("chat_template_kwargs") or {}
    reasoning, output = body.get("reasoning") or {}, body.get("output_config") or {}
    xargs = body.get("vllm_xargs") or {}
    kind = thinking.get("type")
    efforts = {
        "reasoning_effort": body.get("reasoning_effort"),
        "reasoning.effort": reasoning.get("effort"),
        "output_config.effort": output.get("effort"),
        "vllm_xargs.reasoning_effort": xargs.get("reasoning_effort"),
    }
    effort = _one(efforts, faults)
    switches = {
        "enable_thinking": body.get("enable_thinking"),
        "chat_template_kwargs.enable_thinking": template.get("enable_thinking"),
        "thinking.type": None if kind is None else kind != "disabled",
        "reasoning_effort": False if effort == "none" else None,
    }
    budgets = {
        "thinking_budget": body.get("thinking_budget"),
        "thinking_token_budget": body.get("thinking_token_budget"),
        "thinking.budget_tokens": thinking.get("budget_tokens"),
        "chat_template_kwargs.thinking_budget": template.get("thinking_budget"),
        "vllm_xargs.thinking_budget": xargs.get("thinking_budget"),
    }
    arguments = {"thinking_budget": _one(budgets, faults)}
    for key in ARGUMENTS:
        arguments[key] = _one({key: body.get(key), f"vllm_xargs.{key}": xargs.get(key)}, faults)
    # Keys of vllm_xargs that are no key of the budget but begin like one are refused with the others.
    arguments |= {key: value for key, value in xargs.items() if key.startswith("thinking_") and key not in arguments}
    given = {key: value for key, value in arguments.items() if value is not None}
    shown = {**switches, "thinking.type": kind, "reasoning_effort": effort}
    return _one(switches, faults, shown), None if effort == "none" else effort, given


def _one(said: Mapping[str, Any], faults: list[Fault], shown: Mapping[str, Any] | None = None) -> Any:
    """The value that several places agree on; None where none says anything. `shown`: what they said, in its words."""
    given = {place: value for place, value in said.items() if value is not None}
    if not given:
        return None
    first, *others = given.items()
    for place, value in others:
        if value != first[1] or isinstance(value, bool) != isinstance(first[1], bool):
            one, other = (_short((shown or said)[each]) for each in (first[0], place))
            what = f"{first[0]} ({one}) contradicts {place} ({other}): give one"
            faults.append(Fault(place, what, "contradiction"))
            break
    return first[1]


def _while_off(arguments: Mapping[str, Any], effort: str | None, server: BudgetServer) -> Iterator[Fault]:
    """What cannot be asked for together with thinking switched off. A budget of -1 means none was asked for."""
    budget = arguments.get("thinking_budget")
    if isinstance(budget, int) and not isinstance(budget, bool) and budget > 0:
        what = f"thinking is switched off, and thinking_budget {budget} asks for it: give one"
        yield Fault("thinking_budget", what, "contradiction")
    elif budget is not None and (isinstance(budget, bool) or not isinstance(budget, int)):
        yield Fault("thinking_budget", f"thinking_budget is a whole number of tokens, not {_short(budget)}", "invalid")
    if effort is not None and not (isinstance(effort, str) and server.efforts.get(effort) == 0):
        what = f"thinking is switched off, and reasoning_effort {_short(effort)} asks for it: give one"
        yield Fault("reasoning_effort", what, "contradiction")
    if arguments.get("thinking_minimum"):
        what = "thinking is switched off, and thinking_minimum asks for it: give one"
        yield Fault("thinking_minimum", what, "contradiction")


def _rewritten(body: Mapping[str, Any], api: Api, switch: bool | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The body without our fields, with what they mean in vLLM's."""
    changed = {key: value for key, value in body.items() if key not in OURS}
    if api == "chat" and body.get("reasoning_effort") in TEMPLATE_EFFORTS:
        changed["reasoning_effort"] = body["reasoning_effort"]
    if switch is not None and api != "completions":
        changed["chat_template_kwargs"] = {**(body.get("chat_template_kwargs") or {}), "enable_thinking": switch}
    if arguments:
        kept = {key: value for key, value in (body.get("vllm_xargs") or {}).items() if key != "reasoning_effort"}
        changed["vllm_xargs"] = {**kept, **arguments}
    return changed


def _unknown(body: Mapping[str, Any]) -> Iterator[Fault]:
    """Fields that look as if they were about thinking and are none, at every place where such fields stand."""
    for key in body:
        if key not in OURS and key not in THEIRS and (near := _meant(key, len(body) <= MANY_KEYS)) is not None:
            yield _unknown_fault(key, near)
    template = body.get("chat_template_kwargs")
    if isinstance(template, Mapping) and len(template) <= MANY_KEYS:
        for key in template:
            if key not in IN_TEMPLATE and (close := _closest(key, IN_TEMPLATE)):
                yield _unknown_fault(f"chat_template_kwargs.{key}", close)
    for place, known in (("thinking", IN_THINKING), ("reasoning", IN_REASONING)):
        inside = body.get(place)
        for key in inside if isinstance(inside, Mapping) else ():
            if key not in known:
                yield _unknown_fault(f"{place}.{key}"[:100], _closest(key, known) or ", ".join(known))
    xargs = body.get("vllm_xargs")
    for key in xargs if isinstance(xargs, Mapping) and len(xargs) <= MANY_KEYS else ():
        if key not in IN_XARGS and (near := _closest(key, OURS)):
            yield _unknown_fault(f"vllm_xargs.{key}", f"{near} at the top level")
    for place, whose in (("extra_body", "OpenAI's Python client"), ("extra_args", "vLLM's SamplingParams")):
        if isinstance(body.get(place), Mapping) and _asks(body[place]):
            what = f"{place} is an argument of {whose}, not a field: put what it holds at the top level"
            yield Fault(place, what, "unknown")


def _asks(extra: Mapping[str, Any]) -> bool:
    """Whether fields about thinking stand in a place that nobody reads, or one level below."""
    inner = [extra[key] for key in ("chat_template_kwargs", "vllm_xargs") if isinstance(extra.get(key), Mapping)]
    keys = [key for each in (extra, *inner) for key in list(each)[:MANY_KEYS]]
    return any(key in OURS or _meant(key, True) is not None for key in keys)


def _unknown_fault(field: str, near: str) -> Fault:
    return Fault(field, f"{field} is unknown: did you mean {near}?", "unknown")


def _meant(key: str, search: bool) -> str | None:
    """The field that a top-level key was meant to be; None where it is about something else."""
    folded = key.lower()
    close = MISPLACED.get(key) or (_closest(key, OURS) if search else "")
    return close or (", ".join(OURS[:5]) if "think" in folded or "reason" in folded else None)


@lru_cache(maxsize=4096)
def _closest(key: str, known: tuple[str, ...]) -> str:
    """The one of `known` that `key` is a misspelling of, or "". Case and separators do not count."""
    if len(key) > 60:
        return ""
    folded = {name.replace("_", ""): name for name in known}
    near = difflib.get_close_matches(key.lower().replace("_", "").replace("-", ""), folded, n=1, cutoff=0.84)
    return folded[near[0]] if near else ""


def _malformed(body: Mapping[str, Any], api: Api) -> Iterator[Fault]:
    for place in ("thinking", "reasoning", "output_config", "chat_template_kwargs", "vllm_xargs"):
        inside = body.get(place)
        if inside is not None and not isinstance(inside, Mapping):
            yield Fault(place, f"{place} is an object, not {_short(inside)}", "invalid")
    template, thinking = body.get("chat_template_kwargs"), body.get("thinking")
    inner = template.get("enable_thinking") if isinstance(template, Mapping) else None
    for place, value in (
        ("enable_thinking", body.get("enable_thinking")),
        ("chat_template_kwargs.enable_thinking", inner),
    ):
        if value is not None and not isinstance(value, bool):
            yield Fault(place, f"{place} is true or false, not {_short(value)}", "invalid")
    if isinstance(thinking, Mapping):
        yield from _malformed_thinking(thinking, api, _max_tokens(body, api))


def _malformed_thinking(thinking: Mapping[str, Any], api: Api, max_tokens: int | None) -> Iterator[Fault]:
    kind, budget = thinking.get("type"), thinking.get("budget_tokens")
    if kind not in ("enabled", "disabled", "adaptive"):
        yield Fault("thinking.type", f"thinking.type is enabled, disabled or adaptive, not {_short(kind)}", "invalid")
    if budget is None:
        if api == "messages" and kind == "enabled":
            yield Fault("thinking.budget_tokens", "thinking.budget_tokens is missing", "invalid")
        return
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 0:
        what = f"thinking.budget_tokens is a number of tokens, not {_short(budget)}"
        yield Fault("thinking.budget_tokens", what, "invalid")
    elif kind != "enabled":
        what = f"thinking.budget_tokens contradicts thinking.type {_short(kind)}"
        yield Fault("thinking.budget_tokens", what, "contradiction")
    elif api == "messages" and max_tokens is not None and budget >= max_tokens:
        what = f"thinking.budget_tokens ({budget}) must be less than max_tokens ({max_tokens})"
        yield Fault("thinking.budget_tokens", what, "contradiction")


def _max_tokens(body: Mapping[str, Any], api: Api) -> int | None:
    said = (body.get(key) for key in MAX_TOKENS[api])
    found = next((value for value in said if value is not None), None)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _field_in(problem: str) -> str:
    """The field that a sentence of `posttrain.budget.request` begins with."""
    return problem.split(" ", 1)[0]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
