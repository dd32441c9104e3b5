"""The ids of a budget's rule, from a model's own tokenizer and template family; none is written down anywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from posttrain.budget.request import BudgetRequest
from posttrain.budget.rule import BudgetRule
from posttrain.errors import PosttrainError, Problem
from posttrain.templates.families import Family

CONTINUATION = "Wait"  # budget forcing's word (Muennighoff et al. 2025, arXiv 2501.19393, section 3)

# The end of a sentence, with the quotes, brackets and emphasis that close after it, or of a line.
_BOUNDARY = re.compile("(?:[.!?…。！？｡][\"'”’»)\\]*_`」』）]*|\n)[ \t]*\\Z")
_BARE = frozenset(".!")  # after what is unfinished they end no sentence: 3.14, 5!, n!, e.g.
# What is unfinished: a digit, a single letter, an abbreviation that is seldom the last word. Looked for in a
# vocabulary's own spelling. A letter that is a whole token counts for the end of another token's word.
_SHORT = r"(?:[^A-Za-z0-9][A-Za-z]|(?:\A|[^A-Za-z0-9])(?:vs|cf|Dr|Mr|Mrs|Ms|Prof|Figs?|Eqs?|approx|resp|viz))"
_UNFINISHED = re.compile(rf"(?:[0-9]|{_SHORT})\Z")
_ABBREVIATED = re.compile(rf"{_SHORT}\.\Z")


class Boundaries(NamedTuple):
    """Ids of a vocabulary by how their text ends, as `BudgetRule` names them."""

    boundary_ids: frozenset[int]
    period_ids: frozenset[int]
    unfinished_ids: frozenset[int]


_boundaries: WeakKeyDictionary[Any, tuple[int, Boundaries]] = WeakKeyDictionary()


def budget_rule(tokenizer: Any, family: Family, *, stop_text: str | None = None) -> BudgetRule:
    """The rule of a family in the ids of a tokenizer.

    The continuation and the markers of tool calls are left out where the tokenizer cannot write them.

    Args:
        tokenizer: a transformers tokenizer.
        family: its markers, its end-of-turn tokens and its stop-thinking text are encoded.
        stop_text: what to force in place of the family's text. "": the close marker alone. A text without the close
            marker gets it, and what follows it in the family's own text.

    Raises:
        PosttrainError: the family's text does not contain the close marker, as text or in ids; a stop text contains
            another marker or closes twice; or the tokenizer knows none of the family's end-of-turn tokens.
    """
    text = family.stop_thinking if stop_text is None else _completed(stop_text, family)
    problems = list(stop_text_problems(text, family))
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
        tools = [_written(tokenizer, part) for part in (family.tool_call_open, family.tool_call_close)]
        continuation = _written(tokenizer, CONTINUATION)
        try:
            return BudgetRule(
                open_ids,
                close_ids,
                stop_ids,
                eos_ids,
                continue_ids=() if continuation[:1] == close_ids[-1:] else continuation,
                tool_open_ids=tools[0] if all(tools) else (),
                tool_close_ids=tools[1] if all(tools) else (),
                **boundaries(tokenizer)._asdict(),
            )
        except ValueError as error:
            problems.append(
                Problem(
                    what=f"the tokenizer splits the think markers: {error}",
                    why="the ids of a marker differ from place to place, so no budget could be exact",
                    remedy=f"add {family.think_open!r} and {family.think_close!r} to the tokenizer as tokens",
                )
            )
    raise PosttrainError(problems)


def budget_rules(tokenizer: Any, family: Family, requests: Iterable[BudgetRequest]) -> list[BudgetRule]:
    """The rule of every request, with the stop text that it asks for.

    Raises:
        PosttrainError: as `budget_rule`.
    """
    asked = [request.stop_text for request in requests]
    rules = {text: budget_rule(tokenizer, family, stop_text=text) for text in dict.fromkeys(asked)}
    return [rules[text] for text in asked]


def end_of_turn_ids(tokenizer: Any, family: Family) -> frozenset[int]:
    """The ids that end an assistant's turn: the family's message end and text end, and the tokenizer's own EOS."""
    ends = [end for end in (family.message_end, family.end_of_text, tokenizer.eos_token) if end]
    ids = [tokenizer.convert_tokens_to_ids(end) for end in ends]
    return frozenset(
        token_id
        for end, token_id in zip(ends, ids, strict=True)
        if token_id is not None and tokenizer.convert_ids_to_tokens(token_id) == end  # an unknown one is "unk"
    )


