"""Rewards on rows of a file, without a run: what `posttrain rewards score` does.

A row has `task` (what scores it, and names its rewards), `prompt` (text or messages), `completion` (text, with its
think block), and of these what the task needs: `answer`, `entry` or `fields` (the verifier's own, as an object). It may
say `mode`, `prefilled`, `truncated`, `tokens`, `max_tokens`, `thinking_tokens`, `thinking_budget`, `closed_by`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.data.faults import RowFaults
from posttrain.data.readers import read_file
from posttrain.errors import PosttrainError, Problem
from posttrain.rl.rewards import Reward, Rollout, Score
from posttrain.rl.rewards.reading import told
from posttrain.tasks.registry import get_task
from posttrain.tasks.task import row_problem
from posttrain.templates.families import Family
from posttrain.templates.parse import parse

log = logging.getLogger("posttrain")

FACTS: Mapping[str, tuple[type, ...]] = {
    "prefilled": (str,),
    "truncated": (bool,),
    "tokens": (int,),
    "max_tokens": (int,),
    "thinking_tokens": (int,),
    "thinking_budget": (int, type(None)),
    "closed_by": (str, type(None)),
}
KNOWN = {"id", "task", "prompt", "completion", "answer", "entry", "fields", "mode", *FACTS}
AT_ONCE = 512  # rows scored together: a judge is asked for all of them at once


def read_rows(path: Path, family: Family) -> list[tuple[dict[str, Any], dict[str, Any], Rollout]]:
    """Rows of a file as (the row itself, the query, the rollout).

    Raises:
        PosttrainError: rows that cannot be scored, each named by its line; or the file cannot be read.
    """
    rows, faults = [], RowFaults(path.name)
    for place, row in read_file(path, faults):
        try:
            rows.append((row, _query(row, place.number), _rollout(row, family)))
        except (ValueError, TypeError) as error:
            faults.add(place, str(error))
    if faults.count:
        more = faults.count - len(faults.shown)
        raise PosttrainError([*faults.shown, *([Problem(f"{more} further bad rows", str(path))] if more else [])])
    return rows


def score_rows(
    rows: Sequence[tuple[dict[str, Any], dict[str, Any], Rollout]], rewards: Sequence[tuple[Reward, float]]
) -> Iterator[dict[str, Any]]:
    """The same rows with `score`, `components` and `reason`.

    `score` is the sum of the rewards with their weights, over the weights of those that apply; None where none does.
    The components of each reward stand under its name.

    Raises:
        PosttrainError: a reward fails on every row.
    """
    failed: dict[str, list[Score]] = {reward.name: [] for reward, _ in rewards}
    for start in range(0, len(rows), AT_ONCE):
        some = rows[start : start + AT_ONCE]
        queries, rollouts = [query for _, query, _ in some], [rollout for _, _, rollout in some]
        columns = [reward.batch(queries, rollouts) for reward, _ in rewards]
        for (reward, _), column in zip(rewards, columns, strict=True):
            failed[reward.name] += [score for score in column if score.fault]
        for place, (row, _, _) in enumerate(some):
            scores = [column[place] for column in columns]
            applying = [
                (s.value, weight) for s, (_, weight) in zip(scores, rewards, strict=True) if s.value is not None
            ]
            whole = sum(weight for _, weight in applying)
            components = {
                reward.name: told(score, score.value) for (reward, _), score in zip(rewards, scores, strict=True)
            }
            if len(rewards) == 1 and "components" in components[rewards[0][0].name]:
                components = components[rewards[0][0].name]["components"]
            yield {
                **row,
                "score": sum(value * weight for value, weight in applying) / whole if whole else None,
                "components": components,
                "reason": "; ".join(score.reason for score in scores if score.reason),
            }
    problems = []
    for name, faults in failed.items():
        if faults and len(faults) == len(rows):
            what = f"reward {name!r} fails on all of the {len(rows)} rows; on the first: {faults[0].reason}"
            problems.append(Problem(what, remedy="mend its options, or the rows"))
        elif faults:
            log.warning("reward %s fails on %d of %d rows: %s", name, len(faults), len(rows), faults[0].reason)
    if problems:
        raise PosttrainError(problems)


def _query(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    if missing := [key for key in ("task", "prompt", "completion") if key not in row]:
        raise ValueError(f"it lacks {', '.join(map(repr, missing))}; it has {', '.join(row) or 'nothing'}")
    if unknown := sorted(set(row) - KNOWN - {"score", "components", "reason"}):
        raise ValueError(f"unknown: {', '.join(map(repr, unknown))}; known are {', '.join(sorted(KNOWN))}")
    if "entry" in row and "fields" in row:
        raise ValueError("`entry` and `fields` are the same thing: give one")
    entry = row.get("entry", row.get("fields", ""))
    entry = json.dumps(entry) if isinstance(entry, dict) else entry
    answer = row.get("answer", "")
    if not isinstance(entry, str) or isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise ValueError("`answer` is text or a number, `entry` or `fields` an object")
    query = {
        "id": row.get("id", f"row-{number}"),
        "task": row["task"],
        "prompt": _messages(row["prompt"]),
        "answer": str(answer),
        "entry": entry,
    }
    if problem := _unscorable(query):
        raise ValueError(problem)
    return query


def _unscorable(query: Mapping[str, Any]) -> str | None:
    """Why the row's task cannot score it, or None."""
    try:
        task = get_task(str(query["task"]))
    except PosttrainError as error:
        return "; ".join(f"{problem.what}; {problem.remedy}" for problem in error.problems)
    return row_problem(task, query["answer"], query["entry"])


def _messages(prompt: Any) -> list[dict[str, Any]]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    sound = (
        isinstance(prompt, list)
        and prompt
        and all(
            isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
            for turn in prompt
        )
    )
    if not sound:
        raise ValueError("`prompt` is text, or a list of messages with role and content")
    return list(prompt)


def _rollout(row: Mapping[str, Any], family: Family) -> Rollout:
    completion = row["completion"]
    if not isinstance(completion, str):
        raise ValueError("`completion` is text")
    mode = row.get("mode")
    if mode not in (None, *family.modes):
        raise ValueError(f"the mode {mode!r} is none of {', '.join(family.modes)}")
    facts = {key: row[key] for key in FACTS if key in row}
    for key, value in facts.items():
        if type(value) not in FACTS[key]:
            raise ValueError(f"`{key}` is {' or '.join(kind.__name__ for kind in FACTS[key])}, not {value!r:.40}")
    message = parse(completion, family, prefilled=str(facts.get("prefilled", "")))
    return Rollout(message=message, mode=mode, text=completion, **facts)
