"""Tasks and verifiers: the gold answer scores 1, anything else 0."""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.errors import PosttrainError
from posttrain.tasks.answers import boxes, final_answer, parse_choice, parse_number
from posttrain.tasks.arithmetic import DIGIT_WORDS, FORMATS, MAX_STEPS, Arithmetic, corpus, format_score
from posttrain.tasks.registry import TASKS, Task, get_task
from posttrain.tasks.task import QUERY_COLUMNS, check_gold, derive_seed, make_query, text_key
from tests.sandboxed import needs_sandbox

ALL_FORMATS = {"plain": 1.0, "twice": 1.0, "words": 1.0}


def row(answer: str, task: str) -> dict[str, Any]:
    return make_query(id="q", prompt="?", answer=answer, task=task, domain="test", key="k")


# --- registry


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=needs_sandbox) if n == "code" else n for n in TASKS if not n.endswith(":")],
)
def test_every_registered_task_is_one(name: str) -> None:
    task = get_task(name)
    assert isinstance(task, Task) and task.name == name and get_task(name) is task


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("arithmetics", "did you mean arithmetic"),
        ("gcd", "did you mean reasoning_gym:gcd"),
        ("reasoning_gym:chain_sums", "did you mean reasoning_gym:chain_sum"),
        ("reasoning_gym:", "reasoning_gym:NAME"),
        ("boxed", "every verifier reads the boxed answer"),
        ("qqqqqqq", "there are arithmetic, choice, .*code, .*exact, .*math, number"),
        ("", "verifier"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, said: str) -> None:
    with pytest.raises(PosttrainError, match=said):
        get_task(name)


@pytest.mark.parametrize("name", ["exact", "number", "choice", "math"])
def test_a_verifier_of_rows_makes_no_queries(name: str) -> None:
    with pytest.raises(PosttrainError, match="makes no queries"):
        get_task(name).queries(3, 0)


def test_seeds_spread() -> None:
    assert len({derive_seed("a", i) for i in range(1000)}) == 1000
    assert derive_seed("a", 1) != derive_seed("a1") and 0 <= derive_seed("a") < 2**31


# --- arithmetic


def recompute(question: str) -> tuple[int, list[str]]:
    """An independent reading of a question: the last digit, and the worked steps."""
    words = question.removesuffix(" twice").removesuffix(" words").removesuffix(" =?").split()
    value, lines = int(words[0]), []
    for word in words[1:]:
        operation, operand = word[1], int(word[2:])
        value = (value + operand if operation == "+" else value - operand if operation == "-" else value * operand) % 10
        lines.append(f"{word}={value}")
    return value, lines


def test_the_documented_example() -> None:
    assert recompute("7 c+5 d*3 e-4 =?") == (2, ["c+5=2", "d*3=6", "e-4=2"])


def test_arithmetic_is_right_and_checks_itself() -> None:
    task = Arithmetic()
    rows = list(task.queries(300, 3, formats=ALL_FORMATS))
    assert len(rows) == 300 and {query["difficulty"] for query in rows} == set(range(1, MAX_STEPS + 1))
    for query in rows:
        assert tuple(query) == QUERY_COLUMNS
        value, lines = recompute(query["prompt"][0]["content"])
        assert query["answer"] == str(value)
        start = query["prompt"][0]["content"].split()[0]
        assert query["reasoning"] == " ".join([start, *lines]) and len(lines) == query["difficulty"]
        assert task.score(query["response"], query) == format_score(query["response"], query) == 1.0
        assert check_gold(task, query) == []


def test_arithmetic_depends_on_its_arguments_only_and_a_longer_run_begins_alike() -> None:
    task = Arithmetic()
    random.seed(1)
    first = list(task.queries(20, 5, formats=ALL_FORMATS, hasty=0.5))
    random.seed(2)
    assert list(task.queries(60, 5, formats=ALL_FORMATS, hasty=0.5))[:20] == first
    assert list(task.queries(20, 6, formats=ALL_FORMATS, hasty=0.5)) != first


def test_there_are_270_problems_of_one_step_whatever_the_format() -> None:
    rows = list(Arithmetic().queries(20000, 0, steps=[1, 1], formats=ALL_FORMATS))
    assert len({query["key"] for query in rows}) == 10 * 3 * 9
    assert len({query["prompt"][0]["content"] for query in rows}) == 3 * 270
    by_key: dict[str, set[str]] = {}
    for query in rows:
        by_key.setdefault(query["key"], set()).add(query["answer"])
    assert all(len(answers) == 1 for answers in by_key.values())


def test_the_key_is_the_problem_without_its_letters() -> None:
    for query in Arithmetic().queries(50, 0, steps=[3, 3], formats=ALL_FORMATS):
        start, *steps = query["prompt"][0]["content"].partition(" =?")[0].split()
        assert query["key"] == start + "".join(step[1:] for step in steps)


