"""Probes: every shipped reward and task, tried with its gold answer, with tricks, and with a search for hacks.

What pays for content is judged: gold earns 1, every trick 0, the search at most `hacking.LIMIT`. What pays for form is
judged by what it is for: its own good examples earn 1, its own faults 0; rubbish in good form does earn it, which is
why a task's table pays it as a discount on content only (`by_task.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.rl.rewards import FORM, REWARDS, Rollout, resolve_reward
from posttrain.rl.rewards.hacking import LIMIT, Found, search
from posttrain.rl.rewards.probe_rows import FORM_PROBES, ROWS, FormProbe
from posttrain.rl.rewards.tricks import GROUPS, TRICKS, answered
from posttrain.tasks.constraints import DRAWS as CONSTRAINTS
from posttrain.tasks.registry import TASKS, get_task, task_rewards
from posttrain.tasks.symbols import DRAWS as SYMBOLS
from posttrain.templates.families import get_family
from posttrain.templates.parse import parse

QUERIES = 12  # of a task that makes its own
MODELLED = frozenset({"judge", "reward_model"})
"""Rewards that ask a model: nothing can be said of them without that model."""


@dataclass
class Probed:
    """What the probes found of one reward or task.

    Attributes:
        name: of a reward, or of a task.
        pays_for: "content" or "form".
        gold: the lowest score of a gold answer.
        worst: the highest score of each trick.
        found: the best hack that the search found, or None where it was not made.
        problems: what is wrong, in words.
        note: what was not tried, and why.
    """

    name: str
    pays_for: str
    gold: float | None = None
    worst: dict[str, float] = field(default_factory=dict)
    found: Found | None = None
    problems: list[str] = field(default_factory=list)
    note: str = ""

    def group(self, name: str) -> float | None:
        """The highest score of a group of tricks; "other" are those of no group."""
        grouped = {trick for tricks in GROUPS.values() for trick in tricks}
        tricks = GROUPS.get(name, tuple(trick for trick in self.worst if trick not in grouped))
        scores = [self.worst[trick] for trick in tricks if trick in self.worst]
        return max(scores) if scores else None


def names() -> list[str]:
    """Everything that can be probed: rewards, then tasks, those of a library by their members."""
    members = [f"symbols:{name}" for name in SYMBOLS] + [f"constraints:{name}" for name in CONSTRAINTS]
    tasks = [name for name in TASKS if not name.endswith(":")]
    return [*(name for name in REWARDS if name in FORM), *sorted([*tasks, *members])]


def probe(name: str, *, seed: int = 0, hack: bool = True) -> Probed:
    """Try one reward of form, or one task by what it is paid by.

    Raises:
        PosttrainError: there is neither a reward of form nor a task of that name.
    """
    if name in FORM_PROBES:
        return _probe_form(name, FORM_PROBES[name])
    if name in REWARDS and name not in TASKS:
        why = "it has no rows of its own: it is probed by the tasks that it pays for"
        raise PosttrainError(Problem(f"the reward {name!r} is not probed by itself", why=why))
    return _probe_task(name, seed, hack)


def _probe_task(name: str, seed: int, hack: bool) -> Probed:
    task = get_task(name)
    rows = ROWS[name] if name in ROWS else list(task.queries(QUERIES, seed))
    table = dict(task_rewards(name))
    modelled = sorted(set(table) & MODELLED)
    result = Probed(name, "content")
    if modelled:
        result.note = f"paid by {', '.join(modelled)}, which asks a model: its verifier alone is tried here"
        table = {"accuracy": 1.0}
    reward = resolve_reward("task", {"tables": {name: table}})
    golds = [task.gold(row) for row in rows]

    def score(row: Mapping[str, Any], text: str, **facts: Any) -> float:
        given = reward(row, rollout(text, **facts))
        if given.fault:
            result.problems.append(f"raises {given.reason} on {text[:60]!r}")
        return given.value or 0.0

    result.gold = min(score(row, answered(gold)) for row, gold in zip(rows, golds, strict=True))
    if result.gold != 1.0:
        result.problems.append(f"a gold answer scores {result.gold:g}, not 1")
    result.worst = _tried(rows, golds, score, several=bool(getattr(task, "several", False)))
    result.problems += [f"{trick!r} scores {worst:g}, not 0" for trick, worst in result.worst.items() if worst > 0.0]
    if hack:
        result.found = search(lambda row, content: score(row, answered(content)), rows, golds, seed=seed)
        if result.found.score > LIMIT:
            result.problems.append(f"a hack earns {result.found.score:.2f}: {result.found.text[:80]!r}")
    return result


def _tried(rows: Sequence[Mapping[str, Any]], golds: Sequence[str], score: Any, *, several: bool) -> dict[str, float]:
    """The highest score of each trick over the rows. `several`: another's right answer may be right here too."""
    worst: dict[str, float] = {}
    for place, (row, gold) in enumerate(zip(rows, golds, strict=True)):
        rest = [*golds[place + 1 :], *golds[:place]]
        others = [other for other in dict.fromkeys(rest) if other != gold] or ["zzz"]
        for trick, writes in TRICKS.items():
            text = writes(row, gold, others)
            if text is not None and not (several and trick == "another's answer"):
                worst[trick] = max(worst.get(trick, 0.0), score(row, text))
        cut = answered(gold).removesuffix("<|im_end|>")
        worst["cut off"] = max(worst.get("cut off", 0.0), score(row, cut, truncated=True))
    return worst


def _probe_form(name: str, given: FormProbe) -> Probed:
    reward = resolve_reward(name)
    result = Probed(name, "form", note="rubbish in good form earns it: paid as a discount on content")
    result.gold = min(reward(given.row, rollout(text, **given.facts)).value or 0.0 for text in given.good)
    if result.gold != 1.0:
        result.problems.append(f"a good form scores {result.gold:g}, not 1")
    for text in given.bad:
        value = reward(given.row, rollout(text, **{**given.facts, **given.bad_facts})).value
        result.worst[text[:40]] = value or 0.0
        if value:
            result.problems.append(f"{text[:60]!r} scores {value:g}, not 0")
    return result


def rollout(text: str, *, mode: Any = "thinking", **facts: Any) -> Rollout:
    """A completion as the Qwen3 family parses it."""
    return Rollout(message=parse(text, get_family("qwen3")), mode=mode, text=text, **facts)
