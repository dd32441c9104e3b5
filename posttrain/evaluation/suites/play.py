"""One suite played with one model, item by item, so that a kill costs one chunk; then its figures.

DIR/settings.json   what the answers depend on; other settings are refused there
DIR/answers.jsonl   one line an item, appended chunk by chunk
DIR/figures.json    the metrics with intervals, in all and by group
DIR/samples.md      some answers to read
DIR/manifest.json   written last: it stands there when everything does
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.data.funnel import json_line
from posttrain.errors import PosttrainError, Problem
from posttrain.evaluation.scores import Score, percentile, pooled_score
from posttrain.evaluation.suites.suite import Ask, Item, Played, Setting, Suite
from posttrain.model.artifacts import MANIFEST, is_complete, read_json, seal, write_json, write_text
from posttrain.model.generation import Completion, Prompt
from posttrain.tasks.task import derive_seed

SHOWN = 4  # answers to read, right and wrong each

Generate = Callable[..., list[Completion]]
"""`generation.Generator`, or what stands for one: called with prompts and `seed`."""


def identity_of(directory: Path) -> dict[str, Any]:
    """What makes a model directory this model: its manifest, or the sizes and times of its weights."""
    sealed = directory / MANIFEST
    if sealed.exists():
        return {"manifest": sealed.read_text(encoding="utf-8")}
    files = sorted([*directory.glob("*.safetensors"), *directory.glob("*.bin")])
    return {"weights": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]}


def chosen(suite: Suite, limit: int | None) -> list[Item]:
    """All items of a suite, or so many of them, drawn once and for all."""
    items = suite.items()
    if limit is None or limit >= len(items):
        return items
    drawn = random.Random(derive_seed("suite", suite.name)).sample(range(len(items)), limit)
    return [items[place] for place in sorted(drawn)]


def play_suite(
    suite: Suite,
    items: Sequence[Item],
    setting: Setting,
    generate: Generate,
    directory: Path,
    *,
    depends_on: Mapping[str, Any],
    seed: int,
    chunk: int,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Play what is not played yet. Returns the figures.

    Args:
        depends_on: what the answers depend on beside the suite: model, sampling, lengths.
        chunk: items at a time.

    Raises:
        PosttrainError: the directory holds answers under other settings, or damaged ones.
    """
    facts = {**depends_on, "suite": suite.name, "setting": setting.name, "seed": seed, "items": len(items)}
    _same_settings(directory, facts)
    if is_complete(directory):
        advance(len(items))
        return dict(read_json(directory / "figures.json"))
    answers = directory / "answers.jsonl"
    try:
        records = _kept(answers)
    except ValueError as error:
        raise PosttrainError(Problem(f"{answers} is damaged: {error}", remedy="remove it")) from error
    if [record["id"] for record in records] != [item.id for item in items[: len(records)]]:
        raise PosttrainError(
            Problem(f"{answers} holds answers to other items", remedy="remove it, or name another output")
        )
    advance(len(records))
    for start in range(len(records), len(items), chunk):
        part = items[start : start + chunk]
        played = suite.play(_asking(generate, seed, suite.name, start), part, setting)
        lines = [_record(one) for one in played]
        with answers.open("a", encoding="utf-8") as file:
            file.write("".join(json_line(line) + "\n" for line in lines))
        records += lines
        advance(len(part))
    figures = figures_of(suite, records)
    write_json(directory / "figures.json", figures)
    write_text(directory / "samples.md", _samples(suite, records))
    seal(directory)
    return figures


