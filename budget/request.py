"""What one request asks of its thinking budget, and what a server adds to it. Pure: no engine, no tokenizer.

The keys are flat, so that they pass through `SamplingParams(extra_args=...)`, `vllm_xargs` and a JSON body alike:

| key | value | off |
|---|---|---|
| `thinking_budget` | own thinking tokens allowed; 0 does not think | -1 |
| `thinking_grace` | soft landing: within the last so many tokens thinking closes at a sentence or line end | 0 |
| `thinking_answer_reserve` | tokens of `max_tokens` that thinking leaves for the answer | 0 |
| `thinking_minimum` | thinking tokens before which an end is replaced by a continuation ("Wait") | 0 |
| `thinking_loop_guard` | thinking closes when its last so many tokens are one block repeated | 0 |
| `thinking_stop_text` | what is said when thinking is stopped; "" says nothing | - |
| `reasoning_effort` | a word that the server maps to a budget | - |

A key that is absent or null takes the server's default. What the words mean exactly is the rule's matter
(`posttrain.budget.state`).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace

LOOP_REPEATS = 3  # times that a block stands in a row in a loop
LOOP_GUARD_LEAST = 16  # tokens; three equal digits in a row are no loop, so a user cannot ask for less
LARGEST = 2**63 - 1  # tokens; vLLM passes no larger whole number to its engine
STOP_TEXT_LONGEST = 2000  # characters of a request's own stop text

# No standard says how many tokens an effort is. A server that knows its model better says so in `efforts`.
EFFORTS: Mapping[str, int] = {"none": 0, "minimal": 512, "low": 1024, "medium": 8192, "high": 24576}

_FIELD_OF = {
    "thinking_budget": "thinking_budget",
    "thinking_grace": "grace",
    "thinking_answer_reserve": "answer_reserve",
    "thinking_minimum": "minimum",
    "thinking_loop_guard": "loop_guard",
    "thinking_stop_text": "stop_text",
}


class BudgetRequestError(ValueError):
    """A request, or a server's settings, that make no sense. `problems` names all of them, one sentence each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


@dataclass(frozen=True)
class BudgetRequest:
    """One request, complete: what no request said, the server did.

    Attributes:
        thinking_budget: own thinking tokens allowed; 0: no thinking; None (or -1, which becomes None): no limit.
        grace: tokens before a limit within which thinking closes at the first sentence or line end.
        answer_reserve: tokens of `max_tokens` kept for the answer.
        minimum: thinking tokens before which the model's own end is replaced by the rule's continuation text.
        loop_guard: thinking closes when its last `loop_guard` tokens are one block repeated; None (or 0): never.
        stop_text: replaces the stop text of the model's family; "": the close marker alone; None: the family's.
        notes: what the server changed in what was asked, in words for who asked.

    Raises:
        BudgetRequestError: a value has the wrong type or size, or the minimum lies above the budget.
    """

    thinking_budget: int | None = None
    grace: int = 0
    answer_reserve: int = 0
    minimum: int = 0
    loop_guard: int | None = None
    stop_text: str | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        given = {key: getattr(self, name) for key, name in _FIELD_OF.items()}
        amounts = ("thinking_grace", "thinking_answer_reserve", "thinking_minimum")
        problems = [f"{key} is a whole number of tokens, not null" for key in amounts if given[key] is None]
        problems += _value_problems(given)
        if not problems and self.thinking_budget not in (None, -1) and self.minimum > (self.thinking_budget or 0):
            problems.append(_minimum_problem(self.minimum, self.thinking_budget or 0))
        if problems:
            raise BudgetRequestError(problems)
        if self.thinking_budget == -1:
            object.__setattr__(self, "thinking_budget", None)
        if self.loop_guard == 0:
            object.__setattr__(self, "loop_guard", None)

    @property
    def limited(self) -> bool:
        """Whether anything can be forced. If not, thinking is only watched and counted."""
        return bool(
            self.thinking_budget is not None or self.answer_reserve or self.minimum or self.loop_guard is not None
        )


