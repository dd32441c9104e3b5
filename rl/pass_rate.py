"""How often a model answers each query rightly, measured in chunks that a killed run does not measure again."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.model.artifacts import read_rows, write_text
from posttrain.progress import progress
from posttrain.sft.sampler import Sampler, identity, open_sampler
from posttrain.tasks.task import derive_seed
from posttrain.templates.families import Mode, Sampling

if TYPE_CHECKING:
    from posttrain.recipe.stage import StageContext
    from posttrain.rl.queries import PassRate

log = logging.getLogger("posttrain")

NAME = "pass_rates.jsonl"


def measure_pass_rates(
    spec: PassRate, context: StageContext, rows: Sequence[Mapping[str, Any]], mode: Mode, max_new_tokens: int
) -> list[float]:
    """Pass rates of the queries under the stage's starting model, in order.

    They are kept in `data/pass_rates.jsonl`, a line a query under a head line that says what was measured; a run that
    was killed goes on behind the last whole chunk, and measures what an uninterrupted one would have.
    """
    path = context.dir.data / NAME
    head = {
        "start": identity(context.start),
        "samples": spec.samples,
        "mode": mode,
        "max_new_tokens": max_new_tokens,
        "chunk": spec.chunk,
        "seed": context.seed,
    }
    rates = _kept(path, head, rows)
    whole = len(rates) // spec.chunk * spec.chunk if len(rates) < len(rows) else len(rates)
    rates = rates[:whole]
    if len(rates) == len(rows):
        return rates
    # As rollouts are drawn: the pass rate is that of the policy that RL starts with.
    sampling = dict.fromkeys(context.family.modes, Sampling(temperature=1.0))
    generate = open_sampler(
        context, "start", max_new_tokens=max_new_tokens, batch_size=spec.batch_size, sampling=sampling
    )
    write_text(path, "".join(json.dumps(line) + "\n" for line in [head, *_lines(rows, rates)]))
    with progress(f"pass rates {context.name}", len(rows), quiet=context.quiet, start=len(rates)) as advance:
        for begin in range(len(rates), len(rows), spec.chunk):
            chunk = rows[begin : begin + spec.chunk]
            seed = derive_seed(context.seed, "pass rates", begin)
            measured = _measure(generate, chunk, mode, spec.samples, max_new_tokens, seed)
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in _lines(chunk, measured))
            rates += measured
            advance(len(chunk))
    return rates


def _measure(
    generate: Sampler, rows: Sequence[Mapping[str, Any]], mode: Mode, samples: int, max_new_tokens: int, seed: int
) -> list[float]:
    from posttrain.evaluation.play import Limits, complete
    from posttrain.rl.rewards import resolve_reward
    from posttrain.rl.rollouts import prompt_of, rollout_of

    accuracy = resolve_reward("accuracy")
    asked = [{**row, "mode": mode, "switch": "template"} for row in rows for _ in range(samples)]
    limits = Limits(tokens=max_new_tokens)
    completions = complete(generate, asked, [prompt_of(row) for row in asked], seed=seed, limits=limits)
    passed = [
        (accuracy(row, rollout_of(completion, row, 0)).value or 0.0) >= 1.0
        for row, completion in zip(asked, completions, strict=True)
    ]
    return [sum(passed[i : i + samples]) / samples for i in range(0, len(passed), samples)]


def _kept(path: Path, head: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Rates measured before, of the rows that still stand in the same places; none if other things were measured."""
    if not path.exists():
        return []
    first, *lines = read_rows(path) or [{}]
    if first != head:
        log.info("pass rates were measured otherwise before (%s); measured anew", path)
        return []
    rates = []
    for line, row in zip(lines, rows, strict=False):
        if line["key"] != row["key"]:
            break
        rates.append(float(line["pass_rate"]))
    if rates:
        log.info("%d pass rates are there already", len(rates))
    return rates


def _lines(rows: Sequence[Mapping[str, Any]], rates: Sequence[float]) -> list[dict[str, Any]]:
    return [{"key": row["key"], "pass_rate": rate} for row, rate in zip(rows, rates, strict=False)]
