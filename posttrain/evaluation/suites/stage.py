"""Suites that a recipe names: their headline figures beside the reserved queries', for every stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.evaluation.scores import Score
from posttrain.evaluation.suites.data import offer_nltk
from posttrain.evaluation.suites.play import Generate, chosen, identity_of, play_suite
from posttrain.evaluation.suites.registry import get_suite
from posttrain.progress import progress
from posttrain.recipe.schema import EvaluationSpec
from posttrain.templates.families import Family


def suite_problems(spec: EvaluationSpec) -> list[Problem]:
    """What the recipe's suites lack here: names that are none, data, a sandbox. [] where they can be played.

    Where there are suites, the data that checkers read are offered to them (`data.offer_nltk`).
    """
    problems: list[Problem] = []
    if spec.suites:
        offer_nltk()
    for name in spec.suites:
        try:
            check: Callable[[], None] | None = getattr(get_suite(name), "check", None)
            if check:
                check()
        except PosttrainError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    return problems


def suite_scores(
    generate: Generate, spec: EvaluationSpec, model: Path, family: Family, directory: Path, *, label: str, quiet: bool
) -> dict[str, dict[str, Score]]:
    """The headline figures by mode and suite; those of a suite that is asked by flags stand under the default mode.

    Args:
        model: the directory of what `generate` completes with.
        directory: where answers and figures are kept, a directory a suite and setting; what is there is not asked
            again.
    """
    facts = {
        "model": identity_of(model),
        "max_new_tokens": spec.max_new_tokens,
        "sampling": {mode: given.model_dump() for mode, given in spec.sampling.items()},
    }
    scores: dict[str, dict[str, Score]] = {}
    for name in spec.suites:
        suite = get_suite(name)
        items, settings = chosen(suite, spec.suite_limit), suite.settings(family, [])
        with progress(f"{name} for {label}", len(items) * len(settings), quiet=quiet) as advance:
            for setting in settings:
                figures: dict[str, Any] = play_suite(
                    *(suite, items, setting, generate, directory / name / setting.name),
                    depends_on=facts,
                    seed=spec.seed,
                    chunk=spec.batch_size,
                    advance=advance,
                )
                headline = figures["metrics"].get(suite.headline)
                if headline is not None:
                    scores.setdefault(setting.mode or family.default_mode, {})[name] = headline
    return scores