@dataclass(frozen=True)
class BudgetServer:
    """What a server gives requests that say nothing, and what none may exceed.

    Attributes:
        default: budget of a request without one; None: no limit (but for the ceiling).
        ceiling: no request thinks more. One that asks for more is lowered to it, and its `notes` say so; so is a
            minimum above it. None: no ceiling.
        efforts: budget in tokens of every word that `reasoning_effort` knows; -1: no limit.
        grace, answer_reserve, minimum, loop_guard, stop_text: defaults of requests, as in `BudgetRequest`. A minimum
            that lies above a request's own budget gives way to it.

    Raises:
        BudgetRequestError: a value has the wrong type or size, or the default lies above the ceiling.
    """

    default: int | None = None
    ceiling: int | None = None
    efforts: Mapping[str, int] = field(default_factory=lambda: dict(EFFORTS), hash=False)
    grace: int = 0
    answer_reserve: int = 0
    minimum: int = 0
    loop_guard: int | None = None
    stop_text: str | None = None

    def __post_init__(self) -> None:
        problems = list(_server_problems(self))
        if problems:
            raise BudgetRequestError(problems)

    @classmethod
    def read(cls, source: str | Mapping[str, object] | None) -> BudgetServer:
        """The settings in a JSON object, as text (of an environment variable, say) or already parsed; None: none.

        Raises:
            BudgetRequestError: the text is no JSON object, or names unknown settings, or a value makes no sense.
        """
        if source is None:
            return cls()
        if isinstance(source, str):
            try:
                source = json.loads(source)
            except ValueError as error:
                raise BudgetRequestError([f"the server's budget settings are not JSON: {error}"]) from None
        if not isinstance(source, Mapping):
            raise BudgetRequestError([f"the server's budget settings are a JSON object, not {_said(source)}"])
        known = [each.name for each in fields(cls)]
        problems = [
            f"the server's budget settings have no {key!r}{_nearest(key, known)}" for key in source if key not in known
        ]
        if problems:
            raise BudgetRequestError(problems)
        return cls(**source)  # type: ignore[arg-type]  # __post_init__ checks the types


def parse_request(args: Mapping[str, object], *, server: BudgetServer, max_tokens: int | None = None) -> BudgetRequest:
    """What a request's arguments ask for on this server.

    Args:
        args: flat keys (this module's table). Keys that are neither in it nor begin with `thinking_` are others'
            business, and left alone.
        server: its defaults, its ceiling, its efforts.
        max_tokens: tokens the whole completion may have, where they are known.

    Raises:
        BudgetRequestError: naming every wrong type (a bool is no integer, "12" neither), size, unknown key and
            contradiction: a minimum above the budget, a budget and an effort that differ, a reserve that leaves
            nothing of max_tokens.
    """
    given = {key: value for key, value in args.items() if value is not None}
    problems = [
        f"{key} is unknown{_nearest(key, _FIELD_OF)}"
        for key in given
        if key.startswith("thinking_") and key not in _FIELD_OF
    ]
    problems += _value_problems(given, least_loop=LOOP_GUARD_LEAST)
    problems += _effort_problems(given, server)
    if not problems:
        problems += _contradictions(given, server, max_tokens)
    if problems:
        raise BudgetRequestError(problems)
    effort = given.get("reasoning_effort")
    if isinstance(effort, str):
        given["thinking_budget"] = server.efforts[effort]
    own = {name: given[key] for key, name in _FIELD_OF.items() if key in given}
    defaults = BudgetRequest(None, server.grace, server.answer_reserve, 0, server.loop_guard, server.stop_text)
    return _under_ceiling(own, defaults, server)


def _under_ceiling(own: dict[str, object], defaults: BudgetRequest, server: BudgetServer) -> BudgetRequest:
    """The server's defaults replaced by what was asked, lowered to the ceiling; `notes` say what was lowered."""
    notes = []
    asked = own.pop("thinking_budget", None)
    budget = server.default if asked is None else asked
    budget = None if budget == -1 else budget
    ceiling = server.ceiling
    if ceiling is not None and (budget is None or (isinstance(budget, int) and budget > ceiling)):
        if asked is not None:
            wanted = "no limit" if budget is None else f"{budget} tokens"
            notes.append(f"thinking_budget was lowered from {wanted} to {ceiling} tokens, the server's ceiling")
        budget = ceiling
    minimum = own.pop("minimum", None)
    least = server.minimum if minimum is None else minimum
    if isinstance(budget, int) and isinstance(least, int) and least > budget:
        if minimum is not None:
            notes.append(f"thinking_minimum was lowered from {least} to {budget} tokens, the budget on this server")
        least = budget
    return replace(defaults, **own, thinking_budget=budget, minimum=least, notes=tuple(notes))  # type: ignore[arg-type]


