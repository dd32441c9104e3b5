"""Rollouts to read: a few of each batch that is looked at, with every reward's score, components and reasons."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.data.funnel import json_line
from posttrain.model.artifacts import write_text
from posttrain.rl.rewards import Rollout, Score

A_BATCH = 4  # rollouts kept of a batch, spread over it
EVERY = 50  # batches, after the first ones


class RolloutFile:
    """Keeps rollouts in a JSONL file: of batches 1, 2, 4, 8, ... and of every fiftieth, four each.

    Rows that stand there already from this step or a later one are those of a run that was killed: they go.

    Args:
        path: the file.
        columns: how many rewards a batch is scored by; the rows are written behind the last of them.
    """

    def __init__(self, path: Path, columns: int) -> None:
        self.path, self._columns = path, columns
        self._batches = 0
        self._rows: list[dict[str, Any]] = []
        self._scored = 0
        self._trimmed = False

    def add(
        self,
        name: str,
        step: int,
        rows: Sequence[Mapping[str, Any]],
        rollouts: Sequence[Rollout],
        scores: Sequence[Score],
        values: Sequence[float | None],
    ) -> None:
        """One reward's scores of a batch; `values` are those behind its gates."""
        places = range(0, len(rows), max(1, len(rows) // A_BATCH))[:A_BATCH]
        if self._scored == 0:
            self._batches += 1
            self._rows = [_shown(step, rows[i], rollouts[i]) for i in places]
        for shown, place in zip(self._rows, places, strict=True):
            shown["rewards"][name] = told(scores[place], values[place])
        self._scored = (self._scored + 1) % self._columns
        if self._scored == 0 and (self._batches & (self._batches - 1) == 0 or self._batches % EVERY == 0):
            self._write(step)

    def _write(self, step: int) -> None:
        if not self._trimmed:
            self._trimmed = True
            if self.path.exists():
                lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
                kept = [line for line in lines if line.endswith("}\n") and json.loads(line)["step"] < step]
                write_text(self.path, "".join(kept))
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json_line(row) + "\n" for row in self._rows)


def told(score: Score, value: float | None) -> dict[str, Any]:
    """A score as JSON: `score` (behind gates), `reason`, `components`, `fault`, each where there is one."""
    entry: dict[str, Any] = {"score": value, "reason": score.reason}
    if value != score.value:
        entry["ungated"] = score.value
    if score.components:
        entry["components"] = {name: told(part, part.value) for name, part in score.components.items()}
    if score.fault:
        entry["fault"] = score.fault
    return entry


def _shown(step: int, row: Mapping[str, Any], rollout: Rollout) -> dict[str, Any]:
    return {
        "step": step,
        "id": row.get("id", ""),
        "task": row.get("task", ""),
        "mode": rollout.mode,
        "prompt": row["prompt"][-1]["content"] if row.get("prompt") else "",
        "answer": row.get("answer", ""),
        "completion": rollout.prefilled + rollout.text,
        "truncated": rollout.truncated,
        "rewards": {},
    }
