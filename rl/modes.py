"""Which sample asks for which mode, how it asks, and under which thinking budget.

A sample's row carries four columns: `prompt` (with a flag where it is asked for by one), `mode`, `switch` and
`thinking_budget` (-1: none). Shares are kept exactly, not drawn: of 8 samples at 0.75, 6 think.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from posttrain.recipe.schema import Share, Spec
from posttrain.recipe.stage import Fault
from posttrain.templates.families import Family, Kind, Mode
from posttrain.templates.flags import with_flag

Switch = Literal["template", "flag", "default"]
"""How a mode is asked for: the template's own switch, a flag in the text, or not at all (the family's default)."""


LACKING: Mapping[str, set[Mode]] = {"thinking": {"non_thinking"}, "instruct": {"thinking"}}
"""Modes that a model of a kind does not have."""


class ThinkingBudgets(Spec):
    """A share of the thinking samples gets a thinking budget."""

    share: Share = Field(description="share of the thinking samples")
    choices: list[int] = Field(min_length=1, description="budgets in tokens, dealt out evenly; 0: no thinking at all")


class Asking(Spec):
    """Modes, flags and budgets of a stage's samples."""

    modes: Mapping[Mode, float]
    flags: bool = False
    unflagged: float = 0.5
    in_system: float = 0.0
    thinking_budgets: ThinkingBudgets | None = None


def deal(count: int, shares: Mapping[Any, float], order: random.Random) -> list[Any]:
    """`count` items in the given shares, as exactly as whole numbers go (largest remainders), in random order."""
    whole = sum(shares.values())
    exact = {item: count * share / whole for item, share in shares.items()}
    counts = {item: int(value) for item, value in exact.items()}
    by_remainder = sorted(shares, key=lambda item: counts[item] - exact[item])
    for item in by_remainder[: count - sum(counts.values())]:
        counts[item] += 1
    dealt = [item for item in shares for _ in range(counts[item])]
    order.shuffle(dealt)
    return dealt


def ask(rows: Sequence[Mapping[str, Any]], asking: Asking, family: Family, seed: int) -> Iterator[dict[str, Any]]:
    """Every row once, with the mode it asks for and its budget.

    With flags, a non-thinking sample always carries one; a share of the thinking samples carries none, as thinking is
    the default. Without flags, or in a family that has none, the template's switch asks.
    """
    order = random.Random(seed)
    modes = deal(len(rows), asking.modes, order)
    thinking = modes.count("thinking")
    budgets = iter(deal_budgets(thinking, asking.thinking_budgets, order))
    flagged = asking.flags and bool(family.flags)
    bare = iter(deal(thinking, {True: asking.unflagged, False: 1.0 - asking.unflagged}, order))
    in_system = deal(len(rows), {True: asking.in_system, False: 1.0 - asking.in_system}, order)
    for row, mode, system in zip(rows, modes, in_system, strict=True):
        prompt = [{key: value for key, value in message.items() if value is not None} for message in row["prompt"]]
        switch: Switch = "template"
        unflagged = mode == "thinking" and next(bare)
        if flagged:
            switch = "default" if unflagged else "flag"
            prompt = prompt if unflagged else with_flag(prompt, family, mode, in_system=system)
        budget = next(budgets) if mode == "thinking" else -1
        yield {**row, "prompt": prompt, "mode": mode, "switch": switch, "thinking_budget": budget}


def deal_budgets(count: int, spec: ThinkingBudgets | None, order: random.Random) -> list[int]:
    """Budgets of `count` thinking samples; -1: none."""
    if spec is None:
        return [-1] * count
    each = spec.share / len(spec.choices)
    shares = {-1: 1.0 - spec.share}
    for choice in spec.choices:
        shares[choice] = shares.get(choice, 0.0) + each
    return deal(count, shares, order)


def mode_faults(asking: Asking, family: Family, kind: Kind) -> Iterator[Fault]:
    """Modes, flags and budgets that a family, or the kind of the starting model, does not have."""
    modes = {mode for mode, share in asking.modes.items() if share > 0}
    if not modes:
        yield Fault(("modes",), "no mode has a positive share", remedy="as modes: {thinking: 0.75, non_thinking: 0.25}")
    for mode in sorted(modes - set(family.modes)):
        yield Fault(
            ("modes", mode),
            f"the template family {family.name!r} has no {mode} mode",
            remedy=f"it has {', '.join(family.modes)}",
        )
    for mode in sorted(modes & set(family.modes) & LACKING.get(kind, set())):
        yield Fault(
            ("modes", mode),
            f"the stage starts from a model of kind {kind!r}, which has no {mode} mode",
            why="a mode that a model does not have is taught by fusion first",
            remedy="start from a fused (hybrid) stage, or ask for its own mode alone",
        )
    if asking.flags and not family.flags:
        yield Fault(("flags",), f"the template family {family.name!r} has no mode flags", remedy="leave flags out")
    if asking.thinking_budgets is not None:
        yield from budget_faults(asking.thinking_budgets, modes)


def budget_faults(budgets: ThinkingBudgets, modes: Collection[Mode]) -> Iterator[Fault]:
    """Budgets that cannot be kept. `modes`: those of the samples."""
    if "thinking" not in modes:
        yield Fault(("thinking_budgets",), "no sample thinks, so none can have a thinking budget")
    if any(choice < 0 for choice in budgets.choices):
        yield Fault(("thinking_budgets", "choices"), "a thinking budget is 0 or more tokens")
