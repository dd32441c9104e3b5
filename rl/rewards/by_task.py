"""A sample names its task, and the task names its rewards and their weights: one score a sample, components kept.

What a task is paid by stands in its class (`rewards`, a mapping of reward to weight; default: accuracy alone), or in
the option `tables`. Content is paid, and form is a discount on it: with weights w, content c and forms f, all in
[0, 1], the score is c * (w_c + sum w_f f) / (w_c + sum w_f). So nothing in good form alone is worth anything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import RunDir
from posttrain.rl.rewards import FORM, Reward, Rollout, Score, resolve_reward
from posttrain.tasks.registry import get_task, task_rewards

Table = list[tuple[Reward, float]]


class ByTask:
    """The rewards that the row's own task names, weighed and taken together. None where the row names no task."""

    def __init__(self, *, tables: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """`tables`: rewards by task, as {number: {accuracy: 1, repetition: {weight: 0.2, options: {}}}}.

        Raises:
            PosttrainError: a table names a reward, an option or a task that is not there.
        """
        self._given = {task: _table(task, table) for task, table in (tables or {}).items()}
        for task in self._given:
            get_task(task)
        self._known: dict[str, Table] = {}

    def stages(self) -> list[str]:
        """The stages of the recipe that the rewards in the tables need."""
        return [stage for reward in self._rewards() for stage in getattr(reward.function, "stages", list)()]

    def open(self, run: RunDir) -> None:
        """Hand the run to the rewards that take something from it."""
        for reward in self._rewards():
            if (opens := getattr(reward.function, "open", None)) is not None:
                opens(run)

    def _rewards(self) -> list[Reward]:
        return [reward for table in self._given.values() for reward, _ in table]

    def __call__(self, query: Mapping[str, Any], rollout: Rollout) -> Score:
        return self.batch([query], [rollout])[0]

    def batch(self, queries: Sequence[Mapping[str, Any]], rollouts: Sequence[Rollout]) -> list[Score]:
        """One score a rollout. Each component is asked once, for all the rollouts that it applies to."""
        tables = [self.table_of(query) for query in queries]
        asked: dict[int, tuple[Reward, list[int]]] = {}
        for place, table in enumerate(tables):
            for reward, _ in table:
                asked.setdefault(id(reward), (reward, []))[1].append(place)
        scores: defaultdict[int, dict[str, Score]] = defaultdict(dict)
        for reward, places in asked.values():
            given = reward.batch([queries[i] for i in places], [rollouts[i] for i in places])
            for place, score in zip(places, given, strict=True):
                scores[place][reward.name] = score
        return [combined(table, scores[place]) for place, table in enumerate(tables)]

    def table_of(self, query: Mapping[str, Any]) -> Table:
        """The rewards of a row's task, with their weights; none where it names no task."""
        task = str(query.get("task") or "")
        if not task:
            return []
        if task in self._given:
            return self._given[task]
        if task not in self._known:
            self._known[task] = _table(task, task_rewards(task))
        return self._known[task]


def combined(table: Table, scores: Mapping[str, Score]) -> Score:
    """One score of a table's components. Components that do not apply leave their weight to the others."""
    content = form = content_weight = form_weight = 0.0
    for reward, weight in table:
        value = scores[reward.name].value
        if value is None:
            continue
        if reward.name in FORM:
            form, form_weight = form + weight * value, form_weight + weight
        else:
            content, content_weight = content + weight * value, content_weight + weight
    reason = "; ".join(f"{name}: {_told(score)}" for name, score in scores.items())
    whole = content_weight + form_weight
    if whole == 0.0:
        faults = [score.fault for score in scores.values() if score.fault]
        return Score(None, reason, scores, faults[0] if faults else "")
    if content_weight == 0.0:  # forms alone, or a table whose content failed: that is none of the policy's doing
        faulty = any(score.fault for score in scores.values())
        return Score(None if faulty else form / form_weight, reason, scores, "raised" if faulty else "")
    value = content / content_weight * (content_weight + form) / whole
    return Score(min(1.0, value), reason, scores)


def _told(score: Score) -> str:
    value = "failed" if score.fault else "n/a" if score.value is None else f"{score.value:.2f}"
    return f"{value} ({score.reason})" if score.reason else value


def _table(task: str, given: Any) -> Table:
    where = f"the rewards of task {task!r}"
    if not isinstance(given, Mapping) or not given:
        raise PosttrainError(Problem(f"{where} are a mapping of reward to weight, not {given!r:.80}"))
    table: Table = []
    for name, entry in given.items():
        spec = entry if isinstance(entry, Mapping) else {"weight": entry}
        weight = spec.get("weight", 1.0)
        if set(spec) - {"weight", "options"} or isinstance(weight, bool) or not isinstance(weight, int | float):
            remedy = "a weight, or {weight: ..., options: {...}}"
            raise PosttrainError(Problem(f"{where}: {name}: {entry!r:.80} is no weight", remedy=remedy))
        if not 0.0 < weight < float("inf") or name == "task":
            raise PosttrainError(Problem(f"{where}: {name}: {entry!r:.80} will not do", remedy="a weight above 0"))
        table.append((resolve_reward(name, spec.get("options")), float(weight)))
    return table
