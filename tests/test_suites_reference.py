"""Our scores equal the reference implementations' on the same outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.evaluation.suites import data
from posttrain.evaluation.suites.humaneval import program
from posttrain.sandbox.job import Limits
from posttrain.sandbox.pool import Sandbox
from posttrain.tasks.instructions import followed
from tests.reference_scorers import humaneval_reference, ifeval_reference, ifeval_responses, mutants
from tests.sandboxed import needs_sandbox

needs_wheels = pytest.mark.skipif(
    not (data.directory().parent / "wheels").exists(), reason="no packages of suites: run `make suites`"
)


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox(Limits(cpu_seconds=10, wall_seconds=60.0))


@needs_wheels
@needs_sandbox
def test_every_canonical_solution_of_humaneval_passes(sandbox: Sandbox) -> None:
    problems = data.rows("humaneval")
    assert len(problems) == 164
    verdicts = sandbox.judge_all(program(problem, problem["canonical_solution"]) for problem in problems)
    assert [problem["task_id"] for problem, v in zip(problems, verdicts, strict=True) if not v.passed] == []


@needs_wheels
@needs_sandbox
def test_no_gutted_solution_of_humaneval_passes(sandbox: Sandbox) -> None:
    """Every function is there with its signature and gives nothing, or only what its caller gave."""
    problems = data.rows("humaneval")
    verdicts = sandbox.judge_all(program(problem, "    return None\n") for problem in problems)
    assert not any(verdict.passed for verdict in verdicts)


@needs_wheels
@needs_sandbox
def test_humaneval_is_scored_as_by_its_own_check(sandbox: Sandbox) -> None:
    """A third of the problems: the solution, and a mutant. `benchmarks/reference_scorers.py` has all of them."""
    asked = [
        (problem, completion)
        for problem in data.rows("humaneval")[::3]
        for completion in (problem["canonical_solution"], *mutants(problem, 1))
    ]
    ours = [verdict.passed for verdict in sandbox.judge_all(program(*given) for given in asked)]
    theirs = [verdict.passed for verdict in sandbox.judge_all(humaneval_reference(*given) for given in asked)]
    assert [given[0]["task_id"] for given, a, b in zip(asked, ours, theirs, strict=True) if a != b] == []
    assert 0.4 < sum(ours) / len(ours) < 0.75, "most mutants fail"


@needs_wheels
def test_ifeval_is_scored_as_by_its_own_evaluation(tmp_path: Path) -> None:
    """Every second prompt with one response; `benchmarks/reference_scorers.py` has all, with three each."""
    data.offer_nltk()
    rows = data.rows("ifeval")
    asked = [(row, list(ifeval_responses(number, row["prompt"]))[number % 3]) for number, row in enumerate(rows)][::2]
    theirs = ifeval_reference(asked, tmp_path)
    for (row, response), (strict, loose) in zip(asked, theirs, strict=True):
        entry = {"instructions": row["instruction_id_list"], "arguments": row["kwargs"]}
        ours = followed(entry, row["prompt"], response)
        assert ([one.strict for one in ours], [one.loose for one in ours]) == (strict, loose), (row["key"], response)
    verdicts = [verdict for strict, _ in theirs for verdict in strict]
    assert 0.15 < sum(verdicts) / len(verdicts) < 0.8, "both verdicts are common"


LIAR = """    class Liar:
        __eq__ = lambda self, other: True
        __ne__ = lambda self, other: False
    return Liar()
"""


@needs_wheels
@needs_sandbox
def test_an_answer_that_lies_fools_the_reference_and_not_us(sandbox: Sandbox) -> None:
    """The one difference that is meant: tests and answer share a process there."""
    problem = data.rows("humaneval")[1]
    assert sandbox.judge(humaneval_reference(problem, LIAR)).passed
    assert not sandbox.judge(program(problem, LIAR)).passed