def test_hasty_solutions_copy_the_steps_and_jump_to_the_last_result() -> None:
    rows = list(Arithmetic().queries(400, 0, steps=[3, 5], hasty=0.5))
    hasty = [query for query in rows if query["reasoning"].count("=") < query["difficulty"]]
    assert 150 < len(hasty) < 250  # about half of 400
    for query in hasty:
        start, *worked = query["prompt"][0]["content"].split()[0], *recompute(query["prompt"][0]["content"])[1]
        copied = [line.partition("=")[0] for line in worked[:-1]]
        assert query["reasoning"] == " ".join([start, *copied, worked[-1]])


def test_weights_of_steps_and_formats_hold() -> None:
    rows = list(Arithmetic().queries(2000, 0, steps={"1": 3, 2: 1}, formats={"plain": 1, "twice": 3}))
    steps = Counter(query["difficulty"] for query in rows)
    formats = Counter(json.loads(query["entry"])["format"] for query in rows)
    assert set(steps) == {1, 2} and 0.70 < steps[1] / 2000 < 0.80
    assert set(formats) == {"plain", "twice"} and 0.70 < formats["twice"] / 2000 < 0.80


def test_operands_stay_within_the_range_asked_for_and_reach_its_ends() -> None:
    rows = Arithmetic().queries(300, 0, operands=[3, 6])
    assert {int(operand) for query in rows for operand in re.findall(r"[-+*](\d)", query["key"])} == {3, 4, 5, 6}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": [0, 3]}, "steps is"),
        ({"steps": [3, 2]}, "steps is"),
        ({"steps": [1, 9]}, "steps is"),
        ({"steps": 4}, "steps is"),
        ({"steps": {1: -1}}, "steps is"),
        ({"steps": {}}, "steps is"),
        ({"formats": {"plane": 1}}, "plain, twice, words"),
        ({"formats": {"plain": 0}}, "weights of formats"),
        ({"operands": [0, 9]}, "operands is"),
        ({"operands": [6, 3]}, "operands is"),
        ({"operands": 6}, "operands is"),
        ({"operands": [1, "9"]}, "operands is"),
        ({"hasty": 2}, "hasty is a share"),
        ({"step": [1, 2]}, "no option is called 'step'"),
    ],
)
def test_wrong_options_are_refused_before_the_first_row(options: dict[str, Any], said: str) -> None:
    with pytest.raises(PosttrainError, match=said):
        Arithmetic().queries(1, 0, **options)


def test_all_wrong_options_are_told_at_once() -> None:
    with pytest.raises(PosttrainError) as error:
        Arithmetic().queries(1, 0, steps=[0, 1], formats={"x": 1}, hasty=-1, colour="red")
    assert len(error.value.problems) == 4


def arithmetic_query(form: str, digit: int = 2) -> dict[str, Any]:
    return row(str(digit), "arithmetic") | {"entry": json.dumps({"format": form})}


@pytest.mark.parametrize(
    ("form", "content", "score", "shape"),
    [
        ("plain", "\\boxed{2}", 1, 1),
        ("plain", "\n \\boxed{2}\n", 1, 1),
        ("plain", "\\boxed{3}", 0, 1),
        ("plain", "2", 0, 0),
        ("plain", "", 0, 0),
        ("plain", "\\boxed{2", 0, 0),
        ("plain", "\\boxed{02}", 0, 0),
        ("plain", "\\boxed{two}", 0, 0),
        ("plain", "\\boxed{2} \\boxed{2}", 0, 0),
        ("plain", "\\boxed{3} \\boxed{2}", 0, 0),  # several guesses
        ("plain", "\\boxed{0}\\boxed{1}\\boxed{2}", 0, 0),
        ("plain", "c+5=2 \\boxed{2}", 0, 0),  # reasoning moved into the answer
        ("plain", "<think>\\boxed{2}</think>", 0, 0),
        ("plain", "\\boxed{\u0662}", 0, 0),  # an Arabic-Indic 2
        ("plain", "\\boxed{2} words", 0, 0),
        ("twice", "\\boxed{2} \\boxed{2}", 1, 1),
        ("twice", "\\boxed{2}", 0, 0),
        ("twice", "\\boxed{2}\\boxed{2}", 0, 0),
        ("twice", "\\boxed{2} \\boxed{2} \\boxed{2}", 0, 0),
        ("twice", "\\boxed{3} \\boxed{3}", 0, 1),
        ("twice", "\\boxed{3} \\boxed{2}", 0, 0),
        ("words", "\\boxed{two}", 1, 1),
        ("words", "\\boxed{three}", 0, 1),
        ("words", "\\boxed{2}", 0, 0),
        ("words", "\\boxed{Two}", 0, 0),
        ("words", "\\boxed{two three}", 0, 0),
        ("words", "\\boxed{ten}", 0, 0),
    ],
)
def test_arithmetic_scores_are_exact(form: str, content: str, score: float, shape: float) -> None:
    query = arithmetic_query(form)
    assert Arithmetic().score(content, query) == score
    assert format_score(content, query) == shape


