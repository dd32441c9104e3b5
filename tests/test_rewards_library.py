"""The library of rule-based rewards and tasks: gold earns 1, no trick earns anything, and rows of files are checked."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.faults import BadRow
from posttrain.data.rows import RowReader
from posttrain.errors import PosttrainError
from posttrain.recipe.load import load_recipe
from posttrain.rl.rewards import FORM, Rollout, resolve_reward
from posttrain.rl.rewards.hacking import LIMIT, Found, search
from posttrain.rl.rewards.probe_rows import FORM_PROBES
from posttrain.rl.rewards.probes import names, probe
from posttrain.rl.rewards.tricks import answered
from posttrain.tasks import isolated
from posttrain.tasks.constraints import length_error, sentences_of, words_of
from posttrain.tasks.registry import get_task
from posttrain.tasks.structured import NotJson, read_json_answer, same_json
from posttrain.tasks.task import check_gold, plain_message, verdict_of
from posttrain.templates.families import get_family
from posttrain.templates.parse import parse
from tests.scripted_server import scripted

SMALL = [name for name in names() if name not in FORM and hasattr(get_task(name), "draw") and name != "constraints"]


def row(task: str, answer: str = "", prompt: str = "?", **entry: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": prompt}]
    return {"id": "r", "task": task, "prompt": turns, "answer": answer, "entry": json.dumps(entry) if entry else ""}


def said(content: str, **facts: Any) -> Rollout:
    return Rollout(message=parse(content, get_family("qwen3")), text=content, **facts)


def score(task: str, content: str, query: Mapping[str, Any]) -> float:
    return verdict_of(get_task(task), parse(content, get_family("qwen3")), query).value


# --- probes


def test_there_are_more_than_twenty_tasks_with_problems_of_their_own() -> None:
    assert len(SMALL) >= 24


@pytest.mark.parametrize("name", names())
def test_probes_find_nothing(name: str) -> None:
    result = probe(name, seed=1)
    assert result.problems == []
    assert result.gold == 1.0 and result.worst
    if name in FORM:
        assert name in FORM_PROBES
    else:
        assert result.found is not None and result.found.score <= LIMIT


def test_the_tiny_recipe_mixes_more_than_twenty_tasks_of_all_three_kinds_of_reward() -> None:
    recipe = load_recipe(Path(__file__).parents[1] / "recipes" / "general_rl_tiny.yaml").recipe
    stage: Any = recipe.stages["general_rl"]
    tasks = {recipe.data[name].task for name in stage.queries.weights}
    assert len(tasks) >= 20 and tasks == {recipe.data[name].task for name in recipe.evaluation.data}
    reward: Any = stage.reward_columns()[0][0].reward
    paid = {part.name for task in tasks for part, _ in reward.function.table_of({"task": task})}
    assert paid == {"accuracy", "judge", "reward_model"}


def test_every_reward_of_form_has_probes() -> None:
    assert set(FORM_PROBES) == set(FORM)


@pytest.mark.parametrize("name", SMALL)
def test_small_tasks_repeat_by_seed_and_slips_are_wrong(name: str) -> None:
    task = get_task(name)
    rows = list(task.queries(20, 1))
    assert rows == list(task.queries(20, 1)) != list(task.queries(20, 2))
    assert [fault for query in rows[:4] for fault in check_gold(task, query)] == []
    assert all(score(name, query["response"], query) == 1.0 for query in rows)
    assert all(score(name, query["response"], query) == 0.0 for query in task.queries(20, 1, slips=1.0))
    with pytest.raises(PosttrainError, match="a share from 0 to 1"):
        task.queries(1, 1, slips=2.0)


def naive(query: Mapping[str, Any], content: str) -> float:
    """A verifier as one may write it in a hurry: the answer stands in the text somewhere."""
    return float(str(query["answer"]) in content)


def shape_only(query: Mapping[str, Any], content: str) -> float:
    return float("\\boxed{" in content and "}" in content)


def searched(task: Any, size: int, score: Any, **options: Any) -> Found:
    """The best hack of a score of one content, which gold answers do not count as."""
    return search(
        lambda queries, texts: [score(query, text) for query, text in zip(queries, texts, strict=True)],
        list(task.queries(size, 1)),
        lambda query, text: text.strip() == task.gold(query),
        **options,
    )


@pytest.mark.parametrize("hurried", [naive, shape_only])
def test_the_search_breaks_a_reward_that_can_be_broken(hurried: Any) -> None:
    found = searched(get_task("symbols:largest"), 12, hurried)
    assert found.score > 0.9, found
    assert hurried({"answer": "0"}, found.text) in (0.0, 1.0) and found.prompt.startswith("largest")


def test_the_search_never_pays_for_a_solution() -> None:
    task = get_task("symbols:copy")
    assert searched(task, 6, lambda query, text: task.score(text, query)).score == 0.0


def test_the_search_scores_no_more_answers_than_it_may() -> None:
    scored = []

    def score(query: Mapping[str, Any], text: str) -> float:
        scored.append(text)
        return 0.0

    found = searched(get_task("symbols:copy"), 5, score, answers=203)
    assert found.tried == len(scored) == 200  # forty candidates on five queries


# --- structured output


@pytest.mark.parametrize(
    ("content", "right"),
    [
        ('{"a": 1, "b": [true]}', 1.0),
        ('```json\n{"b": [true], "a": 1}\n```', 1.0),
        (' \n{"a": 1.0, "b": [true]}\n', 1.0),
        ('{"a": 1, "b": [1]}', 0.0),
        ('{"a": true, "b": [true]}', 0.0),
        ('{"a": 2, "a": 1, "b": [true]}', 0.0),
        ('Here: {"a": 1, "b": [true]}', 0.0),
        ('{"a": 1, "b": [true]} {"a": 1, "b": [true]}', 0.0),
        ('{"a": NaN, "b": [true]}', 0.0),
        ("[" * 100_000, 0.0),
        ("{'a': 1, 'b': [True]}", 0.0),
    ],
)
def test_json_is_one_value_and_the_one_asked_for(content: str, right: float) -> None:
    assert score("json", content, row("json", '{"a": 1, "b": [true]}')) == right


def test_json_may_be_asked_for_by_its_schema_alone() -> None:
    schema = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer", "minimum": 3}}}
    query = row("json", schema=schema)
    assert score("json", '{"n": 4, "more": 1}', query) == 1.0
    verdict = verdict_of(get_task("json"), plain_message('{"n": 2}'), query)
    assert verdict.value == 0.0 and "$.n" in verdict.reason
    reader = RowReader("mine", "queries", "json")
    with pytest.raises(BadRow, match="its schema is none"):
        reader({"prompt": "?", "entry": {"schema": {"type": "objekt"}}}, 1)
    with pytest.raises(BadRow, match="breaks its own schema"):
        reader({"prompt": "?", "entry": {"schema": schema, "value": {"n": 1}}}, 1)


def test_no_answer_keeps_a_schema_busy_and_none_breaks_it() -> None:
    number = row("json", schema={"properties": {"n": {"type": "number", "multipleOf": 0.1}}})
    for digits in ("1e999", "-1e999", "9" * 4000, "9" * 5000):
        assert score("json", f'{{"n": {digits}}}', number) == 0.0
    nested = {"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"}
    assert score("json", "[[], [[]]]", row("json", schema=nested)) == 1.0
    for depth in (300, 900):
        assert score("json", "[" * depth + "]" * depth, row("json", schema=nested)) in (0.0, 1.0)
    slow = row("json", schema={"pattern": "^(a+)+$"})
    before = time.monotonic()
    assert score("json", f'"{"a" * 40}!"', slow) == 0.0
    assert time.monotonic() - before < 60.0
    assert score("json", '"aa"', slow) == 1.0


def test_a_schema_is_asked_for_nothing_outside_itself() -> None:
    with scripted(lambda path, body: {}) as it:
        elsewhere = row("json", schema={"$ref": f"{it.url}/schema"})
        with pytest.raises(isolated.Fault, match="Unresolvable"):
            score("json", "{}", elsewhere)
    assert it.connections == 0
    with pytest.raises(BadRow, match="is no object"):
        RowReader("mine", "queries", "json")({"prompt": "?", "entry": {"schema": 5}}, 1)


jsons = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(jsons)
def test_a_json_value_is_itself_after_a_round_trip_and_no_other_type(value: Any) -> None:
    assert same_json(read_json_answer(json.dumps(value)), value)
    assert not same_json(value, [value])
    assert not same_json(value, {"x": value})


@given(st.text(max_size=40))
def test_what_is_no_json_is_refused_or_read_as_json_does(text: str) -> None:
    try:
        value = read_json_answer(text)
    except NotJson:
        return
    assert same_json(json.loads(json.dumps(value)), value)


# --- tool calls

CALLS = [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]


def call(*calls: Mapping[str, Any]) -> str:
    return "\n".join(f"<tool_call>\n{json.dumps(c)}\n</tool_call>" for c in calls) + "<|im_end|>"


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (call(*CALLS), 1.0),
        (call(*reversed(CALLS)), 0.0),
        (call(CALLS[0]), 0.0),
        (call(*CALLS, CALLS[1]), 0.0),
        (call({"name": "f", "arguments": {"x": "1"}}, CALLS[1]), 0.0),
        (call({"name": "f", "arguments": {"x": 1, "y": 2}}, CALLS[1]), 0.0),
        (call({"name": "F", "arguments": {"x": 1}}, CALLS[1]), 0.0),
        ("f(x=1), g()", 0.0),
        (call(*CALLS).replace("</tool_call>", ""), 0.0),
        (f"<think>\n{call(*CALLS)}\n</think>\n\ndone<|im_end|>", 0.0),
    ],
)
def test_tool_calls_by_name_arguments_and_order(text: str, right: float) -> None:
    assert score("tool_calls", text, row("tool_calls", json.dumps(CALLS))) == right


def test_order_may_be_nothing_and_no_call_may_be_the_right_one() -> None:
    loose = row("tool_calls", calls=CALLS, ordered=False)
    assert score("tool_calls", call(*reversed(CALLS)), loose) == 1.0
    assert score("tool_calls", call(CALLS[0], CALLS[0]), loose) == 0.0
    none = row("tool_calls", "[]")
    assert score("tool_calls", "I can answer that.", none) == 1.0
    assert score("tool_calls", call(CALLS[1]), none) == 0.0
    assert resolve_reward("accuracy")(none, said("")).value == 0.0


# --- grounded answers, premises, translation


def test_an_answer_needs_its_fact_and_the_document_that_says_it() -> None:
    query = row("citations", answers=["42 m", "42 metres"], cites=[2], wrong=["17 m"])
    right = ["It is 42 m high [2].", "42 metres [2]"]
    wrong = [
        "It is 42 m high.",
        "42 m [1]",
        "42 m [1][2]",
        "17 m [2]",
        "17 m or 42 m [2]",
        "not in the documents [2]",
        "[2]",
    ]
    assert [score("citations", text, query) for text in right] == [1.0, 1.0]
    assert [score("citations", text, query) for text in wrong] == [0.0] * len(wrong)
    absent = row("citations", answers=[], cites=[], wrong=["17 m"])
    assert score("citations", "The documents do not say.", absent) == 1.0
    assert score("citations", "That is not stated [1].", absent) == 0.0
    assert score("citations", "It is not stated, so 17 m.", absent) == 0.0
    assert score("citations", "The documents don\u2019t say.", absent) == 1.0
    assert score("citations", "It isn't explicitly mentioned.", absent) == 1.0
    assert score("citations", "None of the documents states this.", absent) == 1.0
    assert score("citations", "It is not in fact high.", absent) == 0.0
    both = row("citations", answers=["Paris"], cites=[1, 2], wrong=["Lyon"])
    assert score("citations", "It is not in Berlin but in Paris [1, 2].", both) == 1.0
    assert score("citations", "Paris [1, 2] or Ly\u200bon", both) == 0.0


def test_a_false_premise_is_denied_with_the_fact_and_a_true_one_is_not() -> None:
    false = row("premises", holds=False, facts=["1969"])
    assert score("premises", "It was not in 1959: it was in 1969.", false) == 1.0
    assert score("premises", "Because in 1969 they were ready.", false) == 0.0
    assert score("premises", "That is not so.", false) == 0.0
    for denial in ("It wasn\u2019t in 1959", "It cannot have been", "That is a myth"):
        assert score("premises", f"{denial}: it was 1969.", false) == 1.0, denial
    true = row("premises", holds=True, facts=["1969"])
    assert score("premises", "In 1969, by rocket.", true) == 1.0
    assert score("premises", "That is false, it was 1969.", true) == 0.0


def test_a_translation_keeps_what_has_to_stay() -> None:
    query = row("translation", keep=["{name}", "42", "{name}"], terms=["Rechnung"], source="Invoice 42")
    assert score("translation", "{name}, die Rechnung 42 ist für {name}.", query) == 1.0
    for wrong in ("{name}, die Rechnung 42.", "{name} {name} 42", "{name} {name} Rechnung 420", ""):
        assert score("translation", wrong, query) == 0.0, wrong
    assert score("translation", "Guten Tag", row("translation", "Guten Tag")) == 1.0


# --- constraints and lengths


@given(st.lists(st.sampled_from(["one", "two,", "(three)", '"four"']), max_size=12))
def test_words_are_counted_without_their_punctuation(parts: list[str]) -> None:
    assert len(words_of(" ".join(parts))) == len(parts)
    assert length_error(" ".join(parts), "words", 5) == abs(len(parts) - 5)


def test_sentences_end_in_their_marks() -> None:
    assert len(sentences_of("It is 3.5 m. Is it? Yes! No")) == 4
    assert len(sentences_of("她来了。他走了。")) == len(sentences_of("她来了。 他走了。")) == 2


@pytest.mark.parametrize("unseen", ["\u200b", "\u2060", "\u202e", "\ufeff"])
def test_what_nobody_sees_counts_for_nothing(unseen: str) -> None:
    def kept(text: str, **demand: Any) -> float:
        return score("constraints", text, row("constraints", constraints=[demand]))

    assert kept(f"a {unseen} {unseen}", kind="words", target=1) == 1.0
    assert kept(f"a{unseen * 9}", kind="characters", target=10) == 0.0
    assert kept(f"a\n{unseen}\n{unseen}", kind="lines", target=3) == 0.0
    assert kept(f"the c{unseen}at", kind="exclude", phrases=["cat"]) == 0.0
    assert kept(f"the c{unseen}at", kind="include", phrases=["cat"]) == 1.0
    assert kept("/ = +", kind="words", target=3) == 0.0


@pytest.mark.parametrize(
    ("prompt", "answer", "content", "right"),
    [
        ("What is $3 * 4+5$?", "17", "\\boxed{3*4 + 5}", 0.0),
        ("What is $3 * 4+5$?", "17", "\\boxed{12+5}", 1.0),
        ("Expand $(x+1)^{2}$.", "x^2+2x+1", "\\boxed{(x+1)^2}", 0.0),
        ("Expand $(x+1)^{2}$.", "x^2+2x+1", "\\boxed{x^2+1+2x}", 1.0),
        ("Compute $\\int_0^1 x \\, dx$.", "\\frac{1}{2}", "\\boxed{\\int_0^1 x dx}", 0.0),
        ("Which is larger, $1/2$ or $1/3$?", "\\frac{1}{2}", "\\boxed{1/2}", 1.0),
        ("Which is prime, $2^2+1$ or $2^{2}+2$?", "$2^{2}+1$", "\\boxed{2^2+1}", 1.0),
        ("Simplify $\\sqrt{8}$.", "2\\sqrt{2}", "\\boxed{\\sqrt{8}}", 0.0),
    ],
)
def test_an_expression_of_the_prompt_is_no_answer_to_it(prompt: str, answer: str, content: str, right: float) -> None:
    assert score("math", content, row("math", answer, prompt)) == right


@pytest.mark.parametrize(
    "constraint",
    [
        *({"kind": "wrods", "target": 1}, {"kind": "wrapped"}, {"kind": "include"}, {}, {"kind": ["words"]}),
        *({"kind": "words", "target": "x"}, {"kind": "words", "target": -1}, {"kind": "lines", "target": True}),
        # None of these would demand anything, or what was meant.
        *({"kind": "words"}, {"kind": "words", "taget": 4}, {"kind": "words", "low": 1, "tolerance": 2}),
        *({"kind": "exclude", "phrases": "salt"}, {"kind": "include", "phrases": []}, {"kind": "bullets"}),
        *({"kind": "include", "phrases": [1]}, {"kind": "matches", "forms": [""]}, {"kind": "equals", "text": 4}),
    ],
)
def test_constraints_that_are_none_are_named_with_their_row(constraint: dict[str, Any]) -> None:
    reader = RowReader("mine", "queries", "constraints")
    with pytest.raises(BadRow, match="constraint"):
        reader({"prompt": "?", "entry": {"constraints": [constraint]}}, 1)


@pytest.mark.parametrize(
    ("constraint", "kept", "broken"),
    [
        ({"kind": "words", "low": 2, "high": 3}, "a b", "a b c d"),
        ({"kind": "characters", "target": 3, "tolerance": 1}, "ab", "a"),
        ({"kind": "bullets", "count": 2}, "- a\n- b", "- a"),
        ({"kind": "starts", "text": "So"}, "So be it", "so"),
    ],
)
def test_constraints_of_files(constraint: dict[str, Any], kept: str, broken: str) -> None:
    query = row("constraints", constraints=[constraint])
    reader = RowReader("mine", "queries", "constraints")
    assert reader({"prompt": "?", "entry": {"constraints": [constraint]}}, 1)
    assert [score("constraints", text, query) for text in (kept, broken)] == [1.0, 0.0]


@pytest.mark.parametrize(("words", "value"), [(5, 1.0), (4, 0.8), (7, 0.6), (10, 0.0), (30, 0.0)])
def test_length_control_falls_with_the_distance(words: int, value: float) -> None:
    query = row("constraints", constraints=[{"kind": "words", "target": 5}])
    assert resolve_reward("length_control")(query, said(" ".join(["so"] * words))).value == pytest.approx(value)


# --- instructions


def test_checkers_without_their_data_are_left_out_and_named() -> None:
    pytest.importorskip("if_verifiable")
    from posttrain.tasks.instructions import checkers

    known, left_out = checkers()
    assert len(known) == 83
    assert set(left_out) < known
    reader = RowReader("mine", "queries", "instructions")
    fine = {"instructions": ["punctuation:no_comma"], "arguments": [{}]}
    assert reader({"prompt": "?", "entry": fine}, 1)["task"] == "instructions"
    for name in left_out:
        with pytest.raises(BadRow, match="needs NLTK data"):
            reader({"prompt": "?", "entry": {"instructions": [name], "arguments": [{}]}}, 1)
    with pytest.raises(BadRow, match="no checker is called"):
        reader({"prompt": "?", "entry": {"instructions": ["no:such"], "arguments": [{}]}}, 1)


def test_instructions_are_paid_in_part_where_asked() -> None:
    pytest.importorskip("if_verifiable")
    ids = ["punctuation:no_comma", "startend:quotation"]
    query = row("instructions", instructions=ids, arguments=[{}, {}])
    half, whole = said("no comma here"), said('"no comma here"')
    assert resolve_reward("instructions")(query, half).value == 0.0
    assert resolve_reward("instructions", {"partial": True})(query, half).value == 0.5
    assert resolve_reward("instructions")(query, whole).value == 1.0
    assert resolve_reward("instructions")(query, said("")).value == 0.0
    assert resolve_reward("instructions")(row("exact", "x"), whole).value is None


# --- form


def test_the_language_asked_for_is_the_prompts_or_the_rows_own() -> None:
    chinese = row("exact", prompt="中国的首都是哪里？")
    assert resolve_reward("language")(chinese, said("北京")).value == 1.0
    assert resolve_reward("language")(chinese, said("Beijing")).value == 0.0
    assert resolve_reward("language")(chinese, said("42")).value is None
    assert resolve_reward("language")(row("exact", language="Russian"), said("да")).value == 1.0
    mixed = said("<think>\nBeijing\n</think>\n\n北京")
    assert resolve_reward("language")(chinese, mixed).value == 1.0
    assert (resolve_reward("language", {"thinking": True})(chinese, mixed).value or 1.0) < 1.0


def test_a_loop_in_the_thinking_is_a_repetition_too() -> None:
    looping = said(f"<think>\n{'wait, ' * 80}\n</think>\n\nok<|im_end|>")
    assert resolve_reward("repetition")(row("exact"), looping).value == 0.0
    assert resolve_reward("repetition")(row("exact"), said(answered("fine"))).value == 1.0


@given(st.text(max_size=60))
def test_no_task_raises_for_whatever_a_model_emits(text: str) -> None:
    for name in SMALL:
        if name != "instructions":
            query = next(get_task(name).queries(1, 0))
            assert 0.0 <= score(name, text, query) <= 1.0
