"""Probes: every shipped reward and task, tried with its gold answer, with tricks, and with a search for hacks.

What pays for content is judged: gold earns 1, every trick 0, the search at most `hacking.LIMIT`. What pays for form is
judged by what it is for: its own good examples earn 1, its own faults 0; rubbish in good form does earn it, which is
why a task's table pays it as a discount on content only (`by_task.py`).

A reward that asks a model is probed with that model (`probe_model`): tricks and search may earn `hacking.LIMIT` of what
gold answers earn, and what earned most is there to be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.rl.rewards import FORM, REWARDS, Rollout, Score, resolve_reward
from posttrain.rl.rewards.hacking import FRAGMENTS, LIMIT, TALK, Found, search
from posttrain.rl.rewards.probe_rows import FORM_PROBES, ROWS, FormProbe
from posttrain.rl.rewards.tricks import GROUPS, TRICKS, answered
from posttrain.tasks.constraints import DRAWS as CONSTRAINTS
from posttrain.tasks.registry import TASKS, get_task, task_rewards
from posttrain.tasks.symbols import DRAWS as SYMBOLS
from posttrain.tasks.task import normalise, plain_message, verdict_of
from posttrain.templates.families import get_family
from posttrain.templates.parse import parse

QUERIES = 12  # of a task that makes its own
MODELLED = frozenset({"judge", "reward_model"})
"""Rewards that ask a model: nothing can be said of them without that model."""
ANSWERS = 2000
"""Answers that a search may have a model score."""


@dataclass
class Probed:
    """What the probes found of one reward or task.

    Attributes:
        name: of a reward, or of a task.
        pays_for: "content" or "form".
        by: the reward that asks a model, where one pays.
        gold: the mean score of the gold answers.
        worst: the highest score of each trick.
        found: the best hack that the search found, or None where it was not made.
        problems: what is wrong, in words.
        note: what was not tried, and why.
    """

    name: str
    pays_for: str
    by: str = ""
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
    """Everything that can be probed without a model: rewards, then tasks, those of a library by their members."""
    members = [f"symbols:{name}" for name in SYMBOLS] + [f"constraints:{name}" for name in CONSTRAINTS]
    tasks = [name for name in TASKS if not name.endswith(":")]
    return [*(name for name in REWARDS if name in FORM), *sorted([*tasks, *members])]


def paid_by(reward: str) -> list[str]:
    """The tasks whose table names a reward."""
    return [name for name in names() if name not in FORM and reward in task_rewards(name)]


def probe(name: str, *, seed: int = 0, hack: bool = True) -> Probed:
    """Try one reward of form, or one task by what it is paid by.

    Raises:
        PosttrainError: there is neither a reward of form nor a task of that name.
    """
    if name in FORM_PROBES:
        return _probe_form(name, FORM_PROBES[name])
    if name in REWARDS and name not in TASKS:
        why = "it has no rows of its own: it is probed by the tasks that it pays for"
        remedy = "--judge or --reward-model says which model is asked" if name in MODELLED else ""
        raise PosttrainError(Problem(f"the reward {name!r} is not probed by itself", why=why, remedy=remedy))
    table = dict(task_rewards(name))
    result = Probed(name, "content")
    if modelled := sorted(set(table) & MODELLED):
        result.note = f"paid by {', '.join(modelled)}, which asks a model: its verifier alone is tried here"
        table = {"accuracy": 1.0}
    paid = _Paid(name, table, seed)
    _judge(result, paid, allowed=0.0)
    if hack:
        result.found = search(paid.contents, paid.rows, paid.is_gold, seed=seed)
        _judge_found(result)
    result.problems += paid.told_faults()
    return result


def probe_model(
    name: str, by: str, options: Mapping[str, Any], *, seed: int = 0, hack: bool = True, answers: int = ANSWERS
) -> Probed:
    """Try a judge or a reward model on the queries of a task: `by`, a name in `MODELLED`, with its options.

    What the task's own verifier takes for right is a solution and no hack.

    Raises:
        PosttrainError: there is no such task, the options will not do, or the model scores no gold answer at all.
    """
    result = Probed(name, "content", by)
    paid = _Paid(name, {by: {"weight": 1.0, "options": dict(options)}}, seed)
    _judge(result, paid, allowed=LIMIT)
    if hack:
        result.found = search(
            paid.contents,
            paid.rows,
            paid.is_right,
            fragments=(*TALK, *FRAGMENTS),
            golds=paid.golds,
            seed=seed,
            answers=answers,
        )
        _judge_found(result)
    faults, asked = len(paid.faults), paid.asked
    if faults > asked / 2:
        result.problems += paid.told_faults()
    elif faults:
        result.note = f"no score for {faults} of {asked} answers, as {paid.faults[0]}"
    return result


class _Paid:
    """A task's rows, and what its answers are paid. A score that fails is none: it is counted."""

    def __init__(self, name: str, table: Mapping[str, Any], seed: int) -> None:
        self.task = get_task(name)
        self.rows = ROWS[name] if name in ROWS else list(self.task.queries(QUERIES, seed))
        self.golds = [self.task.gold(row) for row in self.rows]
        self._normal = {id(row): normalise(gold) for row, gold in zip(self.rows, self.golds, strict=True)}
        self._reward = resolve_reward("task", {"tables": {name: table}})
        self.faults: list[str] = []
        self.asked = 0

    def scores(self, rows: Sequence[Mapping[str, Any]], rollouts: Sequence[Rollout]) -> list[float]:
        given: list[Score] = self._reward.batch(rows, rollouts)
        self.asked += len(given)
        for score, one in zip(given, rollouts, strict=True):
            if score.fault:
                self.faults.append(f"{score.reason} on {one.text[:60]!r}")
        return [score.value or 0.0 for score in given]

    def contents(self, rows: Sequence[Mapping[str, Any]], contents: Sequence[str]) -> list[float]:
        return self.scores(rows, [rollout(answered(content)) for content in contents])

    def is_gold(self, row: Mapping[str, Any], content: str) -> bool:
        return normalise(content) == self._normal[id(row)]

    def is_right(self, row: Mapping[str, Any], content: str) -> bool:
        message = rollout(answered(content)).message
        return self.is_gold(row, content) or verdict_of(self.task, plain_message(message.content), row).value >= 1.0

    def told_faults(self) -> list[str]:
        return [f"raises on {len(self.faults)} of {self.asked} answers: {self.faults[0]}"] if self.faults else []


