"""What a suite is: its items, and how an answer to them, or a dialogue about them, is marked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from posttrain.evaluation.suites.data import present
from posttrain.model.generation import Completion, Prompt
from posttrain.templates.families import Family, Mode
from posttrain.templates.render import Message

Ask = Callable[[Sequence[Prompt]], list[Completion]]
"""Completions of prompts, in order; whoever plays a suite has one."""


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        id: unique in its suite, and the same for ever: answers are kept under it.
        prompt: the conversation up to the first answer.
        group: what figures are broken down by, as a category or a language; "" for none.
        tools: JSON schemas of functions that may be called.
        facts: what marks an answer: a reference, tests, arguments. JSON.
    """

    id: str
    prompt: list[Message]
    group: str = ""
    tools: list[dict[str, Any]] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Marks:
    """How an item went.

    Attributes:
        scores: metrics in [0, 1]; a list where an item counts several times, as an instruction each. A metric that does
            not apply to the item is left out.
        reason: in one line.
    """

    scores: Mapping[str, float | Sequence[float]]
    reason: str = ""


@dataclass(frozen=True)
class Setting:
    """How a model is asked.

    Attributes:
        mode: asked of the template; None leaves it to flags in the conversation.
        budget: thinking tokens allowed; None: no limit.
        family: the model's dialect.
    """

    mode: Mode | None
    budget: int | None
    family: Family

    @property
    def name(self) -> str:
        limit = "" if self.budget is None else f"@{self.budget}"
        return f"{self.mode or 'flags'}{limit}"

    def prompt(self, messages: list[Message], tools: list[dict[str, Any]] | None = None) -> Prompt:
        return Prompt(messages=messages, mode=self.mode, thinking_budget=self.budget, tools=tools)


@dataclass(frozen=True)
class Played:
    """An item with what was said about it.

    Attributes:
        messages: the whole conversation, answers included.
        completions: the model's turns.
    """

    item: Item
    messages: list[Message]
    completions: list[Completion]
    marks: Marks


@runtime_checkable
class Suite(Protocol):
    """A suite. Most are `SingleTurn`; one whose items answer back plays its dialogues itself.

    Attributes:
        about: one line, with the source.
        headline: the metric that stands for the suite in a table.
    """

    @property
    def name(self) -> str: ...

    @property
    def about(self) -> str: ...

    @property
    def headline(self) -> str: ...

    def settings(self, family: Family, budgets: Sequence[int]) -> list[Setting]:
        """In which modes and under which budgets it is asked."""
        ...

    def items(self) -> list[Item]:
        """All items, the same every time.

        Raises:
            PosttrainError: the data are not there, or what marks answers is not.
        """
        ...

    def play(self, ask: Ask, items: Sequence[Item], setting: Setting) -> list[Played]:
        """Ask about some items, and mark them. In order. Whatever a model says is marked, and raises nothing."""
        ...


@runtime_checkable
class Tabulated(Protocol):
    """A suite with a table of its own, written beside the common one as NAME.md."""

    @property
    def name(self) -> str: ...

    def table(self, results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
        """Markdown of what several models, by name, were marked: the lines of their `answers.jsonl`."""
        ...


def every_mode(family: Family, budgets: Sequence[int]) -> list[Setting]:
    """Every mode of the family without a budget, and thinking under each budget."""
    thinking = [Setting("thinking", budget, family) for budget in budgets if "thinking" in family.modes]
    return [*(Setting(mode, None, family) for mode in family.modes), *thinking]


class SingleTurn:
    """A suite of questions with one answer each. What is cut off scores nothing, whatever was said by then.

    Attributes:
        reads: the data file that it needs, or "".
    """

    name: str
    about: str
    headline: str
    reads: str = ""

    def check(self) -> None:
        """See that everything is there that it needs, in a moment. Raises PosttrainError."""
        if self.reads:
            present(self.reads)

    def settings(self, family: Family, budgets: Sequence[int]) -> list[Setting]:
        return every_mode(family, budgets)

    def items(self) -> list[Item]:
        raise NotImplementedError

    def mark(self, item: Item, completion: Completion) -> Marks:
        """The marks of one answer that was not cut off. What stands in the thinking does not count."""
        raise NotImplementedError

    def mark_all(self, items: Sequence[Item], completions: Sequence[Completion]) -> list[Marks]:
        """The marks of several; for suites that mark them side by side."""
        return [self.mark(item, completion) for item, completion in zip(items, completions, strict=True)]

    def play(self, ask: Ask, items: Sequence[Item], setting: Setting) -> list[Played]:
        completions = ask([setting.prompt(item.prompt, item.tools) for item in items])
        marks = self.mark_all(items, completions)
        return [
            Played(
                item,
                [*item.prompt, completion.message.to_message()],
                [completion],
                cut_off(mark) if completion.truncated else mark,
            )
            for item, completion, mark in zip(items, completions, marks, strict=True)
        ]


def cut_off(marks: Marks) -> Marks:
    """The marks of an answer that has no end."""
    zeros = {
        name: 0.0 if isinstance(value, int | float) else [0.0] * len(value) for name, value in marks.scores.items()
    }
    return Marks(zeros, "cut off")
