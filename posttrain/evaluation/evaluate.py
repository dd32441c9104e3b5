"""A model scored on the reserved queries: every mode, ThinkFollow, and under thinking budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.data.funnel import json_line
from posttrain.data.prepare import reserved_rows
from posttrain.evaluation.play import Played, complete
from posttrain.evaluation.scores import Score, flat_score, length_score, pass_at_k, score
from posttrain.evaluation.think_follow import think_follow
from posttrain.model.artifacts import RunDir
from posttrain.model.generation import Completion, Generator, Prompt
from posttrain.model.policy import load_model, load_tokenizer, placed
from posttrain.model.vllm_generation import VllmEngine, generator_over
from posttrain.progress import progress
from posttrain.recipe.schema import EvaluationSpec, ModelSpec, Recipe
from posttrain.tasks.registry import get_task
from posttrain.tasks.task import verdict_of
from posttrain.templates.families import Family, Kind, Mode, Sampling
from posttrain.templates.flags import with_flag
from posttrain.templates.render import Message

SHOWN = 8  # samples kept to read, right and wrong each, a mode


@dataclass(frozen=True)
class Graded:
    """A query, its completions, and their scores in [0, 1]. A completion that was cut off scores 0."""

    query: Mapping[str, Any]
    completions: list[Completion]
    scores: list[float]


def evaluate_model(
    directory: Path,
    *,
    recipe: Recipe,
    spec: ModelSpec,
    run: RunDir,
    family: Family,
    kind: Kind,
    budgets: Sequence[int],
    label: str,
    suites_in: Path,
    quiet: bool = False,
) -> tuple[dict[str, Any], str]:
    """Score the model at a directory.

    Args:
        spec: the model at the root of the stage's chain: its type and attention.
        budgets: thinking budgets of the budget curve, in tokens; empty: no curve.
        label: what the progress bar calls it.
        suites_in: where the answers to the recipe's suites are kept.

    Returns:
        The figures (`scores`, `budget_curve`), and samples to read as JSON lines.
    """
    tokenizer = load_tokenizer(directory)
    if recipe.engine.sampler == "vllm":
        model: Any = VllmEngine(directory, dtype=spec.dtype)
    else:
        model = placed(load_model(directory, dtype=spec.dtype, attention=spec.attention), cpu=recipe.engine.cpu)
    generate = generator(model, tokenizer, family, recipe.evaluation)
    result, samples = score_policy(generate, recipe.evaluation, run, family, kind, budgets, label, quiet)
    if recipe.evaluation.suites:
        from posttrain.evaluation.suites.stage import suite_scores

        options: dict[str, Any] = {"label": label, "quiet": quiet}
        played = suite_scores(generate, recipe.evaluation, directory, family, suites_in, **options)
        for mode, figures_of_mode in played.items():
            result["scores"][mode]["by_suite"] = figures_of_mode
    return result, samples


def score_policy(
    generate: Generator,
    spec: EvaluationSpec,
    run: RunDir,
    family: Family,
    kind: Kind,
    budgets: Sequence[int],
    label: str,
    quiet: bool,
) -> tuple[dict[str, Any], str]:
    """The figures and samples of `evaluate_model`, of whatever completes prompts."""
    queries = {name: reserved_rows(run, name) for name in spec.data}
    count = sum(map(len, queries.values()))
    headline = queries[spec.data[0]]
    dialogues = spec.think_follow.dialogues if kind == "hybrid" else 0
    total = (
        count * spec.samples * len(family.modes) + len(headline) * len(budgets) + dialogues * spec.think_follow.turns
    )
    scores: dict[str, Any] = {}
    samples: list[dict[str, Any]] = []
    with progress(f"evaluating {label}", total, quiet=quiet) as advance:
        for mode in family.modes:
            graded = {
                name: grade(
                    generate,
                    rows,
                    mode,
                    kind=kind,
                    family=family,
                    samples=spec.samples,
                    seed=spec.seed,
                    advance=advance,
                )
                for name, rows in queries.items()
            }
            scores[mode] = figures(graded, spec.data[0], mode, spec.samples)
            samples += [row for rows in graded.values() for row in to_read(rows, mode)]
        if dialogues:
            scores["think_follow"] = think_follow(
                generate,
                headline,
                family,
                dialogues=dialogues,
                turns=spec.think_follow.turns,
                seed=spec.seed,
                advance=advance,
            )
        curve = [
            budget_point(generate, headline, budget, kind=kind, family=family, seed=spec.seed, advance=advance)
            for budget in budgets
        ]
    lines = "".join(json_line(row) + "\n" for row in samples)
    return {"scores": scores, "budget_curve": curve}, lines


def generator(model: Any, tokenizer: Any, family: Family, spec: EvaluationSpec) -> Generator:
    """Completions as the recipe's evaluation draws them: the family's sampling for each mode, or the recipe's own."""
    own = {mode: Sampling(**given.model_dump()) for mode, given in spec.sampling.items()}
    return generator_over(
        model,
        tokenizer,
        family,
        max_new_tokens=spec.max_new_tokens,
        batch_size=spec.batch_size,
        sampling={**family.sampling, **own},
    )


