"""A reward as TRL calls it: one column of scores a batch, each reward by itself, faults counted.

TRL logs every reward function under its own name (`rewards/NAME/mean`) and weighs it by `reward_weights`. A reward that
raises is data, not a crash: the sample gets None (not applicable), the fault is counted and logged. A batch where most
raise stops the run: its rewards would be noise.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from posttrain.errors import PosttrainError, Problem
from posttrain.rl.rewards import Reward, RewardFault, RewardFunction, Rollout, Score

if TYPE_CHECKING:
    from posttrain.rl.rewards.reading import RolloutFile

log = logging.getLogger("posttrain")

SHOWN_FAULTS = 5
"""Faults of one reward that are logged one by one; further ones are only counted."""

WINDOW = 8
"""Scores of a component, over batches, after which it is looked at whether most of them failed."""

__all__ = ["RewardColumn", "RewardFault"]


@dataclass
class RewardColumn:
    """One reward over a batch, as `GRPOTrainer` calls reward functions.

    Attributes:
        name: its name in the logs.
        reward: the reward, or a bare function.
        gates: rewards that must be fulfilled for this one to count: its score is multiplied by theirs. A gate that
            does not apply to a sample does not hold it back.
        reading: where some of the rollouts are kept for a reader, or None.
        failed: scores that raised so far.
        timeouts: those of them that ran into a time limit.
        calls: scores asked for so far.
    """

    name: str
    reward: Reward | RewardFunction
    gates: Mapping[str, Reward | RewardFunction] = field(default_factory=dict)
    reading: RolloutFile | None = None
    failed: int = 0
    timeouts: int = 0
    calls: int = 0
    _windows: defaultdict[str, list[Score]] = field(default_factory=lambda: defaultdict(list))

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, *, rollout: Sequence[Rollout], **columns: Any) -> list[float | None]:
        """Scores of a batch.

        Args:
            rollout: one rollout a sample.
            columns: TRL's own arguments, and the data set's columns with one entry a sample.

        Raises:
            PosttrainError: more than half of the batch raised, or of the last scores of a component.
        """
        rows = _rows(columns, len(rollout))
        scores = _resolved(self.name, self.reward).batch(rows, rollout)
        self._count(rows, scores)
        values = [score.value for score in scores]
        if self.gates:
            values = self._gated(values, rows, rollout)
        self._log(columns.get("log_metric"), rows, scores, rollout)
        if self.reading is not None:
            step = int(getattr(columns.get("trainer_state"), "global_step", 0))
            self.reading.add(self.name, step, rows, rollout, scores, values)
        return values

    def _count(self, rows: Sequence[Mapping[str, Any]], scores: Sequence[Score]) -> None:
        self.calls += len(scores)
        faults = [(row, score) for row, score in zip(rows, scores, strict=True) if score.fault]
        for row, score in faults:
            self.failed += 1
            self.timeouts += score.fault == "timeout"
            if self.failed <= SHOWN_FAULTS:
                log.warning("reward %s raised on query %s: %s", self.name, row.get("id", "?"), score.reason)
        if len(faults) > len(scores) / 2:
            raise PosttrainError(_mostly_failing(self.name, [score for _, score in faults], len(scores)))
        for name, score in components_of(scores):
            window = self._windows[name]
            window.append(score)
            if len(window) >= WINDOW:
                failed = [one for one in window if one.fault]
                if len(failed) > len(window) / 2:
                    raise PosttrainError(_mostly_failing(name, failed, len(window)))
                window.clear()

    def _gated(
        self, values: Sequence[float | None], rows: Sequence[Mapping[str, Any]], rollouts: Sequence[Rollout]
    ) -> list[float | None]:
        gated = list(values)
        for name, gate in self.gates.items():
            # A gate's own column counts its faults; here one that raises holds nothing back.
            passed = _resolved(name, gate).batch(rows, rollouts)
            for place, (value, by) in enumerate(zip(gated, passed, strict=True)):
                if value is not None and by.value is not None:
                    gated[place] = value * by.value
        return gated

    def _log(
        self,
        log_metric: Callable[[str, float], None] | None,
        rows: Sequence[Mapping[str, Any]],
        scores: Sequence[Score],
        rollouts: Sequence[Rollout],
    ) -> None:
        if log_metric is None:
            return
        means: defaultdict[str, list[float]] = defaultdict(list)
        for row, score, rollout in zip(rows, scores, rollouts, strict=True):
            means["failed"].append(float(bool(score.fault)))
            means["timeouts"].append(float(score.fault == "timeout"))
            if score.value is None:
                continue
            if rollout.mode:
                means[rollout.mode].append(score.value)
            if self.gates:
                means["ungated"].append(score.value)
            if score.components and row.get("task"):
                means[f"task/{row['task']}"].append(score.value)
        for name, score in components_of(scores):
            means[f"{name}/failed"].append(float(bool(score.fault)))
            if score.value is not None:
                means[name].append(score.value)
        for name, values in means.items():
            log_metric(f"rewards/{self.name}/{name}", sum(values) / len(values))


def components_of(scores: Sequence[Score]) -> Iterator[tuple[str, Score]]:
    """The components of all scores, by name."""
    for score in scores:
        yield from score.components.items()


def _resolved(name: str, reward: Reward | RewardFunction) -> Reward:
    return reward if isinstance(reward, Reward) else Reward(name, reward)


def _rows(columns: Mapping[str, Any], size: int) -> list[dict[str, Any]]:
    """The batch's rows again, from TRL's column-wise arguments."""
    lists = {key: values for key, values in columns.items() if isinstance(values, list) and len(values) == size}
    if "prompts" in lists:
        lists["prompt"] = lists.pop("prompts")
    return [{key: values[i] for key, values in lists.items()} for i in range(size)]


def _mostly_failing(name: str, faults: Sequence[Score], size: int) -> Problem:
    kinds = sorted({fault.reason.partition(":")[0] for fault in faults})
    return Problem(
        f"reward {name!r} raised on {len(faults)} of {size} rollouts ({', '.join(kinds)}); first: {faults[0].reason}",
        why="with most scores missing the rewards are noise, so the run stops here",
        remedy="score a few rows with `posttrain rewards score`, and mend the reward or the queries it fails on",
    )