def _judge(result: Probed, paid: _Paid, *, allowed: float) -> None:
    """Gold answers and tricks. `allowed`: what a trick may earn, as a share of what gold earns."""
    golds = paid.scores(paid.rows, [rollout(answered(gold)) for gold in paid.golds])
    if result.by and len(paid.faults) == len(golds):
        what = f"{result.by} scores no gold answer of {result.name}: {paid.faults[0]}"
        raise PosttrainError(Problem(what, remedy="check its options, and that it answers"))
    result.gold = sum(golds) / len(golds)
    if result.gold != 1.0 and not result.by:
        result.problems.append(f"a gold answer scores {min(golds):g}, not 1")
    elif result.gold < 0.5:
        result.problems.append(f"gold answers score {result.gold:.2f} on average")
    result.worst = _tried(paid, known=bool(result.by))
    for trick, worst in result.worst.items():
        if worst > allowed * result.gold:
            wanted = f"gold {result.gold:.2f}" if result.by else "not 0"
            result.problems.append(f"{trick!r} scores {worst:.3g}, {wanted}")


def _judge_found(result: Probed) -> None:
    found, gold = result.found, result.gold or 0.0
    if found is not None and found.score > LIMIT * gold:
        result.problems.append(f"a hack earns {found.score:.2f}, gold {gold:.2f}: {found.text[:200]!r}")


def _tried(paid: _Paid, *, known: bool) -> dict[str, float]:
    """The highest score of each trick over the rows. `known`: leave out what the task's verifier takes for right."""
    several = bool(getattr(paid.task, "several", False))  # another's right answer may be right here too
    tried: list[tuple[str, Mapping[str, Any], Rollout]] = []
    for place, (row, gold) in enumerate(zip(paid.rows, paid.golds, strict=True)):
        rest = [*paid.golds[place + 1 :], *paid.golds[:place]]
        others = [other for other in dict.fromkeys(rest) if other != gold] or ["zzz"]
        for trick, writes in TRICKS.items():
            text = writes(row, gold, others)
            if text is not None and not (several and trick == "another's answer"):
                tried.append((trick, row, rollout(text)))
        tried.append(("cut off", row, rollout(answered(gold).removesuffix("<|im_end|>"), truncated=True)))
    if known:
        tried = [one for one in tried if one[2].truncated or not paid.is_right(one[1], one[2].message.content)]
    worst: dict[str, float] = {}
    scores = paid.scores([row for _, row, _ in tried], [one for _, _, one in tried])
    for (trick, _, _), score in zip(tried, scores, strict=True):
        worst[trick] = max(worst.get(trick, 0.0), score)
    return worst


def _probe_form(name: str, given: FormProbe) -> Probed:
    reward = resolve_reward(name)
    result = Probed(name, "form", note="rubbish in good form earns it: paid as a discount on content")
    golds = [reward(given.row, rollout(text, **given.facts)).value or 0.0 for text in given.good]
    result.gold = sum(golds) / len(golds)
    if result.gold != 1.0:
        result.problems.append(f"a good form scores {min(golds):g}, not 1")
    for text in given.bad:
        value = reward(given.row, rollout(text, **{**given.facts, **given.bad_facts})).value
        result.worst[text[:40]] = value or 0.0
        if value:
            result.problems.append(f"{text[:60]!r} scores {value:g}, not 0")
    return result


def rollout(text: str, *, mode: Any = "thinking", **facts: Any) -> Rollout:
    """A completion as the Qwen3 family parses it."""
    return Rollout(message=parse(text, get_family("qwen3")), mode=mode, text=text, **facts)