def figures_of(suite: Suite, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every metric with its interval, in all and by group, and what the answers were like."""
    groups = sorted({record["group"] for record in records} - {""})
    said = [turn for record in records for turn in record["turns"]]
    return {
        "suite": suite.name,
        "headline": suite.headline,
        "items": len(records),
        "metrics": _metrics(records),
        "groups": {group: _metrics([r for r in records if r["group"] == group]) for group in groups},
        "answers": {
            "truncated": _share(records, lambda turn: turn["truncated"]),
            "well_formed": _share(records, lambda turn: turn["well_formed"]),
            "thought": _share(records, lambda turn: turn["mode"] == "thinking"),
            "tokens": _spread([turn["tokens"] for turn in said]),
            "thinking_tokens": _spread([turn["thinking_tokens"] for turn in said]),
        },
    }


def _metrics(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values: dict[str, list[list[float]]] = {}
    for record in records:
        for metric, value in record["scores"].items():
            values.setdefault(metric, []).append(value if isinstance(value, list) else [value])
    return {metric: pooled_score(found) for metric, found in values.items()}


def _share(records: Sequence[Mapping[str, Any]], holds: Callable[[Mapping[str, Any]], Any]) -> Score:
    """The share of turns for which something holds."""
    return pooled_score([[float(bool(holds(turn))) for turn in record["turns"]] for record in records])


def _spread(counts: Sequence[int]) -> dict[str, float]:
    return {"mean": sum(counts) / max(1, len(counts)), "p50": percentile(counts, 0.5), "p95": percentile(counts, 0.95)}


def _same_settings(directory: Path, facts: Mapping[str, Any]) -> None:
    path = directory / "settings.json"
    known = read_json(path)
    if known is None:
        write_json(path, facts)
        return
    given = json.loads(json.dumps(facts, default=str))
    changed = [
        f"{key}: {known.get(key)} there, {given.get(key)} now" for key in given if known.get(key) != given.get(key)
    ]
    if changed:
        what = f"{directory} holds answers under other settings ({'; '.join(changed)})"
        raise PosttrainError(Problem(what, remedy="name another --output, or remove that directory"))


def _asking(generate: Generate, seed: int, suite: str, start: int) -> Ask:
    """Completions whose seeds follow from the suite, the place of the chunk and the turn: a resumed run repeats."""
    turn = 0

    def ask(prompts: Sequence[Prompt]) -> list[Completion]:
        nonlocal turn
        turn += 1
        return generate(prompts, seed=derive_seed(seed, suite, start, turn)) if prompts else []

    return ask


def _record(played: Played) -> dict[str, Any]:
    return {
        "id": played.item.id,
        "group": played.item.group,
        "scores": played.marks.scores,
        "reason": played.marks.reason,
        "messages": played.messages,
        "turns": [
            {
                "mode": completion.message.mode,
                "well_formed": completion.message.well_formed,
                "truncated": completion.truncated,
                "tokens": getattr(completion, "tokens", len(completion.completion_ids)),
                "thinking_tokens": completion.thinking_tokens,
            }
            for completion in played.completions
        ],
    }


def _kept(answers: Path) -> list[dict[str, Any]]:
    """The answers that are whole. A line that a kill cut short is taken off the file.

    Raises:
        ValueError: what is left is no JSON lines of answers.
    """
    if not answers.exists():
        return []
    whole, _, torn = answers.read_bytes().rpartition(b"\n")
    if torn:
        with answers.open("r+b") as file:
            file.truncate(len(whole) + 1 if whole else 0)
    records = [json.loads(line) for line in whole.splitlines()]
    if not all(isinstance(record, dict) and "id" in record for record in records):
        raise ValueError("its lines are no answers")
    return records


def _samples(suite: Suite, records: Sequence[Mapping[str, Any]]) -> str:
    parts = [f"# {suite.name}: {suite.about}\n"]
    for title, right in (("Right", True), ("Wrong", False)):
        kept = [record for record in records if _right(suite, record) == right][:SHOWN]
        parts += [f"## {title}\n" if kept else "", *(_shown(record) for record in kept)]
    return "\n".join(part for part in parts if part)


def _right(suite: Suite, record: Mapping[str, Any]) -> bool:
    value = record["scores"].get(suite.headline, 0.0)
    return bool(value) and (min(value) if isinstance(value, list) else value) >= 1.0


def _shown(record: Mapping[str, Any]) -> str:
    scores = ", ".join(f"{name} {value}" for name, value in record["scores"].items())
    turns = []
    for message in record["messages"]:
        text = f"{message.get('reasoning_content') or ''}\n---\n" if message.get("reasoning_content") else ""
        text += str(message.get("content") or "")
        if message.get("tool_calls"):
            text += "\n" + json.dumps(message["tool_calls"], ensure_ascii=False)
        turns.append(f"**{message['role']}**\n\n" + "\n".join(f"    {line}" for line in text.splitlines()) + "\n")
    return "\n".join([f"### {record['id']}\n", f"{scores}: {record['reason']}\n", *turns])