@given(st.sampled_from(sorted(FORMATS)), st.integers(0, 9), st.text(alphabet="\\boxed{}0123two \n", max_size=30))
def test_only_the_one_right_text_scores(form: str, digit: int, content: str) -> None:
    query = arithmetic_query(form, digit)
    written = {
        "plain": f"\\boxed{{{digit}}}",
        "twice": f"\\boxed{{{digit}}} \\boxed{{{digit}}}",
        "words": f"\\boxed{{{DIGIT_WORDS[digit]}}}",
    }[form]
    assert Arithmetic().score(content, query) == float(content.strip() == written)
    assert Arithmetic().score(written, query) == 1.0


def test_corpus_shows_every_format_letter_and_flag() -> None:
    lines = list(corpus(300, 0))
    assert len(lines) == 600 and lines == list(corpus(300, 0))
    text = "\n".join(lines)
    for piece in (
        "/think",
        "/no_think",
        " twice",
        " words",
        "\\boxed{seven}",
        "\\boxed{7} \\boxed{7}",
        "user\n",
        "assistant\n",
    ):
        assert piece in text


# --- answers


@pytest.mark.parametrize(
    ("content", "inside"),
    [
        ("\\boxed{2}", ["2"]),
        ("a \\boxed{1} b \\boxed{\\frac{1}{2}} c", ["1", "\\frac{1}{2}"]),
        ("\\boxed{\\boxed{5}}", ["5"]),
        ("\\boxed{\\{1, 2\\}}", ["\\{1, 2\\}"]),
        ("\\boxed{2", []),
        ("\\boxed{2 \\boxed{3}", ["3"]),
        ("\\fbox{4}", ["4"]),
        ("boxed{4}", []),
        ("\\boxed{}", [""]),
        ("\\boxed {6}", ["6"]),
        ("\\boxed{\\boxed{1} \\boxed{2}} \\boxed{x \\boxed{3}}", ["2", "x \\boxed{3}"]),
        ("} \\boxed{7}", ["7"]),
    ],
)
def test_boxes(content: str, inside: list[str]) -> None:
    assert boxes(content) == inside


def test_many_open_boxes_take_linear_time() -> None:
    start = time.process_time()
    assert boxes("\\boxed{" * 100_000) == []
    assert boxes("\\boxed{1} " * 50_000)[-1] == "1"
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("So \\boxed{4}, or rather \\boxed{5}.", "5"),
        ("The answer is **12**.", "12"),
        ("Answer: $x+1$", "x+1"),
        ("first\nThe answer is 3\nThe final answer is: 4.\n", "4"),
        ("He has 3 + 4 = 7.\n#### 7", "7"),
        ("42", "42"),
        ("one line\nand another", None),
        ("", None),
        ("\\boxed{}", None),
    ],
)
def test_final_answer(content: str, answer: str | None) -> None:
    assert final_answer(content) == answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12", Fraction(12)),
        ("-3", Fraction(-3)),
        ("\u22123", Fraction(-3)),
        ("1,234.50", Fraction("1234.5")),
        ("$1,000", Fraction(1000)),
        ("18 dollars", Fraction(18)),
        ("5%", Fraction(5)),
        ("\\frac{1}{2}", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        ("1e3", Fraction(1000)),
        (".5", Fraction(1, 2)),
        ("x = 5", Fraction(5)),
        ("5 or 6", None),
        ("1,2", None),
        ("1 2", None),
        ("2^3", None),
        ("5\u00b2", None),  # 5 squared
        ("x\u2082", None),
        ("x^2", None),
        ("\\sqrt{8}", None),
        ("√8", None),
        ("2\\pi", None),
        ("1\u00bd", None),  # one and a half
        ("\u00bd", Fraction(1, 2)),
        ("1/0", None),
        ("five", None),
        ("1e999999999", None),
        ("9" * 5000, None),
        ("x2", None),
        ("", None),
    ],
)
def test_parse_number(text: str, number: Fraction | None) -> None:
    assert parse_number(text) == number


@given(st.fractions(max_denominator=1000))
def test_every_fraction_is_read_back(value: Fraction) -> None:
    assert parse_number(str(value)) == value
    assert parse_number(f"\\frac{{{value.numerator}}}{{{value.denominator}}}") == value


