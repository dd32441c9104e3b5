r"""Chained arithmetic modulo 10: the demo's own task, small enough for a model of 100,000 parameters.

`7 a+5 b*3 c-4 =?` starts from 7; every step has a letter and applies one operation to the result before it, and only
the last digit is kept. The worked reasoning is `7 a+5=2 b*3=6 c-4=2`, the answer `\boxed{2}`. The letters carry no
meaning: they tell the model where in the problem it is. A last word in the prompt may ask for another format of the
answer: `twice` or `words`.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from posttrain.errors import PosttrainError, Problem
from posttrain.tasks.task import Query, derive_seed, make_query

LABELS = "abcdefgh"
MAX_STEPS = 8
MAX_OPERAND = 9
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_APPLY: dict[str, Callable[[int, int], int]] = {
    "+": lambda value, operand: (value + operand) % 10,
    "-": lambda value, operand: (value - operand) % 10,
    "*": lambda value, operand: (value * operand) % 10,
}
_WORD = "|".join(DIGIT_WORDS)


class Format(NamedTuple):
    """How an answer is to be written: the word in the prompt that asks for it, the text, and its shape."""

    suffix: str
    write: Callable[[int], str]
    shape: re.Pattern[str]


FORMATS: dict[str, Format] = {
    "plain": Format("", lambda digit: f"\\boxed{{{digit}}}", re.compile(r"\\boxed\{[0-9]\}")),
    "twice": Format(
        " twice",
        lambda digit: f"\\boxed{{{digit}}} \\boxed{{{digit}}}",
        re.compile(r"\\boxed\{([0-9])\} \\boxed\{\1\}"),
    ),
    "words": Format(
        " words", lambda digit: f"\\boxed{{{DIGIT_WORDS[digit]}}}", re.compile(rf"\\boxed\{{(?:{_WORD})\}}")
    ),
}


class Chain(NamedTuple):
    """One problem: the digit it starts from and its steps (operation, operand from 1 to 9)."""

    start: int
    steps: tuple[tuple[str, int], ...]

    @property
    def values(self) -> list[int]:
        """The digit after each step."""
        return list(
            itertools.accumulate(self.steps, lambda value, step: _APPLY[step[0]](value, step[1]), initial=self.start)
        )[1:]

    @property
    def canonical(self) -> str:
        """The problem without its letters: `7+5*3-4`."""
        return str(self.start) + "".join(f"{operation}{operand}" for operation, operand in self.steps)

    @property
    def labelled(self) -> list[str]:
        """The steps with their letters: `a+5`, `b*3`, ..."""
        steps = zip(LABELS, self.steps, strict=False)
        return [f"{letter}{operation}{operand}" for letter, (operation, operand) in steps]

    @property
    def question(self) -> str:
        return f"{self.start} {' '.join(self.labelled)} =?"

    def reasoning(self, *, hasty: bool = False) -> str:
        """The worked solution. A hasty one copies the steps, and the last result follows from nowhere."""
        last = len(self.steps) - 1
        steps = [step if hasty and i < last else f"{step}={self.values[i]}" for i, step in enumerate(self.labelled)]
        return f"{self.start} {' '.join(steps)}"


class Arithmetic:
    """The procedural task `arithmetic`. Its scores are exact: nothing is paid for a nearly right answer or shape.

    Options of `queries`:
        steps: `[lowest, highest]` number of steps, all as frequent, or a mapping of number to weight. Default [1, 8].
        formats: a mapping of `plain`, `twice`, `words` to weight. Default: plain only.
        operands: `[lowest, highest]` operand of a step, within 1 to 9. Default [1, 9].
        hasty: the share of worked solutions that copy the steps and jump to the last result. Default 0.

    The key of a query is its canonical form, whatever the format, so a validation set reserved by key shares no
    problem with the rest, not even of the 270 that have one step. `difficulty` is the number of steps.
    """

    name = "arithmetic"
    reads_answer = True

    def queries(
        self,
        size: int,
        seed: int,
        *,
        steps: Sequence[int] | Mapping[Any, float] = (1, MAX_STEPS),
        formats: Mapping[str, float] | None = None,
        operands: Sequence[int] = (1, MAX_OPERAND),
        hasty: float = 0.0,
        **unknown: Any,
    ) -> Iterator[Query]:
        step_weights, problems = _step_weights(steps)
        format_weights = dict(formats) if formats else {"plain": 1.0}
        problems += _format_problems(format_weights)
        if not _is_range(operands, MAX_OPERAND):
            problems.append(f"operands is [lowest, highest] within 1 to {MAX_OPERAND}, not {operands!r}")
        if not isinstance(hasty, int | float) or not 0 <= hasty <= 1:
            problems.append(f"hasty is a share from 0 to 1, not {hasty!r}")
        problems += [f"no option is called {name!r}; there are steps, formats, operands, hasty" for name in unknown]
        if problems:
            raise PosttrainError(Problem(problem, "arithmetic: options") for problem in problems)
        return _rows(size, seed, step_weights, format_weights, (operands[0], operands[1]), hasty)

    def score(self, content: str, query: Mapping[str, Any]) -> float:
        """1 if the content is the answer in the format asked for and nothing else (white space around it aside)."""
        return float((content or "").strip() == self.gold(query))

    def gold(self, query: Mapping[str, Any]) -> str:
        return FORMATS[_format_of(query)].write(int(query["answer"]))

    def problem(self, answer: str) -> str | None:
        """Why a row of a file with this answer cannot be scored, or None."""
        return None if re.fullmatch(r"[0-9]", answer) else f"the answer {answer[:80]!r} is not one digit"


def format_score(content: str, query: Mapping[str, Any]) -> float:
    """1 if the content has the shape that its query asks for, whichever digit it names. To report, not to train on."""
    return float(FORMATS[_format_of(query)].shape.fullmatch((content or "").strip()) is not None)


def corpus(size: int, seed: int) -> Iterator[str]:
    """`size` problems as lines of text to train a tokenizer on: all formats, with the flags of the hybrid families."""
    rng = random.Random(derive_seed("arithmetic corpus", seed))
    for _ in range(size):
        chain = _draw(rng, rng.randint(1, MAX_STEPS))
        form = FORMATS[rng.choice(list(FORMATS))]
        flag = rng.choice(("", " /think", " /no_think"))
        yield f"user\n{chain.question}{form.suffix}{flag}"
        yield f"assistant\n\n{chain.reasoning()}\n\n\n{form.write(chain.values[-1])}"


def _rows(
    size: int, seed: int, steps: dict[int, float], formats: dict[str, float], operands: tuple[int, int], hasty: float
) -> Iterator[Query]:
    rng = random.Random(derive_seed("arithmetic", seed))
    for i in range(size):
        length = rng.choices(list(steps), list(steps.values()))[0]
        chain = _draw(rng, length, *operands)
        form = rng.choices(list(formats), list(formats.values()))[0]
        digit = chain.values[-1]
        yield make_query(
            id=f"arithmetic-{seed}-{i}",
            prompt=chain.question + FORMATS[form].suffix,
            answer=str(digit),
            task="arithmetic",
            domain="arithmetic",
            difficulty=length,
            key=chain.canonical,
            reasoning=chain.reasoning(hasty=rng.random() < hasty),
            response=FORMATS[form].write(digit),
            entry=json.dumps({"format": form}),
        )


def _draw(rng: random.Random, length: int, lowest: int = 1, highest: int = MAX_OPERAND) -> Chain:
    steps = tuple((rng.choice("+-*"), rng.randint(lowest, highest)) for _ in range(length))
    return Chain(rng.randrange(10), steps)


def _format_of(query: Mapping[str, Any]) -> str:
    return str(json.loads(query["entry"])["format"]) if query["entry"] else "plain"


def _step_weights(steps: Sequence[int] | Mapping[Any, float]) -> tuple[dict[int, float], list[str]]:
    wrong = f"steps is [lowest, highest] or a mapping of steps to weight, within 1 to {MAX_STEPS}, not {steps!r}"
    try:
        if isinstance(steps, Mapping):
            weights = {int(length): float(weight) for length, weight in steps.items()}
        else:
            lowest, highest = steps
            weights = dict.fromkeys(range(int(lowest), int(highest) + 1), 1.0)
    except (TypeError, ValueError, OverflowError):
        return {}, [wrong]
    sound = weights and all(1 <= n <= MAX_STEPS for n in weights) and _are_weights(weights.values())
    return weights, [] if sound else [wrong]


def _is_range(value: Any, highest: int) -> bool:
    pair = isinstance(value, Sequence) and len(value) == 2 and all(type(end) is int for end in value)
    return pair and 1 <= value[0] <= value[1] <= highest


def _format_problems(formats: Mapping[str, float]) -> list[str]:
    problems = [
        f"no format is called {name!r}; there are {', '.join(FORMATS)}" for name in formats if name not in FORMATS
    ]
    if not _are_weights(formats.values()):
        problems.append(f"the weights of formats must be numbers from 0 up and not all 0, not {dict(formats)!r}")
    return problems


def _are_weights(values: Any) -> bool:
    weights = list(values)
    numbers = all(isinstance(w, int | float) and 0 <= w < float("inf") for w in weights)
    return numbers and sum(weights) > 0
