"""`rewards`: what there is, whether it can be tricked, and what it says of rows of a file."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.data.funnel import json_line
from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import write_text
from posttrain.rl.rewards import FORM, REWARDS, Reward, definition_of, resolve_reward
from posttrain.rl.rewards.hacking import LIMIT
from posttrain.rl.rewards.probes import ANSWERS, MODELLED, Probed, names, paid_by, probe, probe_model
from posttrain.rl.rewards.scoring import read_rows, score_rows
from posttrain.rl.rewards.tricks import GROUPS
from posttrain.run.output import check_file_to_write
from posttrain.run.quiet import hush_libraries
from posttrain.tasks.registry import TASKS, get_task, task_rewards
from posttrain.templates.families import get_family


def list_rewards() -> None:
    """Print every reward with its options, and every task with what it is paid by."""
    rewards = _table("rewards", "name", "pays for", "options", "what")
    for name in REWARDS:
        found = definition_of(name)
        options = [p.name for p in inspect.signature(found).parameters.values() if p.kind is p.KEYWORD_ONLY]
        kind = "form" if name in FORM else "content, by a model" if name in MODELLED else "content"
        rewards.add_row(name, kind, ", ".join(options) or "–", _first_line(found))
    tasks = _table("tasks", "name", "paid by", "what")
    probed = [name for name in names() if name not in FORM]
    for name in [*probed, *(name for name in TASKS if name.endswith(":") and name == "reasoning_gym:")]:
        if name.endswith(":"):
            tasks.add_row(f"{name}NAME", "accuracy", "the tasks of the reasoning-gym library")
        else:
            paid = ", ".join(f"{reward}: {_weight(entry)}" for reward, entry in task_rewards(name).items())
            tasks.add_row(name, paid, _first_line(_what(name)))
    _print(rewards, tasks)


def probe_rewards(
    chosen: list[str],
    *,
    seed: int = 0,
    hack: bool = True,
    judge: str = "",
    reward_model: Path | None = None,
    answers: int | None = None,
) -> int:
    """Probe rewards of form and tasks, print what was found, and return how many have a fault.

    Args:
        chosen: names; none: all, or with a model those tasks that it pays for.
        judge: a judge's options, in YAML; the tasks are graded by it then.
        reward_model: a reward model's directory; likewise.
        answers: that the search has a model score, at most; None: `ANSWERS`.

    Raises:
        PosttrainError: a name, or an option of a model, will not do, or it scores nothing.
    """
    if answers is not None and answers < 1:
        raise PosttrainError(Problem(f"--answers is a whole number above 0, not {answers}"))
    models: dict[str, Mapping[str, Any]] = {"judge": _mapping(judge, "--judge")} if judge else {}
    models |= {"reward_model": {"model": str(reward_model)}} if reward_model else {}
    if reward_model:
        hush_libraries()
    results = [
        probe_model(name, by, options, seed=seed, hack=hack, answers=answers or ANSWERS)
        for by, options in models.items()
        for name in chosen or paid_by(by)
    ]
    results += [] if models else [probe(name, seed=seed, hack=hack) for name in chosen or names()]
    columns = [*GROUPS, "other"]
    title = "probes: gold earns most, all else little" if models else "probes: gold earns 1, all else 0"
    table = _table(title, "name", "pays for", "gold", *columns, "best hack", "sound")
    for result in results:
        groups = [_figure(result.group(column)) for column in columns]
        if result.pays_for == "form":
            groups = ["–"] * len(GROUPS) + [_figure(max(result.worst.values()))]
        found = f"{result.found.score:.2f}" if result.found else "–"
        kind = f"{result.pays_for}, by {result.by}" if result.by else result.pays_for
        table.add_row(result.name, kind, _figure(result.gold), *groups, found, "NO" if result.problems else "yes")
    _print(table)
    share = "of what gold earns, as much as guessing" if models else "is what guessing earns. Form: its own faults only"
    print(f"best hack: the mean over a task's queries; up to {LIMIT} {share}.")
    _print_findings(results)
    return sum(bool(result.problems) for result in results)


def _print_findings(results: list[Probed]) -> None:
    """What is wrong, and of a model always what earned most without being right."""
    for result in results:
        if result.by and (found := result.found) is not None:
            print(f"{result.name}, {result.by}: the best of {found.tried} answers that are none, {found.text!r}")
            print(
                f"  to {found.prompt!r}, earns {found.score:.2f} over the queries; gold earns {result.gold or 0.0:.2f}"
            )
        if result.by and result.note:
            print(f"{result.name}, {result.by}: {result.note}")
        for problem in result.problems:
            print(f"{result.name}: {problem}")


def _mapping(text: str, option: str) -> Mapping[str, Any]:
    given = _yaml(text, option)
    if not isinstance(given, Mapping):
        remedy = "as '{endpoint: http://127.0.0.1:8000/v1, model: NAME}'"
        raise PosttrainError(Problem(f"{option} is no mapping of options: {text!r}", remedy=remedy))
    return given


def _yaml(text: str, option: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PosttrainError(Problem(f"{option} is no YAML: {error}")) from error


def score_file(path: Path, *, rewards: str, family: str, output: Path | None) -> None:
    """Score the rows of a file, and write or print them with `score`, `components` and `reason`.

    Args:
        rewards: as a recipe's `rewards:`, in YAML: "by_task", or {accuracy: 1, format: 0.2}.

    Raises:
        PosttrainError: the file is not there, rewards are none, rows are bad (all named by line), or the output
            cannot be written.
    """
    if not path.is_file():
        raise PosttrainError(Problem(f"there is no file {path}"))
    if output is not None:
        check_file_to_write(output)
    weighed = _rewards_of(rewards)
    rows = read_rows(path, get_family(family))
    lines = [json_line(row) + "\n" for row in score_rows(rows, weighed)]
    if output is None:
        sys.stdout.writelines(lines)
    else:
        write_text(output, "".join(lines))
        print(f"{len(lines)} rows: {output}")


def _rewards_of(text: str) -> list[tuple[Reward, float]]:
    given = _yaml(text, "--rewards")
    given = {"task": 1.0} if given in ("by_task", "task") else {given: 1.0} if isinstance(given, str) else given
    if not isinstance(given, Mapping) or not given:
        remedy = "as by_task, accuracy, or '{accuracy: 1, length: {weight: 0.2, options: {buffer: 0.5}}}'"
        raise PosttrainError(Problem(f"--rewards is no mapping of reward to weight: {text!r}", remedy=remedy))
    weighed = []
    for name, entry in given.items():
        spec = entry if isinstance(entry, Mapping) else {"weight": entry}
        weight = spec.get("weight", 1.0)
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0.0 < weight < math.inf or set(spec) - {"weight", "options"}:
            what = f"--rewards: {name}: {entry!r} is no weight above 0"
            raise PosttrainError(Problem(what, remedy="a number, or {weight: ..., options: {...}}"))
        reward = resolve_reward(str(name), spec.get("options"))
        stages: list[str] = getattr(reward.function, "stages", list)()
        if stages:
            what = f"--rewards: {name}: the stage {stages[0]!r} is known within a run only"
            raise PosttrainError(Problem(what, remedy="name its model's directory, RUN/stages/STAGE/model"))
        weighed.append((reward, float(weight)))
    return weighed


def _what(name: str) -> Any:
    task = get_task(name)
    draw = getattr(task, "_draw", None)
    return draw or type(task)


def _weight(entry: Any) -> Any:
    return entry.get("weight", 1.0) if isinstance(entry, Mapping) else entry


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip(".")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _table(title: str, *columns: str) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(*tables: Any) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in tables:
        console.print(table)