def _contradictions(given: Mapping[str, object], server: BudgetServer, max_tokens: int | None) -> Iterator[str]:
    """Between values that are each in order."""
    budget, effort = given.get("thinking_budget"), given.get("reasoning_effort")
    if effort is not None:
        meant = server.efforts[str(effort)]
        if budget is not None and budget != meant:
            yield f"thinking_budget {budget} contradicts reasoning_effort {effort!r}, which is {meant} here: give one"
            return
        budget = meant
    minimum = given.get("thinking_minimum")
    if isinstance(budget, int) and isinstance(minimum, int) and 0 <= budget < minimum:
        yield _minimum_problem(minimum, budget)
    reserve = given.get("thinking_answer_reserve")
    if max_tokens is not None and isinstance(reserve, int) and reserve >= max_tokens:
        yield f"thinking_answer_reserve {reserve} leaves no token of max_tokens {max_tokens} to think"


def _effort_problems(given: Mapping[str, object], server: BudgetServer) -> Iterator[str]:
    effort = given.get("reasoning_effort")
    if effort is not None and (not isinstance(effort, str) or effort not in server.efforts):
        yield f"reasoning_effort is one of {', '.join(server.efforts)}, not {_said(effort)}"


def _value_problems(given: Mapping[str, object], *, least_loop: int = LOOP_REPEATS) -> Iterator[str]:
    """What is wrong with each value by itself. None is the default of a request in Python, and always in order."""
    yield from _integer_problems("thinking_budget", given.get("thinking_budget"), least=-1, off="-1 is no limit")
    for key in ("thinking_grace", "thinking_answer_reserve", "thinking_minimum"):
        yield from _integer_problems(key, given.get(key), least=0)
    loop = given.get("thinking_loop_guard")
    if loop != 0 or isinstance(loop, (bool, float)):
        yield from _integer_problems("thinking_loop_guard", loop, least=least_loop, off="0 is off")
    text = given.get("thinking_stop_text")
    if text is not None and not isinstance(text, str):
        yield f"thinking_stop_text is a text, not {_said(text)}"
    elif isinstance(text, str) and len(text) > STOP_TEXT_LONGEST:
        yield f"thinking_stop_text has {len(text)} characters, at most {STOP_TEXT_LONGEST} are allowed"


def _integer_problems(name: str, value: object, *, least: int, off: str = "") -> Iterator[str]:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        yield f"{name} is a whole number of tokens, not {_said(value)}"
    elif value < least:
        yield f"{name} is at least {least}{f' ({off})' if off else ''}, not {value}"
    elif value > LARGEST:
        yield f"{name} is at most {LARGEST}, not {_said(value)}{f' ({off})' if off else ''}"


def _server_problems(server: BudgetServer) -> Iterator[str]:
    yield from _integer_problems("default", server.default, least=-1, off="-1 is no limit")
    yield from _integer_problems("ceiling", server.ceiling, least=0)
    for name in ("grace", "answer_reserve", "minimum"):
        value = getattr(server, name)
        yield from [f"{name} is a whole number of tokens, not null"] if value is None else ()
        yield from _integer_problems(name, value, least=0)
    yield from _value_problems({"thinking_loop_guard": server.loop_guard, "thinking_stop_text": server.stop_text})
    if not isinstance(server.efforts, Mapping):
        yield f"efforts maps words to tokens, and is not {_said(server.efforts)}"
    else:
        for word, tokens in server.efforts.items():
            if tokens is None:
                yield f"the effort {word!r} is a whole number of tokens, not null"
            yield from _integer_problems(f"the effort {word!r}", tokens, least=-1, off="-1 is no limit")
    default, ceiling = server.default, server.ceiling
    if isinstance(default, int) and isinstance(ceiling, int) and default > ceiling:
        yield f"the default of {default} tokens lies above the ceiling of {ceiling}"


def _minimum_problem(minimum: int, budget: int) -> str:
    return f"thinking_minimum {minimum} lies above the thinking_budget of {budget}"


def _nearest(key: object, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(str(key), known, n=1)
    return f" (did you mean {near[0]}?)" if near else f" (known: {', '.join(known)})"


def _said(value: object) -> str:
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
