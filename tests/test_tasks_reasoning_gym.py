"""reasoning-gym's tasks through our doors, and the child processes they run in."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import PosttrainError
from posttrain.tasks import gym_worker, isolated
from posttrain.tasks.reasoning_gym import EXCLUDED, INSTRUCTION, NAMES, ReasoningGym
from posttrain.tasks.registry import get_task
from posttrain.tasks.task import check_gold

# Three of them store tuples, three are evaluated by their scorers, two raise, one answers in several lines.
SAMPLE = [
    *("arc_1d", "basic_arithmetic", "binary_matrix", "chain_sum", "complex_arithmetic", "countdown", "gcd", "puzzle24"),
    *("knights_knaves", "letter_counting", "number_sorting", "polynomial_multiplication", "prime_factorization"),
    *("rearc", "syllogism"),
]


def test_the_names_are_the_installed_library_s() -> None:
    assert sorted(NAMES) == gym_worker.names() and len(NAMES) == 106


@pytest.mark.parametrize("name", SAMPLE)
def test_the_gold_answer_scores_1_and_rubbish_0(name: str) -> None:
    task = get_task(f"reasoning_gym:{name}")
    rows = list(task.queries(4, 11))
    assert len(rows) == 4
    for query in rows:
        assert check_gold(task, query) == []
        assert task.score(query["answer"], query) == 1.0  # without the box too
        assert task.score(f"Let me see. So it is \\boxed{{{query['answer']}}}, I think.", query) == 1.0
        assert query["prompt"][0]["content"].endswith(INSTRUCTION) and query["domain"] != "other"


@pytest.mark.parametrize("name", sorted(EXCLUDED))
def test_unsound_tasks_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(PosttrainError) as error:
        get_task(f"reasoning_gym:{name}")
    assert EXCLUDED[name] in str(error.value)


@pytest.mark.parametrize("name", sorted(set(EXCLUDED) - {"composite"}))
def test_the_reasons_are_still_true(name: str) -> None:
    """Each excluded task really rejects its own answer, or pays for rubbish: if the library mends it, take it in."""
    import reasoning_gym

    dataset = reasoning_gym.create_dataset(name, size=4, seed=1)
    golds = [dataset.score_answer(dataset[i]["answer"], dataset[i]) for i in range(4)]
    rubbish = [dataset.score_answer("zzz", dataset[i]) for i in range(4)]
    assert max(golds) < 1 or max(rubbish) == 1


def test_items_whose_own_answer_fails_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Some of gsm_symbolic's items answer with a number that its scorer does not read."""
    task = get_task("reasoning_gym:gsm_symbolic")
    rows = list(task.queries(400, 0))
    assert len(rows) == 400 and "own answer scores" in caplog.text and "items left out, 400 made" in caplog.text
    assert all(task.score(query["answer"], query) == 1.0 for query in rows[:20])


def test_a_wrong_answer_scores_0_where_the_library_pays_a_part() -> None:
    exact, partial = get_task("reasoning_gym:chain_sum"), {"partial": True}
    query = next(exact.queries(1, 0))
    padded = f"{query['answer']}0"  # contains the answer: the library pays its share of the length
    assert exact.score(padded, query) == 0.0
    assert 0.0 < exact.score(padded, next(exact.queries(1, 0, **partial))) < 1.0


def test_neighbouring_seeds_have_nothing_in_common() -> None:
    """The library's own seeds 1 and 2 share all items but one."""
    task = get_task("reasoning_gym:chain_sum")
    keys = [{query["key"] for query in task.queries(50, seed)} for seed in (1, 2)]
    assert len(keys[0]) == 50 and not keys[0] & keys[1]


@pytest.mark.parametrize("name", ["word_ladder", "isomorphic_strings"])
def test_hash_seeds_make_no_difference(name: str) -> None:
    keys = f"[query['key'] for query in get_task('reasoning_gym:{name}').queries(4, 5)]"
    script = f"import json; from posttrain.tasks.registry import get_task; print(json.dumps({keys}))"
    runs = [
        subprocess.run(
            [sys.executable, "-c", script], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        )
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout and len(json.loads(runs[0].stdout)) == 4


def test_options_are_passed_on_and_checked() -> None:
    task = get_task("reasoning_gym:chain_sum")
    query = next(task.queries(1, 0, min_terms=6, max_terms=6, instruction=""))
    assert len(query["prompt"][0]["content"].split("=")[0].replace("-", "+").split("+")) == 6
    assert task.score(query["answer"], query) == 1.0
    with pytest.raises(PosttrainError, match="no option is called terms; chain_sum has min_terms, max_terms"):
        task.queries(1, 0, terms=6)
    with pytest.raises(PosttrainError, match="chain_sum: options"):
        task.queries(1, 0, min_terms=6, max_terms=2)
    with pytest.raises(PosttrainError, match="level is a number"):
        task.queries(1, 0, level=[3, 1])
    with pytest.raises(PosttrainError, match="acre has no levels"):
        get_task("reasoning_gym:acre").queries(1, 0, level=1)


def test_levels_make_problems_harder_and_are_the_difficulty() -> None:
    rows = list(get_task("reasoning_gym:chain_sum").queries(30, 0, level=[0, 2]))
    assert {query["difficulty"] for query in rows} == {0, 1, 2}
    terms: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for query in rows:
        terms[query["difficulty"]].append(json.loads(json.loads(query["entry"])["item"])["metadata"]["num_terms"])
    assert max(terms[0]) < sum(terms[2]) / len(terms[2])


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("spiral_matrix", "(lambda: __import__('pathlib').Path('{0}').touch())()"),
        ("string_insertion", "__import__('pathlib').Path('{0}').touch() or []"),
        ("binary_matrix", "[__import__('pathlib').Path('{0}').touch()]"),
        ("n_queens", "[[__import__('pathlib').Path('{0}').touch()]]"),
        ("countdown", "__import__('pathlib').Path('{0}').touch()"),
        ("simple_integration", "open('{0}', 'w')"),
        ("polynomial_multiplication", "().__class__.__base__.__subclasses__()"),
    ],
)
def test_code_in_an_answer_is_not_run(name: str, answer: str, tmp_path: Any) -> None:
    target = tmp_path / "written"
    task = get_task(f"reasoning_gym:{name}")
    query = next(task.queries(1, 0))
    assert task.score(answer.replace("{0}", str(target)), query) == 0.0
    assert not target.exists()


