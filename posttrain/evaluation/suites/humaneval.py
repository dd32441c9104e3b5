"""HumanEval: 164 functions to complete from their description, run in the sandbox (Chen et al. 2021, 2107.03374)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from posttrain.errors import PosttrainError
from posttrain.evaluation.suites.data import rows
from posttrain.evaluation.suites.suite import Item, Marks, SingleTurn
from posttrain.model.generation import Completion
from posttrain.sandbox.isolation import missing
from posttrain.sandbox.job import Program, UnitTests
from posttrain.sandbox.pool import Sandbox
from posttrain.tasks.code import LONGEST, extract

PROMPT = """\
Complete this Python function. Answer with the whole function in one block of code.

```python
{prompt}```"""


class HumanEval(SingleTurn):
    """`pass@1`: the share of functions that pass their tests. An answer may be the whole function or its body."""

    name = "humaneval"
    about = "HumanEval, 164 functions"
    headline = "pass@1"
    reads = "humaneval"

    def check(self) -> None:
        super().check()
        if problems := missing():
            raise PosttrainError(problems)

    def items(self) -> list[Item]:
        self.check()
        return [
            Item(
                row["task_id"],
                [{"role": "user", "content": PROMPT.format(prompt=row["prompt"])}],
                facts={name: row[name] for name in ("prompt", "test", "entry_point")},
            )
            for row in rows("humaneval")
        ]

    def mark(self, item: Item, completion: Completion) -> Marks:
        return self.mark_all([item], [completion])[0]

    def mark_all(self, items: Sequence[Item], completions: Sequence[Completion]) -> list[Marks]:
        answers = [extract(completion.message.content) for completion in completions]
        asked = [(item, answer) for item, answer in zip(items, answers, strict=True) if 0 < len(answer) <= LONGEST]
        verdicts = iter(self._sandbox.judge_all(program(item.facts, f"\n{answer}") for item, answer in asked))
        judged = {item.id: next(verdicts) for item, _ in asked}
        return [
            Marks({self.headline: float(judged[item.id].passed)}, f"{judged[item.id].status}: {judged[item.id].reason}")
            if item.id in judged
            else Marks({self.headline: 0.0}, "no program")
            for item in items
        ]

    @cached_property
    def _sandbox(self) -> Sandbox:
        return Sandbox()


def program(problem: Mapping[str, Any], completion: str) -> Program:
    """A completion as the benchmark runs it: after its prompt, whose helpers the tests may use."""
    tests = f"{problem['prompt']}    pass\n{problem['test']}\ncheck({problem['entry_point']})"
    return Program(problem["prompt"] + completion, UnitTests(tests, problem["entry_point"]))