def opens_thinking(prefilled: str, family: Family) -> bool:
    """Whether `prefilled`, what a generation prompt writes after the assistant's header, ends inside an open block."""
    return prefilled.rfind(family.think_open) > prefilled.rfind(family.think_close)


def boundaries(tokenizer: Any) -> Boundaries:
    """Which ids end a sentence or a line, made once for each tokenizer.

    Every candidate is decoded by the tokenizer itself. A token that ends inside a character decodes to U+FFFD at its
    end, and is none.
    """
    known = _boundaries.get(tokenizer)
    if known is not None and known[0] == len(tokenizer):
        return known[1]
    vocabulary = tokenizer.get_vocab()
    candidates = _candidates()
    ids = [token_id for token, token_id in vocabulary.items() if candidates.search(token)]
    texts = [
        text
        for start in range(0, len(ids), 10_000)
        for text in tokenizer.batch_decode(
            [[token_id] for token_id in ids[start : start + 10_000]],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
    ]
    stripped = {token_id: text.strip(" \t") for token_id, text in zip(ids, texts, strict=True)}
    ends = {
        token_id: text
        for token_id, text in stripped.items()
        if _BOUNDARY.search(text) and not _ABBREVIATED.search(text)
    }
    found = Boundaries(
        boundary_ids=frozenset(ends),
        period_ids=frozenset(token_id for token_id, text in ends.items() if text in _BARE),
        unfinished_ids=frozenset(token_id for token, token_id in vocabulary.items() if _UNFINISHED.search(token)),
    )
    _boundaries[tokenizer] = len(tokenizer), found
    return found


def _candidates() -> re.Pattern[str]:
    """Finds what may end a sentence or line, as written in a vocabulary: plain, byte-level, or as a byte by itself."""
    from tokenizers.pre_tokenizers import ByteLevel

    level = ByteLevel(add_prefix_space=False, use_regex=False)
    plain = [".", "!", "?", "…", "。", "！", "？", "｡", "\n"]
    spelled = ["".join(piece for piece, _ in level.pre_tokenize_str(each)) for each in plain]
    single = ["<0x0A>"]  # sentencepiece's byte fallback
    return re.compile("|".join(map(re.escape, dict.fromkeys([*plain, *spelled, *single]))))


def _completed(text: str, family: Family) -> str:
    """A stop text as a request gives it, with the close marker."""
    if not text:
        return family.think_close
    if family.think_close in text:
        return text
    after = family.stop_thinking.partition(family.think_close)[2]
    return f"{text}{'' if text.endswith(chr(10)) else chr(10)}{family.think_close}{after}"


def stop_text_problems(text: str, family: Family) -> Iterator[Problem]:
    """What is wrong with a stop text that has to close thinking."""
    if family.think_close not in text:
        yield Problem(
            what=f"the stop-thinking text {text!r} does not contain {family.think_close!r}",
            why="it has to close the thinking that a budget stops",
            remedy="write the close marker into it"
            if family.thinks
            else f"the family {family.name!r} does not think: give no budget",
        )
    elif text.count(family.think_close) > 1:
        yield Problem(f"the stop-thinking text {text!r} closes thinking twice", remedy="write the close marker once")
    others = (
        family.think_open, family.message_start, family.message_end, family.end_of_text, family.tool_call_open,
        family.tool_call_close,
    )  # fmt: skip
    if said := [marker for marker in others if marker in text]:
        yield Problem(
            what=f"the stop-thinking text {text!r} contains {', '.join(said)}",
            why="it is said by the model in the middle of its turn",
            remedy="leave the markers out",
        )


def _written(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The ids of a text that the tokenizer can write; none where it cannot."""
    ids = _encode(tokenizer, text)
    decoded = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return ids if decoded == text else ()


def _encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))
