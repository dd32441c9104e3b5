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
from posttrain.rl.rewards.probes import MODELLED, Probed, names, probe
from posttrain.rl.rewards.scoring import read_rows, score_rows
from posttrain.rl.rewards.tricks import GROUPS
from posttrain.run.output import check_file_to_write
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


def probe_rewards(chosen: list[str], *, seed: int = 0, hack: bool = True) -> int:
    """Probe rewards of form and tasks, print what was found, and return how many have a fault."""
    columns = [*GROUPS, "other"]
    table = _table("probes: gold earns 1, all else 0", "name", "pays for", "gold", *columns, "best hack", "sound")
    faulty: list[Probed] = []
    for name in chosen or names():
        result = probe(name, seed=seed, hack=hack)
        groups = [_figure(result.group(column)) for column in columns]
        if result.pays_for == "form":
            groups = ["–"] * len(GROUPS) + [_figure(max(result.worst.values()))]
        found = f"{result.found.score:.2f}" if result.found else "–"
        table.add_row(name, result.pays_for, _figure(result.gold), *groups, found, "NO" if result.problems else "yes")
        faulty += [result] if result.problems else []
    _print(table)
    print(
        f"best hack: the mean over a task's queries; up to {LIMIT} is what guessing earns. Form: its own faults only."
    )
    for result in faulty:
        for problem in result.problems:
            print(f"{result.name}: {problem}")
    return len(faulty)


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
    import yaml

    try:
        given: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PosttrainError(Problem(f"--rewards is no YAML: {error}")) from error
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
    return "–" if value is None else f"{value:g}"


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
