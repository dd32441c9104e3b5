"""Worked solutions of reasoning-gym's tasks: they end at the answer, and a hasty one shows no work."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import PosttrainError
from posttrain.tasks.registry import get_task
from posttrain.tasks.worked import WORKED, worked_solution

SMALL = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}


def expression(text: str, answer: str, *, hasty: bool = False) -> str:
    return worked_solution("chain_sum", {"metadata": {"expression": text}, "answer": answer}, hasty=hasty)


@pytest.mark.parametrize("member", sorted(WORKED))
def test_worked_solutions_end_at_an_answer_that_scores_1(member: str) -> None:
    task = get_task(f"reasoning_gym:{member}")
    for hasty in (0.0, 1.0):
        for query in task.queries(40, 3, worked=True, hasty=hasty):
            assert task.score(query["response"], query) == 1.0
            last = query["reasoning"].splitlines()[-1].replace(" ", "")
            assert last.endswith(query["answer"]), query["reasoning"]
    plain = next(task.queries(1, 3))
    assert plain["reasoning"] == ""


@pytest.mark.parametrize(
    ("text", "answer", "steps"),
    [
        ("12 + 34 - 5", "41", ["12 + 34 = 46", "46 - 5 = 41"]),
        ("20 - 3 * 4", "8", ["3 * 4 = 12", "20 - 12 = 8"]),
        ("( 20 - 3 ) * -4", "-68", ["20 - 3 = 17", "17 * -4 = -68"]),
        ("-( 6 / 3 ) - 1", "-3", ["6 / 3 = 2", "-(2) = -2", "-2 - 1 = -3"]),
        ("7", "7", ["7 = 7"]),
    ],
)
def test_an_expression_is_worked_one_operation_a_line(text: str, answer: str, steps: list[str]) -> None:
    assert expression(text, answer).splitlines() == steps
    assert expression(text, answer, hasty=True) == f"{text} = {answer}"


@given(st.lists(st.tuples(st.sampled_from("+-"), st.integers(-99, 99)), min_size=1, max_size=5), st.integers(-99, 99))
def test_running_sums_hold_line_by_line(terms: list[tuple[str, int]], first: int) -> None:
    text = " ".join([str(first), *(f"{sign} {term}" for sign, term in terms)])
    lines = expression(text, str(eval(text))).splitlines()
    assert len(lines) == len(terms)
    value = str(first)
    for line, (sign, term) in zip(lines, terms, strict=True):
        left, _, right = line.partition(" = ")
        assert left == f"{value} {sign} {term}" and eval(left) == int(right)
        value = right


def test_letters_are_counted_word_by_word() -> None:
    item: dict[str, Any] = {"answer": "2", "metadata": {"target_letter": "o", "span": ["One", "more", "try"]}}
    assert worked_solution("letter_counting", item) == "O n e: 1\nm o r e: 2\nt r y: 2"
    assert worked_solution("letter_counting", item, hasty=True) == "o in One more try: 2"


def test_an_item_whose_answer_is_not_what_it_works_out_to_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """Without parentheses the library forgets that multiplication goes first."""
    options = {**SMALL, "operators": ["+", "*"], "allow_parentheses": False, "allow_negation": False}
    task = get_task("reasoning_gym:basic_arithmetic")
    asked = [json.loads(json.loads(row["entry"])["item"]) for row in task.queries(60, 1, **options)]
    wrong = [item for item in asked if eval(item["metadata"]["expression"]) != int(item["answer"])]
    assert wrong
    with pytest.raises(ValueError, match=r" is .*, not "):
        worked_solution("basic_arithmetic", wrong[0])
    rows = list(task.queries(60, 1, worked=True, **options))
    assert len(rows) == 60 and "an item is left out" in caplog.text
    kept = [json.loads(json.loads(row["entry"])["item"]) for row in rows]
    assert all(eval(item["metadata"]["expression"]) == int(item["answer"]) for item in kept)


@pytest.mark.parametrize(
    ("member", "options", "match"),
    [
        ("sudoku", {"worked": True}, "has no worked solutions(?s:.*)these tasks have: basic_arithmetic"),
        ("chain_sum", {"worked": True, "hasty": 1.5}, "hasty is a share from 0 to 1, not 1.5"),
        ("chain_sum", {"worked": True, "hasty": True}, "hasty is a share"),
        ("chain_sum", {"hasty": 0.5}, "hasty without"),
    ],
)
def test_options_that_mean_nothing_are_refused(member: str, options: dict[str, Any], match: str) -> None:
    with pytest.raises(PosttrainError, match=match):
        get_task(f"reasoning_gym:{member}").queries(4, 0, **options)
