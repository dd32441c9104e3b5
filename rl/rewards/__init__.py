"""Rewards: one shape for all of them, and the registry by name.

A reward is a function of the query's row and of one rollout, to a score in [0, 1], or None where it does not apply.
With a `Score` it says why, in a line that is kept for reading:

    def politeness(query: Mapping[str, Any], rollout: Rollout) -> Score | float | None: ...

A further reward is one such function and one line in `REWARDS`; a recipe may also name one of its own as
`package.module:function`. Options of a reward are its keyword-only parameters. What is better asked in batches is a
class: its keyword-only parameters are the options, `batch(queries, rollouts)` gives the scores.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from posttrain.errors import PosttrainError, Problem
from posttrain.tasks.environment import Outcome
from posttrain.templates.families import Mode
from posttrain.templates.parse import ParsedMessage

REWARDS: dict[str, str] = {
    "accuracy": "posttrain.rl.rewards.outcome:accuracy",
    "answer_format": "posttrain.rl.rewards.outcome:answer_format",
    "mode_following": "posttrain.rl.rewards.modes:mode_following",
    "format": "posttrain.rl.rewards.modes:think_format",
    "length": "posttrain.rl.rewards.length:soft_overlong",
    "length_control": "posttrain.rl.rewards.length:length_control",
    "language": "posttrain.rl.rewards.language:language",
    "repetition": "posttrain.rl.rewards.repetition:repetition",
    "verifier": "posttrain.rl.rewards.outcome:verifier",
    "instructions": "posttrain.rl.rewards.instructions:instructions",
    "judge": "posttrain.rl.rewards.judge:Judge",
    "reward_model": "posttrain.rl.rewards.reward_model:RewardModel",
    "task": "posttrain.rl.rewards.by_task:ByTask",
    "environment": "posttrain.rl.rewards.environment:environment",
}

FORM = frozenset({"mode_following", "format", "answer_format", "length", "length_control", "language", "repetition"})
"""Rewards that look at the form alone: rubbish in good form earns them. A task's table pays them for content only."""

GATES = ("mode_following", "format")
"""Rewards that, under `combine: product`, decide whether anything else counts."""


@dataclass(frozen=True)
class Rollout:
    """One completion with all that a reward may know of it.

    Attributes:
        message: the completion, parsed: reasoning, content, tool calls.
        mode: the mode asked for, or None where none was.
        text: the completion as sampled, without what was prefilled.
        prefilled: what the generation prompt had opened already, as "<think>\\n" or an empty block.
        truncated: it ran into the token limit without an end of sequence.
        closed_by: what closed the thinking: "natural", "budget", "eos", or None.
        thinking_budget: tokens allowed for thinking, or None.
        thinking_tokens: tokens of thinking, forced ones left out.
        tokens: completion tokens, forced ones left out.
        max_tokens: the limit on `tokens`.
        outcome: what an episode in an environment came to; None for an answer in one message. Of an episode, `message`
            is the last turn, or the first that was malformed or in another mode than asked.
    """

    message: ParsedMessage
    mode: Mode | None = None
    text: str = ""
    prefilled: str = ""
    truncated: bool = False
    closed_by: str | None = None
    thinking_budget: int | None = None
    thinking_tokens: int = 0
    tokens: int = 0
    max_tokens: int = 0
    outcome: Outcome | None = None


Fault = Literal["", "raised", "timeout"]


class RewardFault(ValueError):
    """A reward returned something that is no score."""


@dataclass(frozen=True)
class Score:
    """What a reward says of one rollout.

    Attributes:
        value: in [0, 1], or None: it does not apply.
        reason: one line for a reader.
        components: the scores that it is made of, by name.
        fault: what kept the reward from scoring: it raised, or ran into a time limit. Then `value` is None.
    """

    value: float | None
    reason: str = ""
    components: Mapping[str, Score] = field(default_factory=dict)
    fault: Fault = ""

    @classmethod
    def of(cls, given: Score | float | None) -> Score:
        """A reward's return value, checked.

        Raises:
            RewardFault: it is no number in [0, 1].
        """
        score = given if isinstance(given, Score) else cls(None if given is None else float(given))
        if score.value is not None and not (math.isfinite(score.value) and 0.0 <= score.value <= 1.0):
            raise RewardFault(f"{score.value!r} is no score in [0, 1]")
        return score

    @classmethod
    def fault_of(cls, error: BaseException) -> Score:
        """The score of a reward that raised: none, with what it raised as the reason."""
        late = isinstance(error, TimeoutError) or getattr(error, "kind", "") == "deadline"
        line = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return cls(None, line[:300], fault="timeout" if late else "raised")


