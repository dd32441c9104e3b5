"""What was kept and dropped on the way to a stage's data, as tables to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def stage_funnel(funnel: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's funnel as `{"steps": rows, "facts": [(name, value)]}`.

    A row has `source`, `step`, `in`, `kept`, `dropped`, `share` (kept of what came in, 0 to 1; None of nothing) and
    `why` (as text: `too_long 8, wrong_answer 3`). Facts are all other counts, flat: `tokens: supervised_tokens`.
    """
    steps = [_step(step) for step in funnel.get("steps", [])]
    facts = [pair for key, value in funnel.items() if key != "steps" for pair in _flat(key, value)]
    return {"steps": steps, "facts": facts}


def _step(step: Mapping[str, Any]) -> dict[str, Any]:
    share = step["kept"] / step["in"] if step["in"] else None
    why = ", ".join(f"{rule} {count:,}" for rule, count in step["why"].items())
    return {**step, "share": share, "why": why}


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Nested counts as pairs of a path and a text; what has a name of its own (`name`, `source`) is told by it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}: {key}", inner)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for place, inner in enumerate(value):
            label = inner.get("name", place) if isinstance(inner, Mapping) else place
            rest = {key: v for key, v in inner.items() if key != "name"} if isinstance(inner, Mapping) else inner
            yield from _flat(f"{name}: {label}", rest)
    else:
        yield name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def data_table(data: Mapping[str, Mapping[str, Any] | None]) -> list[dict[str, Any]]:
    """A row a data set: read, filtered out, bad, reserved, left out as too close to a reserved row (the same problem
    once more included), for training.
    """
    rows = []
    for name, facts in data.items():
        if not facts:
            continue
        close = facts.get("decontamination") or {}
        dropped = close.get("dropped") or {}
        rows.append(
            {
                "name": name,
                "read": facts.get("rows_read"),
                "filtered": facts.get("filtered_out"),
                "bad": facts.get("bad_rows_skipped"),
                "reserved": facts.get("reserved"),
                "close": sum(dropped.values()) + facts.get("like_reserved", 0) if close else None,
                "method": close.get("method", ""),
                "left": facts.get("for_training"),
            }
        )
    return rows