def asked(query: Mapping[str, Any], mode: Mode, kind: Kind, family: Family) -> list[Message]:
    """The query's messages in a mode: a hybrid model is told by the flag as well as by the template's switch."""
    messages: list[Message] = [{k: v for k, v in message.items() if v is not None} for message in query["prompt"]]
    return with_flag(messages, family, mode) if kind == "hybrid" and mode != family.default_mode else messages


def grade(
    generate: Generator,
    queries: Sequence[Mapping[str, Any]],
    mode: Mode,
    *,
    kind: Kind,
    family: Family,
    samples: int,
    seed: int,
    budget: int | None = None,
    advance: Any = None,
) -> list[Graded]:
    """Complete every query `samples` times in a mode and under a budget, and score each completion by its task."""
    prompts = [
        Prompt(messages=asked(query, mode, kind, family), mode=mode, thinking_budget=budget)
        for query in queries
        for _ in range(samples)
    ]
    rows = [{**query, "mode": mode} for query in queries for _ in range(samples)]
    completions = complete(generate, rows, prompts, seed=seed, progress=advance)
    graded = []
    for index, query in enumerate(queries):
        own = completions[index * samples : (index + 1) * samples]
        graded.append(Graded(query, own, [score_completion(query, completion) for completion in own]))
    return graded


def score_completion(query: Mapping[str, Any], completion: Completion) -> float:
    """The task's score of the answer: what stands in the thinking does not count, nor an answer cut off."""
    if completion.truncated:
        return 0.0
    if isinstance(completion, Played):
        return completion.outcome.score
    return float(verdict_of(get_task(query["task"]), completion.message, query).value)


def figures(graded: Mapping[str, Sequence[Graded]], headline: str, mode: Mode, samples: int) -> dict[str, Any]:
    """Every figure of one mode. `accuracy` and what is drawn from it are the headline data set's."""
    main = graded[headline]
    everything = [row for rows in graded.values() for row in rows]
    thinking = [[completion.thinking_tokens for completion in row.completions] for row in main]
    out: dict[str, Any] = {"accuracy": score([row.scores for row in main])}
    for k in sorted({2**i for i in range(1, 12) if 2**i <= samples} | {samples} - {1}):
        out[f"pass@{k}"] = flat_score([pass_at_k(sum(s >= 1.0 for s in row.scores), samples, k) for row in main])
    out["mode_followed"] = _share(everything, lambda completion: completion.message.mode == mode)
    out["well_formed"] = _share(everything, lambda completion: completion.message.well_formed)
    out["eos"] = _share(everything, lambda completion: not completion.truncated)
    out["truncated"] = _share(everything, lambda completion: completion.truncated)
    out["thinking_tokens"] = length_score(thinking)
    out["by_data"] = {name: score([row.scores for row in rows]) for name, rows in graded.items()}
    out |= episode_figures(everything)
    levels = sorted({row.query.get("difficulty") or 0 for row in main})
    out["by_difficulty"] = {
        str(level): score([row.scores for row in main if (row.query.get("difficulty") or 0) == level])
        for level in levels
    }
    return out


def episode_figures(rows: Sequence[Graded]) -> dict[str, Any]:
    """What rows that were played came to besides their scores; {} where none was."""
    outcomes = [[one.outcome for one in row.completions if isinstance(one, Played)] for row in rows]
    outcomes = [row for row in outcomes if row]
    won = [outcome.turns for row in outcomes for outcome in row if outcome.won]
    if not outcomes:
        return {}
    return {
        "invalid_moves": score([[outcome.invalid / max(1, outcome.turns) for outcome in row] for row in outcomes]),
        "turns_when_won": {"mean": sum(won) / max(1, len(won)), "n": len(won)},
    }


def _share(rows: Sequence[Graded], holds: Any) -> Score:
    return score([[float(holds(completion)) for completion in row.completions] for row in rows])


def budget_point(
    generate: Generator,
    queries: Sequence[Mapping[str, Any]],
    budget: int,
    *,
    kind: Kind,
    family: Family,
    seed: int,
    advance: Any,
) -> dict[str, Any]:
    """One point of the budget curve (Qwen3 report, Figure 2): accuracy with thinking stopped after `budget` tokens."""
    graded = grade(
        generate, queries, "thinking", kind=kind, family=family, samples=1, seed=seed, budget=budget, advance=advance
    )
    completions = [row.completions[0] for row in graded]
    accuracy = score([row.scores for row in graded])
    return {
        "thinking_budget": budget,
        "accuracy": accuracy["value"],
        "low": accuracy["low"],
        "high": accuracy["high"],
        "n": accuracy["n"],
        "thinking_tokens": sum(c.thinking_tokens for c in completions) / max(1, len(completions)),
        "closed_by_budget": sum(c.closed_by == "budget" for c in completions) / max(1, len(completions)),
    }


def to_read(rows: Sequence[Graded], mode: Mode) -> list[dict[str, Any]]:
    """Samples to read: the first right and the first wrong ones."""
    kept: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for row in rows:
        completion, value = row.completions[0], row.scores[0]
        if len(kept[value >= 1.0]) < SHOWN:
            kept[value >= 1.0].append(
                {
                    "mode": mode,
                    "prompt": row.query["prompt"][-1]["content"],
                    "answer": row.query["answer"],
                    "completion": completion.prefilled + completion.text,
                    "score": value,
                    "truncated": completion.truncated,
                    "thinking_tokens": completion.thinking_tokens,
                }
            )
    return kept[True] + kept[False]
