"""A reward as TRL calls it: one column of scores a batch, each reward by itself, faults counted.

TRL logs every reward function under its own name (`rewards/NAME/mean`) and weighs it by `reward_weights`. A reward that
raises is data, not a crash: the sample gets None (not applicable), the fault is counted and logged. A batch where most
raise stops the run: its rewards would be noise.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.rl.rewards import Reward, Rollout

log = logging.getLogger("posttrain")

SHOWN_FAULTS = 5
"""Faults of one reward that are logged one by one; further ones are only counted."""


class RewardFault(ValueError):
    """A reward returned something that is no score."""


@dataclass
class RewardColumn:
    """One reward over a batch, as `GRPOTrainer` calls reward functions.

    Attributes:
        name: its name in the logs.
        reward: the function itself.
        gates: rewards that must be fulfilled for this one to count: its score is multiplied by theirs. A gate that
            does not apply to a sample does not hold it back.
        failed: scores that raised so far.
        calls: scores asked for so far.
    """

    name: str
    reward: Reward
    gates: Mapping[str, Reward] = field(default_factory=dict)
    failed: int = 0
    calls: int = 0

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, *, rollout: Sequence[Rollout], **columns: Any) -> list[float | None]:
        """Scores of a batch.

        Args:
            rollout: one rollout a sample.
            columns: TRL's own arguments, and the data set's columns with one entry a sample.

        Raises:
            PosttrainError: more than half of the batch raised.
        """
        rows = _rows(columns, len(rollout))
        faults: list[BaseException] = []
        raw = [self._guarded(self.reward, row, sample, faults) for row, sample in zip(rows, rollout, strict=True)]
        self.calls += len(rollout)
        self.failed += len(faults)
        if len(faults) > len(rollout) / 2:
            raise PosttrainError(_mostly_failing(self.name, faults, len(rollout)))
        scores = raw
        if self.gates:
            scores = [self._gated(score, row, sample) for score, row, sample in zip(raw, rows, rollout, strict=True)]
        self._log(columns.get("log_metric"), raw, rollout, len(faults))
        return scores

    def _guarded(
        self, reward: Reward, row: Mapping[str, Any], rollout: Rollout, faults: list[BaseException]
    ) -> float | None:
        try:
            return checked(reward(row, rollout))
        except Exception as error:
            faults.append(error)
            if self.failed + len(faults) <= SHOWN_FAULTS:
                log.warning("reward %s raised on query %s: %r", self.name, row.get("id", "?"), error)
            return None

    def _gated(self, score: float | None, row: Mapping[str, Any], rollout: Rollout) -> float | None:
        if score is None:
            return None
        for gate in self.gates.values():
            # A gate's own column counts its faults; here one that raises holds nothing back.
            passed = self._guarded_gate(gate, row, rollout)
            score *= 1.0 if passed is None else passed
        return score

    @staticmethod
    def _guarded_gate(gate: Reward, row: Mapping[str, Any], rollout: Rollout) -> float | None:
        try:
            return checked(gate(row, rollout))
        except Exception:
            return None

    def _log(
        self,
        log_metric: Callable[[str, float], None] | None,
        raw: Sequence[float | None],
        rollouts: Sequence[Rollout],
        failed: int,
    ) -> None:
        if log_metric is None:
            return
        log_metric(f"rewards/{self.name}/failed", failed / len(raw))
        for mode in ("thinking", "non_thinking"):
            scores = [s for s, rollout in zip(raw, rollouts, strict=True) if s is not None and rollout.mode == mode]
            if scores:
                log_metric(f"rewards/{self.name}/{mode}", sum(scores) / len(scores))
        if self.gates:
            scores = [score for score in raw if score is not None]
            if scores:
                log_metric(f"rewards/{self.name}/ungated", sum(scores) / len(scores))


def checked(score: Any) -> float | None:
    """A reward's return value as a score, or None.

    Raises:
        RewardFault: it is no number in [0, 1].
    """
    if score is None:
        return None
    value = float(score)
    if not math.isfinite(value) or not 0.0 <= value <= 1.0:
        raise RewardFault(f"{score!r} is no score in [0, 1]")
    return value


def _rows(columns: Mapping[str, Any], size: int) -> list[dict[str, Any]]:
    """The batch's rows again, from TRL's column-wise arguments."""
    lists = {key: values for key, values in columns.items() if isinstance(values, list) and len(values) == size}
    if "prompts" in lists:
        lists["prompt"] = lists.pop("prompts")
    return [{key: values[i] for key, values in lists.items()} for i in range(size)]


def _mostly_failing(name: str, faults: Sequence[BaseException], size: int) -> Problem:
    kinds = sorted({type(fault).__name__ for fault in faults})
    return Problem(
        f"reward {name!r} raised on {len(faults)} of {size} rollouts ({', '.join(kinds)}); first: {faults[0]!r}",
        why="with most scores missing the rewards are noise, so the run stops here",
        remedy="score a few rows with the reward by hand, and mend it or the queries it fails on",
    )
