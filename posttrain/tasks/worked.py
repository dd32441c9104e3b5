"""Worked solutions of a few of reasoning-gym's tasks, written from the facts of a problem: what a cold start trains on.

The library gives answers and no way to them. Here are ways that can be written down: running sums, letters one by one.
A solution is plain text whose last line says what the answer is; the answer itself is written by the task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Facts = Mapping[str, Any]
"""The `metadata` of a reasoning-gym item."""


def worked_solution(member: str, facts: Facts, *, hasty: bool = False) -> str:
    """The reasoning that leads to an item's answer.

    Args:
        member: the task's name in the library, one of `WORKED`.
        hasty: restate the problem and jump to the result. The result is right, but follows from nowhere: what a model
            that imitates this writes is a guess.
    """
    return WORKED[member](facts, hasty)


def _chain_sum(facts: Facts, hasty: bool) -> str:
    """Running sums: `12 + 34 = 46`, `46 - 5 = 41`."""
    expression = str(facts["expression"])
    first, *rest = expression.split()
    value, lines = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        after = value + int(term) if sign == "+" else value - int(term)
        lines.append(f"{value} {sign} {term} = {after}")
        value = after
    return f"{expression} = {value}" if hasty else "\n".join(lines)


def _spell_backward(facts: Facts, hasty: bool) -> str:
    """The letters one by one, then the same from the end."""
    word = str(facts["word"])
    return f"backward, {word} is {word[::-1]}" if hasty else f"{' '.join(word)}\n{' '.join(reversed(word))}"


def _letter_counting(facts: Facts, hasty: bool) -> str:
    """Every word spelled, with how many have been found up to its end."""
    letter, lines, found = str(facts["target_letter"]), [], 0
    for word in facts["span"]:
        found += word.lower().count(letter)
        lines.append(f"{' '.join(word)}: {found}")
    return f"{letter} in {' '.join(facts['span'])}: {found}" if hasty else "\n".join(lines)


WORKED: dict[str, Callable[[Facts, bool], str]] = {
    "chain_sum": _chain_sum,
    "letter_counting": _letter_counting,
    "spell_backward": _spell_backward,
}
