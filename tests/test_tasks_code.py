"""The verifier `code`: programs out of answers, run against a row's tests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from posttrain.data.columns import compile_map
from posttrain.data.faults import BadRow
from posttrain.data.rows import RowReader
from posttrain.errors import PosttrainError
from posttrain.recipe.data_faults import data_faults
from posttrain.recipe.schema import DataSpec
from posttrain.tasks.code import Code, extract
from posttrain.tasks.task import check_gold, make_query, plain_message
from tests.sandboxed import needs_sandbox

TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0"
SUM = "def add(a, b):\n    return a + b\n"


def row(answer: str, **entry: str) -> dict[str, Any]:
    given = json.dumps({"solution": SUM, **entry})
    return make_query(id="q", prompt="?", answer=answer, task="code", domain="code", key="k", entry=given)


@pytest.fixture(scope="module")
def code() -> Code:
    return Code()


@needs_sandbox
@pytest.mark.parametrize(
    ("answer", "entry"),
    [
        (TESTS, {}),
        (f"def add(a, b):\n    pass\n{TESTS}", {"entry_point": "add"}),
        ("class TestAdd:\n    def test_it(self):\n        " + TESTS.replace("\n", "\n        "), {}),
        ("def check(add):\n    assert add(1, 2) == 3\ncheck(add)", {}),
        ("def test_add():\n    " + TESTS.replace("\n", "\n    "), {}),
        (json.dumps([["1 2\n", "3\n"], ["4 5", "9"]]), {"solution": "print(sum(map(int, input().split())))"}),
        (json.dumps({"inputs": ["1 2"], "outputs": ["3"]}), {"solution": "print(sum(map(int, input().split())))"}),
        (TESTS, {"prefix": "def add(a, b):", "solution": "    return a + b"}),
    ],
)
def test_gold_scores_one_and_rubbish_nothing(code: Code, answer: str, entry: dict[str, str]) -> None:
    assert code.problem(answer) is None
    assert check_gold(code, row(answer, **entry)) == []


@needs_sandbox
@pytest.mark.parametrize(
    "content",
    [
        SUM.replace("+", "-"),
        "```python\nimport sys\nsys.exit(0)\n```",
        f"```python\n{SUM}",
        f"```text\n{SUM}```",
        f"The function is\n{SUM}",
        f"```python\n{SUM}```\nor rather\n```python\ndef add(a, b):\n    return 3\n```",
        "```python\n" + "x = 1\n" * 100_000 + f"{SUM}```",
    ],
)
def test_wrong_or_no_code_scores_nothing(code: Code, content: str) -> None:
    assert code.score(content, row(TESTS)) == 0.0


@needs_sandbox
def test_a_verdict_says_why(code: Code) -> None:
    wrong = plain_message(SUM.replace("+", "-"))
    assert code.verdict(wrong, row(TESTS)) == (0.0, "failed: a test does not hold (line 1 of the tests)")
    assert code.verdict(plain_message(SUM), row(TESTS)) == (1.0, "passed: every test holds")
    assert code.verdict(plain_message("No."), row(TESTS)) == (0.0, "no program")


@needs_sandbox
def test_broken_tests_are_counted_as_faults(code: Code) -> None:
    assert code.score(SUM, row("assert add(")) == 0.0
    assert code.faults["error"] == 1


@pytest.mark.parametrize(
    ("content", "program"),
    [
        ("```python\na\n```", "a\n"),
        ("x\n```py\na\n```\ny\n```\n3\n```\nz", "a\n"),
        ("```\na\n```", "a\n"),
        ("1. first\n   ```python\n   a\n   ```", "   a\n"),
        ("a = 1", "a = 1"),
        ("```bash\nls\n```", ""),
        ("I think so.", ""),
        ("", ""),
    ],
)
def test_the_program_of_an_answer(content: str, program: str) -> None:
    assert extract(content) == program


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("", "empty"),
        ("assert f(", "no Python"),
        ("f(1)", "assert nothing"),
        ("def verify():\n    assert f(1) == 2", "nothing is run"),
        ("async def test_f():\n    assert f(1) == 2", "nothing is run"),
        ("if __name__ == '__main__':\n    assert f(1) == 2", "nothing is run"),
        ("class TestF:\n    def verify(self):\n        assert f(1) == 2", "nothing is run"),
        ('{"inputs": ["1"], "outputs": []}', "same length"),
        ("[[1, 2]]", "pairs of text"),
        ("[]", "pairs of text"),
        ("3", "pairs of text"),
    ],
)
@needs_sandbox
def test_tests_that_judge_nothing_are_bad_rows(code: Code, answer: str, said: str) -> None:
    assert said in str(code.problem(answer))
    with pytest.raises(BadRow, match=said):  # an entry does not stand in for them
        RowReader("mine", "queries", "code")({"prompt": "?", "answer": answer, "entry": {"entry_point": "f"}}, 1)


@needs_sandbox
def test_a_sandbox_that_does_not_hold_is_told_when_rows_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The walls fail (no namespaces, as in some containers): the first row says so, whether or not it has an entry."""
    monkeypatch.setattr("posttrain.sandbox.pool.faults_of_walls", lambda judge: ["there is a network"])
    for given in ({"answer": TESTS}, {"answer": TESTS, "entry": '{"entry_point": "add"}'}):
        monkeypatch.setattr("posttrain.tasks.registry.get_task", lambda name: Code())
        with pytest.raises(PosttrainError, match="does not hold here: there is a network"):
            RowReader("h", "queries", "code")({"prompt": "?", **given}, 1)


@needs_sandbox
def test_rows_of_humaneval_need_only_a_map(code: Code) -> None:
    """The map that docs/recipe.md gives, on a row as HumanEval has them: helper in the prompt, body as solution."""
    given = {
        "prompt": 'def half(x):\n    return x / 2\n\ndef add(a, b):\n    """The sum."""\n',
        "test": "def check(candidate):\n    assert half(candidate(1, 3)) == 2",
        "entry_point": "add",
    }
    spec = {
        "answer": "{prompt}    pass\n{test}\ncheck({entry_point})",
        "entry": '{{"entry_point": "{entry_point}"}}',
    }
    query = RowReader("h", "queries", "code")(compile_map(spec)(given), 1)
    assert code.score(f"```python\n{SUM}```", query) == 1.0
    assert code.score(f"```python\n{SUM.replace('+', '-')}\ndef half(x):\n    return 2\n```", query) == 0.0


def test_a_recipe_is_refused_where_there_is_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain.tasks.registry import get_task

    get_task.cache_clear()
    monkeypatch.setattr("shutil.which", lambda name: None)
    spec = DataSpec(dataset="some/programs", verifier="code")
    told = [fault for fault in data_faults("programs", spec) if fault.loc == ("data", "programs", "verifier")]
    assert "bubblewrap is not installed" in told[0].what and "apt-get install bubblewrap" in told[0].remedy


@needs_sandbox
def test_it_makes_no_queries(code: Code) -> None:
    with pytest.raises(PosttrainError, match="makes no queries"):
        code.queries(1, 0)
