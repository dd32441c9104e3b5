"""The cold start's query and response filters: each catches what it is for, and leaves good samples alone."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from posttrain.data.decontamination import Method
from posttrain.data.funnel import EXAMPLES, Drop, Funnel
from posttrain.sft import answers
from posttrain.sft.languages import latin_languages, script_shares
from posttrain.sft.query_filters import (
    BalanceDomains,
    QueryFilters,
    annotated_domain,
    balanced,
    domains_of,
    not_verifiable,
    several_questions,
)
from posttrain.sft.repetition import duplicate_line_share, looped_tail, repeated_share
from posttrain.sft.reserved import Reserved
from posttrain.sft.response_filters import (
    Disagreement,
    Guessing,
    LanguageMixing,
    Repetition,
    Response,
    ResponseFilter,
    ResponseFilters,
    Surroundings,
    TooSimilar,
    WrongAnswer,
    score_with_task,
)
from posttrain.tasks.registry import get_task
from posttrain.tasks.task import make_query
from posttrain.templates.families import Mode

TIMES = (
    "To multiply 17 by 24, split 24 into 20 and 4. First, 17 times 20 is 340. Then 17 times 4 is 68. "
    "Adding both parts, 340 plus 68 equals 408. To check, 24 times 17 is 24 times 10 plus 24 times 7, "
    "which is 240 plus 168, and that is 408 again. So the answer is 408."
)


def query(text: str = "What is 17 times 24?", answer: str = "408", **more: Any) -> dict[str, Any]:
    given = {"id": "q", "prompt": text, "answer": answer, "task": "number", "domain": "", "key": text}
    return make_query(**given | more)


def response(
    reasoning: str = TIMES, content: str = "\\boxed{408}", mode: Mode = "thinking", asked: dict[str, Any] | None = None
) -> Response:
    asked = query() if asked is None else asked
    return Response(asked, asked["prompt"][-1]["content"], reasoning, content, mode)


def rule(one: ResponseFilter, given: Response, around: Surroundings | None = None) -> str | None:
    drop = one.why_drop(given, around or Surroundings(score_with_task))
    return drop.rule if drop else None


# --- good samples stay -----------------------------------------------------------------------------------------------

GOOD = [
    response(),
    response("", "The answer is 408.", "non_thinking"),
    response("240+168=408", "\\boxed{408}"),
    response(
        "设小明有 $x$ 个苹果, 那么 $x + 3 = 8$, 所以 $x = 5$。答案是 5。",
        "小明有 \\boxed{5} 个苹果。",
        asked=query("小明有几个苹果? 他再买 3 个就有 8 个, 设为 x。", "5"),
    ),
    response(
        "The sum of the interior angles is $180^\\circ$, hence $\\theta = 180 - 60 - 50 = 70$ and α+β=110.",
        "\\boxed{70}",
        asked=query("In a triangle two angles are 60 and 50 degrees. Find the third.", "70"),
    ),
    response(
        "The word for dog is 'собака'. I am asked for Russian.",
        "собака",
        asked=query("Translate 'dog' into Russian.", "собака", task="exact"),
    ),
    response(
        "Knights tell the truth. If A were a knave, his claim would be false, and then B would lie as well. Both "
        "cannot lie, because one of them says that they differ. Hence A is a knight and B is a knave.",
        "A is a knight.",
        asked=query("A says: B and I differ. What is A?", "A is a knight.", task="exact"),
    ),
]


@pytest.mark.parametrize("given_", GOOD, ids=lambda given_: given_.question[:20])
def test_good_responses_pass_every_filter(given_: Response) -> None:
    around = Surroundings(score_with_task, typical_thinking={0: 12.0})
    drops = {one.name: one.why_drop(given_, around) for one in ResponseFilters().active()}
    assert not any(drops.values()), drops


def test_the_demo_tasks_own_solutions_pass_every_filter() -> None:
    task = get_task("arithmetic")
    rows = list(task.queries(300, seed=1, formats={"plain": 2, "twice": 1, "words": 1}))
    active = ResponseFilters().active()
    for row in rows:
        given_ = Response(row, row["prompt"][0]["content"], row["reasoning"], row["response"], "thinking")
        typical = {row["difficulty"]: 4.0 * row["difficulty"]}
        drops = [one.why_drop(given_, Surroundings(score_with_task, typical)) for one in active]
        assert not any(drops), (drops, row)


# --- each filter catches what it is for ------------------------------------------------------------------------------


def test_wrong_answers_go_and_what_cannot_be_scored_stays() -> None:
    assert rule(WrongAnswer(), response(content="\\boxed{407}")) == "wrong_answer"
    assert rule(WrongAnswer(), response(content="\\boxed{407}", asked=query(task=""))) is None
    assert rule(WrongAnswer(), response(content="\\boxed{407}", asked=query(answer=""))) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TIMES + " and so on, and so forth," * 8, "looped_tail"),
        (TIMES + "ha" * 40, "looped_tail"),
        (TIMES + " wait" * 30, "looped_tail"),
        (
            "\n".join([TIMES, *(f"Let me check this part again.\n{i} is fine." for i in range(9))]),
            "repeated_lines",
        ),
        (
            " ".join([TIMES, "Alternatively:", TIMES, "Finally, another way of seeing it is the following."]),
            "repeated_ngrams",
        ),
        (TIMES, None),
        ("The number is 1" + "0" * 50, None),
    ],
)
def test_repetition(text: str, expected: str | None) -> None:
    assert rule(Repetition(), response(reasoning=text)) == expected
    assert rule(Repetition(), response("", text, "non_thinking")) == expected


@settings(max_examples=60)
@given(unit=st.text("abc de", min_size=1, max_size=12), times=st.integers(4, 12), head=st.text("xyz", max_size=30))
def test_a_loop_is_found_and_its_unit_repeats_at_the_end(unit: str, times: int, head: str) -> None:
    text = head + unit * times
    found = looped_tail(text, repeats=4, characters=1)
    if unit == unit.strip():
        assert found is not None
        assert text.rstrip().endswith(found * 4)
        assert len(found) <= len(unit)


@settings(max_examples=60)
@given(words=st.lists(st.sampled_from("abcdefgh"), max_size=60), n=st.integers(2, 5))
def test_the_repeated_share_counts_each_word_once(words: list[str], n: int) -> None:
    # Against its definition, word by word: a word counts when an n-gram over it was seen earlier.
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    covered = {i + j for i, gram in enumerate(grams) if gram in grams[:i] for j in range(n)}
    expected = len(covered) / len(words) if len(words) > n else 0.0
    assert repeated_share(" ".join(words), n) == pytest.approx(expected)


def test_repeated_lines_count_from_the_second_on() -> None:
    line = "x" * 30
    assert duplicate_line_share("\n".join([line] * 4), shortest=20) == pytest.approx(3 / 4)
    assert duplicate_line_share("\n".join(["short"] * 4), shortest=20) == 0.0


@pytest.mark.parametrize(
    ("reasoning", "content", "expected"),
    [
        ("408", "\\boxed{408}", "too_short"),
        (TIMES.replace("408", "many").replace("So the answer is many.", ""), "\\boxed{408}", "no_derivation"),
        ("17 times 24 is hard to work out. " * 2 + "I'll just guess 408 here.", "\\boxed{408}", "says_so"),
        ("I could guess, but let me compute. 17 times 20 is 340 and 17 times 4 is 68, so 408.", "\\boxed{408}", None),
        ("17 times 24: three hundred forty plus sixty-eight, hence 408.0", "\\boxed{408}", None),
        ("half of it is 1/2 of the cake for each of them", "\\boxed{0.5}", None),
    ],
)
def test_guessing(reasoning: str, content: str, expected: str | None) -> None:
    assert rule(Guessing(), response(reasoning, content)) == expected


def test_thinking_is_too_short_against_its_difficulty() -> None:
    given_ = response("8 by 3 is 24 so 408", asked=query(difficulty=5))
    assert rule(Guessing(), given_, Surroundings(typical_thinking={5: 100.0})) == "too_short"
    assert rule(Guessing(), given_, Surroundings(typical_thinking={5: 20.0, 1: 100.0})) is None
    assert rule(Guessing(), response("", "408", "non_thinking")) is None


@pytest.mark.parametrize(
    ("reasoning", "content", "expected"),
    [
        (TIMES, "\\boxed{407}", "disagreement"),
        (TIMES, "Answer: 408", None),
        ("c+5=2 d*4=8 e-4=4", "\\boxed{3}", "disagreement"),
        ("c+5=2 d*3=6 e-4=2", "\\boxed{6}", None),  # a result on the way: the verifier's to judge
        ("c+5=2 d*3=6 e-4=2", "\\boxed{two}", None),
        ("c+5=2 d*3=6 e-4=2", "\\boxed{2} \\boxed{2}", None),
        ("The answer is 12. Wait, that is wrong: it is 13.", "\\boxed{13}", None),
        ("The answer is 13. Check: 13 - 12 = 1", "\\boxed{13}", None),
        ("So the answer is $\\frac{1}{2}$.", "\\boxed{0.5}", None),
        ("Hence the answer is Paris.", "Answer: Rome", "disagreement"),
        ("Hence the answer is (B).", "The answer is B", None),
        ("Hence the answer is (B).", "The answer is C", "disagreement"),
        ("I looked at it from all sides.", "\\boxed{3}", None),
        ("答案是 5。", "答案: \\boxed{6}", "disagreement"),
    ],
)
def test_disagreement(reasoning: str, content: str, expected: str | None) -> None:
    assert rule(Disagreement(), response(reasoning, content)) == expected


CHINESE = query("小明有八个苹果, 吃了三个, 还剩几个苹果?", "5")
GERMAN = (
    "Wir haben die Gleichung und wir suchen die Zahl, die auf der linken Seite steht. Das ist nicht so schwer, denn "
    "wir können den Term auf die andere Seite bringen und dann durch zwei teilen. Aus dem Ergebnis folgt, dass die "
    "Zahl fünf ist, und wir sind fertig mit der Aufgabe, die sich auf das Auflösen von Gleichungen beschränkt."
)
ENGLISH = (
    "We have the equation and we look for the number that is on the left of it. This is not so hard, since we can move "
    "the term to the other side and then divide by two. From the result it follows that the number is five, and we are "
    "done with the task, which is about the solving of equations and is not harder than that."
)


@pytest.mark.parametrize(
    ("reasoning", "content", "asked", "expected"),
    [
        ("First we add. 然后我们把它们相加得到答案。 So it is 408.", "\\boxed{408}", None, "mixed_scripts"),
        (TIMES, "Ответ: четыреста восемь", None, "mixed_scripts"),
        ("八减三等于五。", "还剩 \\boxed{5} 个。", CHINESE, None),
        ("Eight minus three is five.", "还剩 \\boxed{5} 个。", CHINESE, "mixed_scripts"),
        ("8 - 3 = 5 るるる", "\\boxed{5}", query("りんごは八個、三個食べた。残りは?", "5"), None),
        (ENGLISH + GERMAN, "\\boxed{5}", None, "mixed_languages"),
        (ENGLISH * 3, "\\boxed{5}", None, None),
        (TIMES + "\nUser: and 18 times 24?", "\\boxed{408}", None, "style_shift"),
        (TIMES, "\\boxed{408}<|im_end|>", None, "style_shift"),
        ("Use `print('你好世界你好世界')` and $α + β$ here to say hello.", "\\boxed{408}", None, None),
    ],
)
def test_language_mixing(reasoning: str, content: str, asked: dict[str, Any] | None, expected: str | None) -> None:
    assert rule(LanguageMixing(), response(reasoning, content, asked=asked)) == expected


def test_scripts_and_languages_are_told_apart() -> None:
    assert script_shares("abc αβ 12") == {"LATIN": 1.0}
    assert script_shares("ab数据") == {"LATIN": 0.5, "CJK": 0.5}
    assert list(script_shares("日本語のテキスト")) == ["JAPANESE"]
    assert list(latin_languages(ENGLISH)) == ["English"]
    assert list(latin_languages(GERMAN)) == ["German"]


VALIDATION = query(
    "A train leaves the station at nine and travels at sixty miles an hour. How many miles has it gone by noon?",
    key="v",
)


def test_a_query_too_close_to_a_reserved_one_goes() -> None:
    near = query(VALIDATION["prompt"][0]["content"].replace("nine", "ten"), key="near")
    methods: tuple[Method, Method, Method] = ("key", "text", "lcs")
    for method in methods:
        around = Surroundings(reserved=Reserved([VALIDATION], method, quoted=13))
        assert rule(TooSimilar(), response(asked=VALIDATION), around) == "query"
        found = rule(TooSimilar(), response("", "180", "non_thinking", near), around)
        assert found == ("query" if method == "lcs" else None)
        assert rule(TooSimilar(), response(), around) is None


def test_a_response_that_quotes_a_reserved_query_goes() -> None:
    text = VALIDATION["prompt"][0]["content"]
    quoting = f"This is like another one: {text} But back to the multiplication."
    around = Surroundings(reserved=Reserved([VALIDATION], "lcs", quoted=13))
    assert rule(TooSimilar(), response(quoting), around) == "quotation"
    assert rule(TooSimilar(), response("", quoting, "non_thinking"), around) == "quotation"
    # A long text holds the common words of a short one in order; that alone is no quotation.
    scattered = " ".join(f"{word} something else entirely" for word in text.split())
    assert rule(TooSimilar(), response(scattered), around) is None
    # Its own query's words are its own.
    own = Surroundings(reserved=Reserved([query(f"{text} Give it in kilometres.")], "text", quoted=13))
    assert rule(TooSimilar(), response(f"I am asked: {text}", "180", asked=VALIDATION), own) is None
    assert rule(TooSimilar(), response(quoting), Surroundings(reserved=Reserved([VALIDATION], "key", 13))) is None


# --- switches --------------------------------------------------------------------------------------------------------


def test_every_filter_has_a_switch_and_thresholds() -> None:
    assert [one.name for one in ResponseFilters().active()] == list(ResponseFilters.model_fields)
    for name in ResponseFilters.model_fields:
        off = ResponseFilters.model_validate({name: False})
        assert name not in [one.name for one in off.active()]
        assert ResponseFilters.model_validate({name: True}) == ResponseFilters()
    loose = ResponseFilters.model_validate({"repetition": {"ngram_share": 0.9}})
    assert loose.repetition is not None and loose.repetition.ngram_share == 0.9
    with pytest.raises(ValidationError, match="ngrams"):
        ResponseFilters.model_validate({"repetition": {"ngrams": 3}})
    assert QueryFilters.model_validate({"balance_domains": True}).balance_domains == BalanceDomains()


# --- stated answers --------------------------------------------------------------------------------------------------


@settings(max_examples=80)
@given(
    value=st.integers(-999, 9999), form=st.sampled_from(["{}", "{}.0", "\\boxed{{{}}}", "${}$", "{} apples", "x = {}"])
)
def test_an_integer_is_the_same_answer_however_it_is_written(value: int, form: str) -> None:
    text = answers.final_answer(form.format(value)) or ""
    assert answers.same_answer(text, str(value)) is True
    assert answers.same_answer(text, str(value + 1)) is False
    assert answers.mentions(f"so we get {form.format(value)} in the end", str(value))


# --- query filters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (query(), None),
        (query(task=""), "no_verifier"),
        (query(task="nubmer"), "no_verifier"),
        (query(answer=""), "no_reference"),
        (query("Write a short story about a number.", "408"), "free_text"),
        (query("Prove that 17 times 24 is 408.", "408"), "free_text"),
        (query(answer="four or five"), "reference_refused"),
        (next(iter(get_task("arithmetic").queries(1, seed=3))), None),
    ],
)
def test_what_cannot_be_verified_goes(asked: dict[str, Any], expected: str | None) -> None:
    drop = not_verifiable(asked, get_task)
    assert (drop.rule if drop else None) == expected


def test_a_verifier_that_pays_for_rubbish_is_unsound() -> None:
    class Generous:
        def gold(self, query: Any) -> str:
            return "x"

        def score(self, content: str, query: Any) -> float:
            return 1.0

    drop = not_verifiable(query(), lambda name: Generous())
    assert drop is not None and drop.rule == "rubbish_accepted"


@pytest.mark.parametrize(
    ("text", "several"),
    [
        ("What is 17 times 24?", False),
        ("7 c+5 d*3 e-4 =?", False),
        ("(a) Find x. (b) Find y, given that x + y = 3.", True),
        ("1. What is 2 + 2 here\n2. How many are there in all", True),
        ("What is x? What is y?", True),
        ("How tall is he and how many siblings does he have?", True),
        ("Find x such that x > 3. Also find the largest y.", True),
        ("Which of the following is prime? (a) 4 (b) 7 (c) 9", False),
        ("Solve 2x = 4, then report x + 1.", False),
        ("What is 3.5 + 2.5?", False),
    ],
)
def test_several_questions(text: str, several: bool) -> None:
    assert (several_questions(query(text)) is not None) is several


def test_domains_are_annotated_where_the_data_do_not_say() -> None:
    code = query("Write a Python function that sorts an array.")
    puzzle = query("A knight always tells the truth, a knave never does. Which premise holds?")
    physics = query("What force, in newtons, gives 2 kg an acceleration of 3?")
    algebra = query("Find the integer x with 3 * 4 = x.")
    texts = [code, puzzle, physics, algebra, query("What is the capital of France?")]
    assert [annotated_domain(one) for one in texts] == ["code", "logic", "stem", "math", "general"]
    named = [one | {"domain": "mine"} for one in texts]
    assert domains_of(named) == domains_of(texts)
    assert domains_of([named[0], puzzle | {"domain": "theirs"}, algebra]) == ["mine", "theirs", "math"]


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    ratio=st.sampled_from([0.5, 1.0, 2.0]),
    seed=st.integers(0, 9),
)
def test_no_domain_outgrows_the_median_and_every_first_part_is_balanced(
    sizes: list[int], ratio: float, seed: int
) -> None:
    domains = [f"d{number}" for number, size in enumerate(sizes) for _ in range(size)]
    random.Random(seed).shuffle(domains)
    places = balanced(domains, BalanceDomains(ratio=ratio), seed)
    cap = max(1, int(ratio * sorted(sizes)[(len(sizes) - 1) // 2]))
    assert len(set(places)) == len(places)
    assert Counter(domains[place] for place in places) == {f"d{n}": min(size, cap) for n, size in enumerate(sizes)}
    for length in range(len(places)):
        counts = Counter(domains[place] for place in places[:length])
        for n, size in enumerate(sizes):  # nobody is more than one behind another that is not exhausted
            assert counts[f"d{n}"] >= min(max(counts.values(), default=0) - 1, size)
    assert places == balanced(domains, BalanceDomains(ratio=ratio), seed)


# --- the funnel ------------------------------------------------------------------------------------------------------


def test_the_funnel_counts_every_step_and_keeps_a_few_examples() -> None:
    funnel = Funnel(seed=1)
    for number in range(50):
        drop = Drop("odd", f"{number} is odd") if number % 2 else None
        funnel.record("numbers", "even", drop, {"content": str(number)})
        if drop is None:
            funnel.record("numbers", "small", Drop("large") if number > 10 else None)
    steps = funnel.as_json()["steps"]
    assert steps == [
        {"source": "numbers", "step": "even", "in": 50, "kept": 25, "dropped": 25, "why": {"odd": 25}},
        {"source": "numbers", "step": "small", "in": 25, "kept": 6, "dropped": 19, "why": {"large": 19}},
    ]
    shown = [row for row in funnel.examples() if row["verdict"] == "dropped"]
    assert len(shown) == EXAMPLES
    assert all(int(row["content"]) % 2 and row["why"] == "odd" for row in shown)
    assert {int(row["content"]) for row in shown} != {1, 3, 5}  # a fair sample, not the first ones
