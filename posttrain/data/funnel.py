"""What was kept and what was dropped, step by step, why, and examples of both to read."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.model.artifacts import write_json, write_text

EXAMPLES = 3  # of each reason of each step
LONGEST = 4000  # characters of a text in an example


def json_line(value: Any) -> str:
    """JSON on one line for every reader: Unicode's own line breaks, which `str.splitlines` knows too, are escaped."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085")


@dataclass(frozen=True)
class Drop:
    """Why a filter drops something: the rule (counted) and the particulars (for the reader)."""

    rule: str
    detail: str = ""


@dataclass
class _Step:
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


class Funnel:
    """Counts per step and source, in the order in which steps first occur, with a fair sample of examples.

    A step is one filter: what it drops does not reach the next. Examples are chosen by reservoir sampling from the
    seed, so a resumed build writes the same ones.
    """

    def __init__(self, seed: int = 0) -> None:
        self._steps: dict[tuple[str, str], _Step] = {}
        self._examples: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
        self._offered: Counter[tuple[str, str, str, str]] = Counter()
        self._random = random.Random(seed)
        self.facts: dict[str, Any] = {}

    def record(self, source: str, step: str, drop: Drop | None, sample: Mapping[str, Any] | None = None) -> None:
        """Count one thing that reached a step: dropped with a reason, or kept (`drop` None)."""
        entry = self._steps.setdefault((source, step), _Step())
        if drop is None:
            entry.kept += 1
        else:
            entry.dropped[drop.rule] += 1
        if sample is not None:
            self.show(source, step, drop, sample)

    def count(self, source: str, step: str, kept: int, dropped: Mapping[str, int]) -> None:
        """Count many at once, without examples."""
        entry = self._steps.setdefault((source, step), _Step())
        entry.kept += kept
        entry.dropped.update({rule: n for rule, n in dropped.items() if n})

    def show(self, source: str, step: str, drop: Drop | None, sample: Mapping[str, Any]) -> None:
        """Offer an example, kept or dropped; some are taken."""
        verdict, rule = ("kept", "") if drop is None else ("dropped", drop.rule)
        key = (source, step, verdict, rule)
        self._offered[key] += 1
        seen = self._offered[key]
        place = seen - 1 if seen <= EXAMPLES else self._random.randrange(seen)
        if place >= EXAMPLES:
            return
        chosen = self._examples.setdefault(key, [])
        row = {"source": source, "step": step, "verdict": verdict, "why": rule, "detail": drop.detail if drop else ""}
        row |= {name: value[:LONGEST] if isinstance(value, str) else value for name, value in sample.items()}
        chosen[place : place + 1] = [row]

    def as_json(self) -> dict[str, Any]:
        """`{"steps": [{"source", "step", "in", "kept", "dropped", "why": {rule: n}}], ...facts}`."""
        steps = []
        for (source, step), entry in self._steps.items():
            dropped = sum(entry.dropped.values())
            counts = {"in": entry.kept + dropped, "kept": entry.kept, "dropped": dropped}
            steps.append({"source": source, "step": step, **counts, "why": dict(entry.dropped.most_common())})
        return {"steps": steps, **self.facts}

    def examples(self) -> list[dict[str, Any]]:
        """The examples, step by step in the funnel's order, kept before dropped."""
        order = {key: place for place, key in enumerate(self._steps)}
        keys = sorted(self._examples, key=lambda key: (order.get(key[:2], len(order)), key[2] == "dropped", key[3]))
        return [row for key in keys for row in self._examples[key]]

    def write(self, directory: Path) -> None:
        """Write funnel.json and examples.jsonl."""
        write_json(directory / "funnel.json", self.as_json())
        write_text(directory / "examples.jsonl", "".join(f"{json_line(row)}\n" for row in self.examples()))