@given(st.text(max_size=60))
def test_readers_of_answers_never_raise(text: str) -> None:
    parse_number(text), parse_choice(text), final_answer(text), boxes(text)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("C.", "C"),
        ("D) four", "D"),
        ("option A", "A"),
        ("\\text{B}", "B"),
        ("A dog", None),
        ("AB", None),
        ("", None),
        ("A or B", None),
        ("(B) or (C)", None),
        ("B) C)", None),
        ("B. or C", None),
        ("B: (C)", None),
        ("B. C. elegans", "B"),
        ("D) both A and C", "D"),
        ("B) carbon (C)", "B"),
    ],
)
def test_parse_choice(text: str, letter: str | None) -> None:
    assert parse_choice(text) == letter


# --- verifiers


@pytest.mark.parametrize(
    ("task", "answer", "right", "wrong"),
    [
        (
            "exact",
            "Paris",
            ["\\boxed{Paris}", "The answer is Paris.", "Paris", " Paris\n"],
            ["paris", "London", "Paris, London"],
        ),
        ("exact", "a  b\nc", ["a b c", "a  b\nc"], ["a b", "abc"]),
        (
            "number",
            "72",
            ["\\boxed{72}", "#### 72", "The answer is $72.00", "so\nshe has 72 left"],
            ["71", "72 or 73", "7.2"],
        ),
        ("number", "She sold 48/2 = 24.\n#### 24", ["\\boxed{24}"], ["\\boxed{48}"]),
        ("number", "0.5", ["\\boxed{\\frac{1}{2}}", "1/2", "50e-2"], ["0.50001", "2"]),
        ("choice", "B", ["\\boxed{B}", "(B)", "The answer is B.", "B) Paris"], ["A", "A or B", "Because"]),
        ("choice", "(c)", ["C"], ["D"]),
        ("math", "\\frac{1}{2}", ["\\boxed{0.5}", "The answer is $\\frac{2}{4}$."], ["\\boxed{2}", "1 or 0.5"]),
        ("math", "x^2+1", ["\\boxed{1 + x^2}"], ["\\boxed{x^2-1}", "\\boxed{x^2}"]),
        ("math", "(1,2)", ["\\boxed{(1, 2)}"], ["\\boxed{(2, 1)}"]),
        ("math", "cat", ["\\boxed{cat}"], ["\\boxed{act}", "\\boxed{c a t s}"]),
    ],
)
def test_verifiers_of_rows(task: str, answer: str, right: list[str], wrong: list[str]) -> None:
    verifier, query = get_task(task), row(answer, task)
    assert check_gold(verifier, query) == []
    assert [verifier.score(content, query) for content in right] == [1.0] * len(right)
    assert [verifier.score(content, query) for content in wrong] == [0.0] * len(wrong)


def test_the_last_of_several_boxed_answers_counts() -> None:
    query = row("5", "number")
    assert get_task("number").score("\\boxed{4} \\boxed{5}", query) == 1.0
    assert get_task("number").score("\\boxed{5} \\boxed{4}", query) == 0.0


@pytest.mark.parametrize(
    ("task", "answer", "said"),
    [
        ("number", "seven", "not one number"),
        ("choice", "Paris", "not the letter"),
        ("exact", "  ", "empty"),
        ("arithmetic", "12", "one digit"),
    ],
)
def test_a_verifier_says_which_reference_it_cannot_use(task: str, answer: str, said: str) -> None:
    problem = getattr(get_task(task), "problem")(answer)  # noqa: B009  not every task has it
    assert said in problem


def test_math_works_in_threads() -> None:
    query, verifier = row("\\frac{1}{3}", "math"), get_task("math")
    contents = [f"\\boxed{{\\frac{{{n}}}{{{3 * n if n % 2 else 4 * n}}}}}" for n in range(1, 13)]
    with ThreadPoolExecutor(4) as pool:
        scores = list(pool.map(lambda content: verifier.score(content, query), contents))
    assert scores == [1.0 if n % 2 else 0.0 for n in range(1, 13)]


def test_an_endless_power_scores_0_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    import posttrain.tasks.verifiers as verifiers

    monkeypatch.setattr(verifiers, "MATH_DEADLINE", 1.0)
    verifier = verifiers.Math()
    assert verifier.score("\\boxed{9^{9^{9^{9}}}}", row("5", "math")) == 0.0
    assert verifier.faults == {"deadline": 1}
    assert verifier.score("\\boxed{5.0}", row("5", "math")) == 1.0  # a new child serves


@settings(max_examples=50)
@given(st.text(max_size=40), st.text(max_size=40))
def test_text_keys_ignore_case_and_spacing_only(left: str, right: str) -> None:
    assert text_key(f" {left}\t") == text_key(left)
    if left.casefold().split() != right.casefold().split() and left.isascii() and right.isascii():
        assert text_key(left) != text_key(right)
