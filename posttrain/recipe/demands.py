"""What a stage may demand of its evaluation: `require: {think_follow: ">= 0.95", thinking.accuracy: "> 0.5"}`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from posttrain.recipe.schema import EvaluationSpec
from posttrain.recipe.stage import Fault
from posttrain.recipe.words import Loc, did_you_mean, either
from posttrain.templates.families import Family, Kind

DEMAND = re.compile(r"\s*(>=|<=|==|>|<)\s*(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)\s*")
SHARES = ("accuracy", "mode_followed", "well_formed", "eos", "truncated")
OPEN = ("by_data", "by_difficulty")  # a figure for each data set, each difficulty
LENGTHS = ("thinking_tokens", "thinking_tokens.mean", "thinking_tokens.p50", "thinking_tokens.p95")


def parse_demand(text: str) -> tuple[str, float]:
    """`">= 0.95"` as (">=", 0.95).

    Raises:
        ValueError: the text is no comparison with a number.
    """
    match = DEMAND.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no demand")
    return match[1], float(match[2])


def figure_names(evaluation: EvaluationSpec, family: Family, kind: Kind) -> list[str]:
    """The figures that the evaluation of a stage measures, whose model is of that kind."""
    samples = evaluation.samples
    passes = sorted({2**power for power in range(1, 12) if 2**power <= samples} | ({samples} - {1}))
    inside = [*SHARES, *(f"pass@{k}" for k in passes), *LENGTHS, *(f"by_data.{name}" for name in evaluation.data)]
    inside += [f"by_suite.{name}" for name in evaluation.suites]
    names = [f"{mode}.{figure}" for mode in family.modes for figure in inside]
    return ["think_follow", *names] if kind == "hybrid" and evaluation.think_follow.dialogues else names


def demand_faults(name: str, text: str, figures: list[str], loc: Loc) -> Iterator[Fault]:
    """What is wrong with one demand. `figures` are those that will be measured."""
    try:
        _, bound = parse_demand(text)
    except ValueError:
        yield Fault(loc, f"{text!r} is no demand", remedy='write a comparison and a number in quotes, as ">= 0.95"')
        return
    mode, _, figure = name.partition(".")
    measured = name in figures or (figure.partition(".")[0] == "by_difficulty" and f"{mode}.accuracy" in figures)
    if not measured:
        yield Fault(loc, f"no figure `{name}` is measured here", why=_why(name), remedy=_instead(name, figures))
    elif "thinking_tokens" not in name and not 0 <= bound <= 1:
        remedy = f"write {bound / 100:g}" if 1 < bound <= 100 else ""
        yield Fault(loc, f"`{name}` is a share between 0 and 1: {text!r} asks for something else", remedy=remedy)


def _why(name: str) -> str:
    if name == "think_follow":
        return "ThinkFollow is measured on hybrid models, with evaluation.think_follow.dialogues above 0"
    if name.rpartition(".")[2].startswith("pass@"):
        return "pass@k is measured at powers of 2 up to evaluation.samples, and at evaluation.samples itself"
    return ""


def _instead(name: str, figures: list[str]) -> str:
    if f"thinking.{name}" in figures or f"non_thinking.{name}" in figures:
        return f"say which mode: {either(f'`{figure}`' for figure in figures if figure.endswith('.' + name))}"
    return did_you_mean(name, figures)