@pytest.mark.parametrize("answer", ["9**9**9**9", "2**(10**9)", "9**99**9", "x" * 100_000, "factorial(10**8)"])
@pytest.mark.parametrize("name", ["countdown", "simple_integration"])
def test_endless_answers_score_0_at_once(name: str, answer: str) -> None:
    task = get_task(f"reasoning_gym:{name}")
    query = next(task.queries(1, 0))
    task.score("1", query)  # starts the child
    start = time.monotonic()
    assert task.score(answer, query) == 0.0
    assert time.monotonic() - start < 3


def test_scorers_that_pay_for_wrong_answers_are_held_back() -> None:
    real = get_task("reasoning_gym:complex_arithmetic")
    assert [real.score(text, next(real.queries(1, 0))) for text in ("nan", "nan+nani", "NaN", "nanj")] == [0.0] * 4
    make24 = get_task("reasoning_gym:puzzle24")
    rows = list(make24.queries(4, 0))
    scores = [[make24.score(other["answer"], query) for other in rows] for query in rows]
    assert scores == [[float(i == j) for j in range(4)] for i in range(4)]


def test_a_scorer_that_raises_scores_0_and_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    task = ReasoningGym("prime_factorization")
    query = next(task.queries(1, 0))
    assert [task.score(text, query) for text in ("two times three", "a b", query["answer"])] == [0.0, 0.0, 1.0]
    assert task.faults == {"raised": 2}
    assert sum("scorer failed" in record.message for record in caplog.records) == 1


def test_reasoning_gym_scores_in_threads() -> None:
    task = get_task("reasoning_gym:gcd")
    rows = list(task.queries(12, 3))
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda query: task.score(query["answer"], query), rows)) == [1.0] * 12


def test_our_process_keeps_its_random_numbers_and_does_not_import_the_library() -> None:
    script = (
        "import random, sys; random.seed(1); from posttrain.tasks.registry import get_task;"
        "task = get_task('reasoning_gym:acre'); query = next(task.queries(1, 0)); task.score('on', query);"
        "assert 'reasoning_gym' not in sys.modules and 'sympy' not in sys.modules; print(random.random())"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout
    assert float(out) == random.Random(1).random()


# --- what an entry is stored as

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.fractions(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.tuples(st.integers()), inner, max_size=3)
        | st.frozensets(st.integers(), max_size=3)
        | st.sets(st.text(max_size=2), max_size=3)
    ),
    max_leaves=12,
)


def same(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


@given(values)
def test_entries_come_back_with_their_types(value: Any) -> None:
    assert same(gym_worker.decode(json.loads(json.dumps(gym_worker.encode(value)))), value)


def test_a_dictionary_that_looks_like_a_mark_comes_back() -> None:
    value = {"__type__": "tuple", "items": [1]}
    assert gym_worker.decode(json.loads(json.dumps(gym_worker.encode(value)))) == value


# --- child processes


def test_what_a_call_raises_is_told() -> None:
    with pytest.raises(isolated.Fault, match="ZeroDivisionError") as fault:
        isolated.call("operator:truediv", 1, 0, deadline=5)
    assert fault.value.kind == "raised"
    assert isolated.call("operator:truediv", 1, 2, deadline=5) == 0.5


def test_a_deadline_ends_a_call_and_the_next_one_works() -> None:
    start = time.monotonic()
    with pytest.raises(isolated.Fault) as fault:
        isolated.call("operator:pow", 9, 9**9, deadline=0.5)
    assert fault.value.kind == "deadline" and time.monotonic() - start < 30
    assert isolated.call("operator:pow", 2, 3, deadline=5) == 8


def test_a_death_is_told_and_the_next_call_works() -> None:
    with pytest.raises(isolated.Fault) as fault:
        isolated.call("os:_exit", 3, deadline=5)
    assert fault.value.kind == "died"
    assert isolated.call("operator:add", 2, 3, deadline=5) == 5


def test_a_result_that_is_no_json_is_told() -> None:
    with pytest.raises(isolated.Fault) as fault:
        isolated.call("builtins:complex", 1, 2, deadline=5)
    assert fault.value.kind == "raised"


def test_what_a_library_prints_does_not_disturb() -> None:
    assert isolated.call("builtins:print", '["item", 1]', deadline=5) is None


def test_a_stream_can_be_left_half_way() -> None:
    numbers = isolated.stream("itertools:count", 1, deadline=5)
    assert [next(numbers), next(numbers)] == [1, 2]
    numbers.close()  # type: ignore[attr-defined]


def test_a_child_ends_with_its_parent() -> None:
    script = (
        "import os, signal; from posttrain.tasks import isolated;"
        "print(isolated.call('os:getpid', deadline=5), flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    child = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout)
    for _ in range(100):
        if not os.path.exists(f"/proc/{child}"):
            return
        time.sleep(0.1)
    pytest.fail("the child outlived its parent")