RewardFunction = Callable[[Mapping[str, Any], Rollout], "Score | float | None"]


@dataclass(frozen=True)
class Reward:
    """A reward by its name, with its options bound: `function(query, rollout)`, or an object with a `batch` as well."""

    name: str
    function: Callable[..., Score | float | None]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, query: Mapping[str, Any], rollout: Rollout) -> Score:
        """The score of one rollout. Raises whatever the reward raises, and RewardFault for what is no score."""
        return Score.of(self.function(query, rollout, **self.options))

    def batch(self, queries: Sequence[Mapping[str, Any]], rollouts: Sequence[Rollout]) -> list[Score]:
        """The scores of several rollouts; a fault is a score that says so."""
        together: Callable[..., Sequence[Score]] | None = getattr(self.function, "batch", None)
        if together is None:
            return [self._guarded(query, rollout) for query, rollout in zip(queries, rollouts, strict=True)]
        try:
            scores = [Score.of(score) for score in together(queries, rollouts)]
        except Exception as error:
            return [Score.fault_of(error)] * len(rollouts)
        if len(scores) != len(rollouts):
            raise ValueError(f"reward {self.name} gave {len(scores)} scores for {len(rollouts)} rollouts")
        return scores

    def _guarded(self, query: Mapping[str, Any], rollout: Rollout) -> Score:
        try:
            return self(query, rollout)
        except Exception as error:
            return Score.fault_of(error)


def resolve_reward(name: str, options: Mapping[str, Any] | None = None) -> Reward:
    """The reward of that name, with its options bound.

    Args:
        name: a name in `REWARDS`, or `package.module:function`.
        options: the keyword-only parameters of the function, or of the class.

    Raises:
        PosttrainError: there is no such reward, it cannot be imported, it has no such option, or refuses its value.
    """
    found = definition_of(name)
    parameters = _parameters(name, found)
    if not isinstance(options, Mapping | None):
        raise PosttrainError(Problem(f"the options of reward {name!r} are a mapping, not {options!r:.60}"))
    given = dict(options or {})
    problems = [
        Problem(f"reward {name!r} has no option {key!r}", remedy=f"its options: {', '.join(parameters) or 'none'}")
        if key not in parameters
        else Problem(f"reward {name!r}: option {key} is {parameters[key].annotation}, not {value!r:.60}")
        for key, value in given.items()
        if key not in parameters or not _fits(value, parameters[key].annotation)
    ]
    if problems:
        raise PosttrainError(problems)
    if not inspect.isclass(found):
        return Reward(name, found, given)
    try:
        scorer: Any = found(**given)
    except (TypeError, ValueError, AttributeError) as error:
        what = f"reward {name!r} takes no such options: {error}"
        raise PosttrainError(Problem(what, remedy=f"its options: {', '.join(parameters) or 'none'}")) from error
    return Reward(name, scorer)


def _parameters(name: str, found: Any) -> dict[str, inspect.Parameter]:
    """The options of a reward: its keyword-only parameters.

    Raises:
        PosttrainError: it is no function of a query and a rollout, nor a class.
    """
    try:
        signature = inspect.signature(found)
        if not inspect.isclass(found):
            signature.bind_partial({}, None)
    except (TypeError, ValueError) as error:
        what = f"{name!r} is no reward: a function of query and rollout, or a class, is wanted ({error})"
        raise PosttrainError(Problem(what, remedy="check the path package.module:function")) from error
    return {p.name: p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}


def _fits(value: Any, annotation: Any) -> bool:
    """Whether an option's value is of the type that its parameter says; True where that is no plain one."""
    kinds = {"float": (int, float), "int": (int,), "str": (str,), "bool": (bool,)}.get(str(annotation))
    return kinds is None or (isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)))


def definition_of(name: str) -> Any:
    """The function or class behind a name, as it was written.

    Raises:
        PosttrainError: there is no such reward, or it cannot be imported.
    """
    path = REWARDS.get(name, name)
    module, _, attribute = path.partition(":")
    if not attribute:
        near = difflib.get_close_matches(name, REWARDS, n=1)
        raise PosttrainError(
            Problem(
                f"there is no reward {name!r}",
                remedy=(f"did you mean {near[0]!r}? " if near else "")
                + f"known: {', '.join(REWARDS)}, or package.module:function",
            )
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PosttrainError(
            Problem(f"the reward {name!r} cannot be imported: {error}", remedy="check the path package.module:function")
        ) from error
