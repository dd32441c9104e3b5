"""`retry:TASK`: any task answered in one message, as reasoning-gym's are, with feedback and further tries."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.rl.environments.counted import Counted
from posttrain.tasks.environment import Reply
from posttrain.tasks.registry import get_task
from posttrain.tasks.task import Query, verdict_of
from posttrain.templates.parsed import ParsedMessage

TURNS = 3


class RetryEnvironment(Counted):
    """Tells a wrong answer that it is wrong, and takes another."""

    def __init__(self, task: str) -> None:
        self.name = f"retry:{task}"
        self._task = get_task(task)

    def begin(self, row: Mapping[str, Any]) -> tuple[str, int]:
        kept = json.loads(row["entry"])
        self._row = {**row, "task": self._task.name, "entry": kept["entry"]}
        return str(row["prompt"][-1]["content"]), int(kept["turns"])

    def answer(self, message: ParsedMessage) -> Reply:
        if not message.content.strip() and not message.tool_calls:
            return Reply("There was no answer. Answer the question.", valid=False)
        score = verdict_of(self._task, message, self._row).value
        if score >= 1.0:
            return Reply("Right.", done=True, score=score)
        last = self._turns + 1 >= self._limit
        text = "Partly right." if score > 0 else "Wrong."
        return Reply(text, done=True, score=score) if last else Reply(f"{text} Check your work and answer again.")


class Retry:
    """A task of the registry, asked again where the answer is wrong.

    Options of `queries`, beside those of the task itself: `turns`, answers allowed. Default 3.
    """

    rewards: Mapping[str, float] = {"environment": 1.0}

    def __init__(self, member: str) -> None:
        self.name = f"retry:{member}"
        self._task = get_task(member)
        if hasattr(self._task, "environment"):
            raise PosttrainError(Problem(f"{member} is interactive already", remedy=f"name it {member}"))

    def environment(self) -> RetryEnvironment:
        return RetryEnvironment(self._task.name)

    def queries(self, size: int, seed: int, *, turns: int = TURNS, **options: Any) -> Iterator[Query]:
        if type(turns) is not int or turns < 1:
            raise PosttrainError(Problem(f"turns is a whole number above 0, not {turns!r}", f"{self.name}: options"))
        rows = self._task.queries(size, seed, **options)
        return (
            {**row, "task": self.name, "entry": json.dumps({"entry": row["entry"], "turns": turns})} for row in rows
        )

    def score(self, content: str, query: Mapping[str, Any]) -> float:
        """The score of one answer without a second try."""
        return self._task.score(content, self._inner(query))

    def gold(self, query: Mapping[str, Any]) -> str:
        return self._task.gold(self._inner(query))

    def problem(self, answer: str) -> str | None:
        """Why a row of a file without an `entry` cannot be scored."""
        return "tries are counted in an `entry`, which only queries made by the task have"

    def _inner(self, query: Mapping[str, Any]) -> dict[str, Any]:
        return {**query, "task": self._task.name, "entry": json.loads(query["entry"])["entry"]}
