"""Worked solutions of a few of reasoning-gym's tasks, written from the facts of a problem: what a cold start trains on.

The library gives answers and no way to them. Here are ways that can be written down: one operation after another,
letters one by one. A solution is plain text that ends at the answer; the answer itself is written by the task.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

Item = Mapping[str, Any]
"""A reasoning-gym item: `question`, `answer`, `metadata`."""

_OPERATIONS: dict[type[ast.operator], tuple[str, Callable[[Fraction, Fraction], Fraction]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
}


def worked_solution(member: str, item: Item, *, hasty: bool = False) -> str:
    """The reasoning that leads to an item's answer.

    Args:
        member: the task's name in the library, one of `WORKED`.
        hasty: restate the problem and jump to the result. The result is right, but follows from nowhere: what a model
            that imitates this writes is a guess.

    Raises:
        ValueError: worked out, it is not the item's answer (basic_arithmetic without parentheses forgets precedence).
    """
    return WORKED[member](item, hasty)


def _expression(item: Item, hasty: bool) -> str:
    """One operation a line, in the order of evaluation: `3 * 4 = 12`, `20 - 12 = 8`."""
    expression, lines = str(item["metadata"]["expression"]), list[str]()
    value = _evaluate(ast.parse(expression, mode="eval").body, lines)
    if str(value) != item["answer"]:
        raise ValueError(f"{expression} is {value}, not {item['answer']}")
    return f"{expression} = {value}" if hasty or not lines else "\n".join(lines)


def _evaluate(node: ast.expr, lines: list[str]) -> Fraction:
    """The value of an expression of whole numbers; every operation adds its line."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _evaluate(node.operand, lines)
        if isinstance(node.op, ast.UAdd):
            return value
        if not isinstance(node.operand, ast.Constant):
            lines.append(f"-({value}) = {-value}")
        return -value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        sign, apply = _OPERATIONS[type(node.op)]
        left, right = _evaluate(node.left, lines), _evaluate(node.right, lines)
        value = apply(left, right)
        lines.append(f"{left} {sign} {right} = {value}")
        return value
    return Fraction(ast.literal_eval(node))


def _spell_backward(item: Item, hasty: bool) -> str:
    """The letters one by one, then the same from the end."""
    word = str(item["metadata"]["word"])
    return f"backward, {word} is {word[::-1]}" if hasty else f"{' '.join(word)}\n{' '.join(reversed(word))}"


def _letter_counting(item: Item, hasty: bool) -> str:
    """Every word spelled, with how many have been found up to its end."""
    letter, lines, found = str(item["metadata"]["target_letter"]), [], 0
    span = item["metadata"]["span"]
    for word in span:
        found += word.lower().count(letter)
        lines.append(f"{' '.join(word)}: {found}")
    return f"{letter} in {' '.join(span)}: {found}" if hasty else "\n".join(lines)


WORKED: dict[str, Callable[[Item, bool], str]] = {
    "basic_arithmetic": _expression,
    "chain_sum": _expression,
    "letter_counting": _letter_counting,
    "spell_backward": _spell_backward,
}
