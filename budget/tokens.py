"""The ids of a budget's rule, from a model's own tokenizer and template family; none is written down anywhere."""

from __future__ import annotations

from typing import Any

from posttrain.budget.state import BudgetRule
from posttrain.errors import PosttrainError, Problem
from posttrain.templates.families import Family


def budget_rule(tokenizer: Any, family: Family, *, stop_text: str | None = None) -> BudgetRule:
    """The rule of a family in the ids of a tokenizer.

    Args:
        tokenizer: a transformers tokenizer.
        family: its markers, its end-of-turn tokens and its stop-thinking text are encoded.
        stop_text: what to force in place of the family's text; the close marker alone is the shortest.

    Raises:
        PosttrainError: the stop text does not contain the close marker, as text or in ids; or the tokenizer knows
            none of the family's end-of-turn tokens.
    """
    text = family.stop_thinking if stop_text is None else stop_text
    problems = []
    if family.think_close not in text:
        problems.append(
            Problem(
                what=f"the stop-thinking text {text!r} does not contain {family.think_close!r}",
                why="it has to close the thinking that a budget stops",
                remedy="write the close marker into it"
                if family.thinks
                else f"the family {family.name!r} does not think: give no budget",
            )
        )
    open_ids, close_ids, stop_ids = (_encode(tokenizer, part) for part in (family.think_open, family.think_close, text))
    eos_ids = end_of_turn_ids(tokenizer, family)
    if not eos_ids:
        problems.append(
            Problem(
                what=f"the tokenizer knows neither {family.message_end!r} nor {family.end_of_text!r}",
                why="nothing would end a turn",
                remedy="add the family's tokens to the tokenizer, or choose the family it was made for",
            )
        )
    if not problems:
        try:
            return BudgetRule(open_ids, close_ids, stop_ids, eos_ids)
        except ValueError as error:
            problems.append(
                Problem(
                    what=f"the tokenizer splits the think markers: {error}",
                    why="the ids of a marker differ from place to place, so no budget could be exact",
                    remedy=f"add {family.think_open!r} and {family.think_close!r} to the tokenizer as tokens",
                )
            )
    raise PosttrainError(problems)


def end_of_turn_ids(tokenizer: Any, family: Family) -> frozenset[int]:
    """The ids that end an assistant's turn: the family's message end and text end, and the tokenizer's own EOS."""
    vocabulary = tokenizer.get_vocab()
    ends = (family.message_end, family.end_of_text, tokenizer.eos_token)
    return frozenset(vocabulary[end] for end in ends if end in vocabulary)


def opens_thinking(prefilled: str, family: Family) -> bool:
    """Whether `prefilled`, what a generation prompt writes after the assistant's header, ends inside an open block."""
    return prefilled.rfind(family.think_open) > prefilled.rfind(family.think_close)


def _encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))
