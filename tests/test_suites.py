"""Evaluation suites: what they ask, how they mark, that a kill costs one chunk, and that models are compared."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import PosttrainError
from posttrain.evaluation.suites import data, mtr_bench, reasoning_gym
from posttrain.evaluation.suites.bfcl import LANGUAGES, Bfcl, fault_of, gold
from posttrain.evaluation.suites.bfcl_values import accepted
from posttrain.evaluation.suites.length_ctrl import LengthCtrl
from posttrain.evaluation.suites.play import chosen, play_suite
from posttrain.evaluation.suites.registry import SUITES, get_suite
from posttrain.evaluation.suites.suite import Item, Played, Setting, Suite
from posttrain.evaluation.suites.table import change, compare, finished, markdown
from posttrain.evaluation.suites.tool_use import ToolUse
from posttrain.model.artifacts import is_complete
from posttrain.model.generation import Completion, Prompt
from posttrain.templates.families import get_family
from posttrain.templates.parse import parse
from tests.sandboxed import needs_sandbox

QWEN3 = get_family("qwen3")
SETTING = Setting("non_thinking", None, QWEN3)
BUILT_IN = ("counterfact-qa", "length-ctrl", "mtr-bench", "think-follow", "tool-use")
"""Their data are part of the project."""

needs_data = pytest.mark.skipif(
    not all((data.directory() / f"{name}.jsonl").exists() for name in data.SOURCES),
    reason="no data of suites, or not all: run `make suites`",
)


def completion(text: str, *, truncated: bool = False) -> Completion:
    """An answer as the parser reads it, of a prompt whose thinking is switched off."""
    prefilled = QWEN3.prefill["non_thinking"]
    message = parse(text, QWEN3, prefilled=prefilled)
    return Completion([], [0], [False], text, message, prefilled, "non_thinking", None, 0, None, truncated)


def ask_by(answer: Callable[[Prompt], str]) -> Callable[[Sequence[Prompt]], list[Completion]]:
    return lambda prompts: [completion(answer(prompt)) for prompt in prompts]


def played(name: str, answer: Callable[[Prompt], str], items: Sequence[Item] | None = None) -> list[Played]:
    suite = get_suite(name)
    return suite.play(ask_by(answer), suite.items() if items is None else items, SETTING)


def always(text: str) -> Callable[[Prompt], str]:
    return lambda prompt: text


def headline(name: str, plays: Sequence[Played]) -> list[float]:
    """The headline metric of every item; the mean where an item counts several times."""
    values = [play.marks.scores[get_suite(name).headline] for play in plays]
    return [float(value) if isinstance(value, int | float) else sum(value) / len(value) for value in values]


def parameters() -> list[Any]:
    return [
        pytest.param(name, marks=[needs_data, *([needs_sandbox] if name == "humaneval" else [])])
        if name not in BUILT_IN
        else name
        for name in SUITES
    ]


@pytest.fixture(autouse=True)
def few_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tasks of reasoning-gym in place of a hundred, with as many problems in all."""
    monkeypatch.setattr(reasoning_gym, "NAMES", ("chain_sum", "gcd", "word_sorting"))
    monkeypatch.setattr(reasoning_gym, "EACH", 34)
    monkeypatch.setattr(mtr_bench, "INSTANCES", 3)


# --- every suite


@pytest.mark.parametrize("name", parameters())
def test_items_are_the_same_every_time_and_have_ids_of_their_own(name: str) -> None:
    suite = get_suite(name)
    items = suite.items()
    assert isinstance(suite, Suite) and suite.name == name and suite.about
    assert len({item.id for item in items}) == len(items) >= 100
    assert get_suite(name).items() == items
    assert json.loads(json.dumps([item.facts for item in items[:20]])) is not None
    assert all(item.prompt[-1]["role"] == "user" and item.prompt[-1]["content"].strip() for item in items)
    few = chosen(suite, 7)
    assert len(few) == 7 and few == chosen(suite, 7) and set(i.id for i in few) <= {i.id for i in items}


RUBBISH = ("", "zzz", "<think>", "</think>\n\nzzz", "<tool_call>\n{}\n</tool_call>")


@pytest.mark.parametrize("name", [p for p in parameters() if p != "think-follow"])
def test_rubbish_and_what_is_cut_off_earn_nothing(name: str) -> None:
    items = [item for item in chosen(get_suite(name), 60) if item.group not in FREE]
    for text in RUBBISH if name not in ("ifeval", "ifbench") else RUBBISH[:1]:  # "zzz" does have no comma
        earned = headline(name, played(name, always(text), items))
        assert max(earned) <= (0.1 if name == "length-ctrl" else 0.0), text  # two words are a tenth of twenty
    suite = get_suite(name)
    cut = suite.play(lambda prompts: [completion("4", truncated=True) for _ in prompts], items, SETTING)
    assert set(headline(name, cut)) == {0.0}


FREE = ("irrelevance", "live_irrelevance", "live_relevance", "no tool")
"""Groups where saying nothing in particular is right."""


def test_an_unknown_suite_is_refused_with_the_nearest() -> None:
    with pytest.raises(PosttrainError, match="did you mean humaneval"):
        get_suite("humanevel")


def test_data_that_are_not_there_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POSTTRAIN_SUITES", str(tmp_path))
    with pytest.raises(PosttrainError, match="make suites"):
        get_suite("gsm-symbolic").items()


# --- one by one


@needs_data
@needs_sandbox
def test_humaneval_takes_the_whole_function_or_its_body() -> None:
    items = get_suite("humaneval").items()[30:40]  # 32 and 38 have helpers in their prompts
    solved = {item.prompt[0]["content"]: row for item, row in zip(items, data.rows("humaneval")[30:40], strict=True)}

    def whole(prompt: Prompt) -> str:
        row = solved[prompt.messages[0]["content"]]
        return f"Here it is.\n```python\n{row['prompt']}{row['canonical_solution']}```\nIt works."

    def altered(prompt: Prompt) -> str:
        return whole(prompt).replace("return", "return 5,")

    assert headline("humaneval", played("humaneval", whole, items)) == [1.0] * 10
    assert headline("humaneval", played("humaneval", altered, items)) == [0.0] * 10


@needs_data
def test_gsm_symbolic_reads_the_boxed_number_in_every_language() -> None:
    items = chosen(get_suite("gsm-symbolic"), 200)
    answers = {item.prompt[0]["content"]: item.facts["answer"] for item in items}
    right = played("gsm-symbolic", lambda p: f"So \\boxed{{{answers[p.messages[0]['content']]}}}", items)
    assert headline("gsm-symbolic", right) == [1.0] * 200
    assert len({item.group for item in items}) > 40


@needs_data
def test_bfcl_gold_calls_are_right_and_altered_ones_wrong() -> None:
    """In Python; in other languages: tests/test_suite_bfcl.py."""
    apart = (*FREE, *LANGUAGES)
    items = [item for item in Bfcl().items() if "turns" not in item.facts and item.group not in apart]
    calls = {item.id: [(call.name, call.arguments) for call in gold(item.facts)] for item in items}
    wrong = [item.id for item in items if fault_of(calls[item.id], item.facts, item.group)]
    # Of 2,351 these four ask for what their own function description or answer rules out.
    assert wrong == [
        *("live_simple_106-63-0", "live_simple_112-68-0", "live_multiple_862-181-3", "live_multiple_964-207-0")
    ]
    for item in items[::20]:
        name, arguments = calls[item.id][0]
        others = calls[item.id][1:]
        assert isinstance(arguments, dict)
        assert fault_of(others, item.facts, item.group)
        assert fault_of([("other", arguments), *others], item.facts, item.group)
        assert fault_of([(name, {**arguments, "extra": 1}), *others], item.facts, item.group)


@pytest.mark.parametrize(
    ("value", "values", "described", "right"),
    [
        ("April 1, 2024", ["april 1 2024"], {"type": "string"}, True),
        ("April 2", ["April 1"], {"type": "string"}, False),
        (5, [5.0], {"type": "float"}, True),
        (5.0, [5], {"type": "integer"}, False),
        (True, [1], {"type": "integer"}, False),
        ("5", [5], {"type": "integer"}, False),
        ("n", ["n"], {"type": "integer"}, True),
        ([1, 2], [[1, 2]], {"type": "array", "items": {"type": "integer"}}, True),
        ([2, 1], [[1, 2]], {"type": "array", "items": {"type": "integer"}}, False),
        (["A b"], [["ab"]], {"type": "array", "items": {"type": "string"}}, True),
        ({"a": 1}, [{"a": [1, 2], "b": ["", 3]}], {"type": "dict"}, True),
        ({"a": 3}, [{"a": [1, 2], "b": ["", 3]}], {"type": "dict"}, False),
        ({"b": 3}, [{"a": [1, 2], "b": ["", 3]}], {"type": "dict"}, False),
        ([{"a": 1}], [[{"a": [1]}]], {"type": "array", "items": {"type": "dict"}}, True),
    ],
)  # fmt: skip
def test_bfcl_values(value: Any, values: list[Any], described: dict[str, Any], right: bool) -> None:
    assert accepted(value, values, described) == right


@needs_data
def test_ifeval_counts_prompts_and_instructions() -> None:
    """A prompt with two instructions, of which an answer follows one: prompt 0, instructions 1/2."""
    items = get_suite("ifeval").items()
    assert len(items) == 541, "NLTK's data are offered, so nothing is left out"
    two = {"instructions": ["punctuation:no_comma", "detectable_format:title"], "arguments": [{}, {}]}
    item = dataclasses.replace(items[0], facts=two)
    (half,) = played("ifeval", always("No title here."), [item])
    assert half.marks.scores == {
        "prompt_strict": 0.0,
        "instruction_strict": [1.0, 0.0],
        "prompt_loose": 0.0,
        "instruction_loose": [1.0, 0.0],
    }
    assert half.marks.reason == "does not follow detectable_format:title"
    (whole,) = played("ifeval", always("<<Here>>\nA title."), [item])
    assert headline("ifeval", [whole]) == [1.0]
    (loose,) = played("ifeval", always("Well, here:\n<<Here>>"), [item])
    assert (loose.marks.scores["prompt_strict"], loose.marks.scores["prompt_loose"]) == (0.0, 1.0)


def test_counterfact_qa_wants_denial_and_truth_where_the_premise_is_false_and_only_there() -> None:
    items = get_suite("counterfact-qa").items()

    def marks(answer: Callable[[Item], str]) -> dict[str, set[float]]:
        found: dict[str, set[float]] = {"fair": set(), "false premise": set()}
        for item in items:
            (play,) = played("counterfact-qa", always(answer(item)), [item])
            found[item.group] |= set(headline("counterfact-qa", [play]))
        return found

    truth = marks(lambda item: f"Because of {item.facts['answer']}, of course.")
    assert truth == {"fair": {1.0}, "false premise": {0.0}}
    denial = marks(lambda item: f"That is not so: it is {item.facts['answer']}.")
    assert denial == {"fair": {0.0}, "false premise": {1.0}}
    assert marks(lambda item: "That is not true.") == {"fair": {0.0}, "false premise": {0.0}}


def test_length_is_scored_by_distance() -> None:
    """Exactly 100 words wanted: 80 are off by 20 of 100; a range is left at its nearer end; filler is nothing."""
    items = {item.group: item for item in LengthCtrl().items()}

    def score(kind: str, words: int) -> Any:
        text = " ".join(f"word{n}" for n in range(words))
        return LengthCtrl().mark(items[kind], completion(text)).scores

    assert score("exactly 100 words", 100) == {"closeness": 1.0, "within": 1.0}
    assert score("exactly 100 words", 80) == {"closeness": pytest.approx(0.8), "within": 0.0}
    assert score("exactly 100 words", 250) == {"closeness": 0.0, "within": 0.0}
    assert score("150 to 200 words", 160)["closeness"] == 1.0
    assert score("150 to 200 words", 220) == {"closeness": pytest.approx(0.9), "within": 1.0}
    assert score("20 to 40 words", 50)["closeness"] == pytest.approx(0.75)
    assert score("at least 250 words", 900)["closeness"] == 1.0
    assert LengthCtrl().mark(items["exactly 100 words"], completion("word " * 100)).scores["closeness"] == 0.0


def test_think_follow_is_scored_on_mode_by_the_last_flag() -> None:
    family_items = get_suite("think-follow").items()
    (setting,) = get_suite("think-follow").settings(QWEN3, [])

    def obey(prompts: Sequence[Prompt]) -> list[Completion]:
        said = []
        for prompt in prompts:
            assert prompt.mode is None
            words = [message["content"].split()[-1] for message in prompt.messages if message["role"] == "user"]
            flags = [word for word in words if word.startswith("/")]
            thought = "" if flags and flags[-1] == "/no_think" else "Well."
            text = f"<think>\n{thought}\n</think>\n\nYes."
            said.append(Completion([], [0], [False], text, parse(text, QWEN3), "", None, None, 0, None, False))
        return said

    right = get_suite("think-follow").play(obey, family_items, setting)
    assert set(headline("think-follow", right)) == {1.0}
    never = played("think-follow", lambda prompt: "Yes.")
    modes = [mode for item in family_items for _, _, mode in item.facts["turns"]]
    expected = modes.count("non_thinking") / len(modes)
    assert sum(headline("think-follow", never)) / len(never) == pytest.approx(expected)
    assert get_suite("think-follow").settings(get_family("qwen2_5"), []) == []


METRICS = ("success", "intent", "format", "parameters")


def scripted_calls(item: Item, *, wrong_at: int = -1) -> Callable[[Prompt], str]:
    """A player of one dialogue that does what the script wants, but at one step."""

    def answer(prompt: Prompt) -> str:
        number = sum(message["role"] == "assistant" for message in prompt.messages)
        step = item.facts["steps"][number]
        calls = [json.dumps(call) for call in step["calls"]]
        if number == wrong_at:
            calls = [] if calls else ['{"name": "set_alarm", "arguments": {"hour": 1, "minute": 1}}']
        written = "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)
        return written or "It is " + ", ".join(step.get("says", [])) + "."

    return answer


def test_tool_use_plays_its_dialogues_to_the_end() -> None:
    for item in ToolUse().items():
        (right,) = ToolUse().play(ask_by(scripted_calls(item)), [item], SETTING)
        steps = len(item.facts["steps"])
        assert [right.marks.scores[name] for name in METRICS] == [1.0, *[[1.0] * steps] * 3], right.marks
        last = steps - 1
        (wrong,) = ToolUse().play(ask_by(scripted_calls(item, wrong_at=last)), [item], SETTING)
        assert wrong.marks.scores["success"] == 0.0 and wrong.marks.scores["intent"] == [*[1.0] * last, 0.0]


def test_tool_use_tells_intent_format_and_parameters_apart() -> None:
    item = next(item for item in ToolUse().items() if "alarm" in item.prompt[0]["content"])
    right: dict[str, Any] = item.facts["steps"][0]["calls"][0]["arguments"]

    def scores(arguments: Any, name: str = "set_alarm") -> list[Any]:
        call = json.dumps({"name": name, "arguments": arguments})
        (play,) = ToolUse().play(ask_by(lambda _: f"<tool_call>\n{call}\n</tool_call>"), [item], SETTING)
        return [play.marks.scores[metric] for metric in METRICS[1:]]

    assert scores(right) == [[1.0], [1.0], [1.0]]
    assert scores({**right, "hour": 99}) == [[1.0], [1.0], [0.0]]
    assert scores({"hour": right["hour"]}) == [[1.0], [0.0], [0.0]]
    assert scores({**right, "label": "x"}) == [[1.0], [0.0], [0.0]]
    assert scores(right, "alarm") == [[0.0], [0.0], [0.0]]


# --- playing: chunks, resuming, settings, figures


class Counted:
    """Answers that depend on prompt and seed alone, as a generator's do, and a kill at one call."""

    def __init__(self, dies_at: int = 0) -> None:
        self.calls, self.dies_at = 0, dies_at

    def __call__(self, prompts: Sequence[Prompt], *, seed: int) -> list[Completion]:
        self.calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        return [completion(" ".join(f"w{n}" for n in range((seed + at) % 120))) for at in range(len(prompts))]


def play(directory: Path, generate: Counted, *, limit: int = 50, model: str = "m") -> dict[str, Any]:
    suite = LengthCtrl()
    return play_suite(
        *(suite, chosen(suite, limit), SETTING, generate, directory),
        depends_on={"model": model},
        seed=1,
        chunk=16,
        advance=lambda count: None,
    )


def test_a_kill_costs_one_chunk_and_changes_nothing(tmp_path: Path) -> None:
    whole = play(tmp_path / "whole", Counted())
    with pytest.raises(KeyboardInterrupt):
        play(tmp_path / "cut", Counted(dies_at=3))
    assert not is_complete(tmp_path / "cut")
    answers = tmp_path / "cut" / "answers.jsonl"
    assert len(answers.read_text().splitlines()) == 32
    with answers.open("a") as file:
        file.write('{"id": "torn')
    again = Counted()
    assert play(tmp_path / "cut", again) == whole and again.calls == 2
    assert answers.read_bytes() == (tmp_path / "whole" / "answers.jsonl").read_bytes()
    assert is_complete(tmp_path / "cut") and "# length-ctrl" in (tmp_path / "cut" / "samples.md").read_text()
    finished = Counted()
    assert play(tmp_path / "cut", finished) == whole and finished.calls == 0


def test_answers_under_other_settings_are_refused(tmp_path: Path) -> None:
    play(tmp_path, Counted())
    for changed in ({"model": "other"}, {"limit": 20}):
        with pytest.raises(PosttrainError, match=r"other settings \("):
            play(tmp_path, Counted(), **changed)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("answers.jsonl", "rubbish\n", "answers.jsonl is damaged"),
        ("answers.jsonl", "[1]\n", "answers.jsonl is damaged"),
        ("settings.json", "[1]", "settings.json: no JSON object"),
    ],
)
def test_damaged_answers_are_named(file: str, content: str, said: str, tmp_path: Path) -> None:
    play(tmp_path, Counted())
    (tmp_path / "manifest.json").unlink()
    (tmp_path / file).write_text(content)
    with pytest.raises(PosttrainError, match=said):
        play(tmp_path, Counted())


@pytest.mark.parametrize("content", [b"{broken\n", b"[1]\n", b"\xff\xfe", b""])
def test_damaged_data_are_named(content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POSTTRAIN_SUITES", str(tmp_path))
    (tmp_path / "gsm_symbolic.jsonl").write_bytes(content)
    with pytest.raises(PosttrainError, match=r"is damaged(.|\n)*make suites"):
        get_suite("gsm-symbolic").items()


def test_figures_have_intervals_in_all_and_by_group(tmp_path: Path) -> None:
    figures = play(tmp_path, Counted(), limit=140)
    closeness = figures["metrics"]["closeness"]
    assert closeness["n"] == 140 and closeness["low"] < closeness["value"] < closeness["high"]
    by_group = figures["groups"]
    assert len(by_group) == 7 and all(group["closeness"]["n"] == 20 for group in by_group.values())
    mean = sum(group["closeness"]["value"] for group in by_group.values()) / 7
    assert mean == pytest.approx(closeness["value"])
    assert figures["answers"]["truncated"]["value"] == 0.0


def test_a_change_is_paired_over_common_items() -> None:
    """Differences 1, 0, 0, 1: mean 1/2, standard error sqrt(1/3 / 4) = 0.2887."""
    told = change({"a": 0, "b": 1, "c": 0, "d": 0, "e": 1}, {"a": 1, "b": 1, "c": 0, "d": 1, "f": 0})
    assert told["change"] == 0.5
    assert told["change_high"] - 0.5 == pytest.approx(1.959964 * 0.288675, abs=1e-4)


def test_unicodes_line_breaks_in_an_answer_are_text(tmp_path: Path) -> None:
    class Separated(Counted):
        def __call__(self, prompts: Sequence[Prompt], *, seed: int) -> list[Completion]:
            return [completion("one\u2028two\x85three") for _ in prompts]

    play(tmp_path / "a" / "length-ctrl" / "non_thinking", Separated())
    assert compare(tmp_path, ["a"])[0]["cells"]["a"]["n"] == 50
    assert len(finished(tmp_path, ["a"], "length-ctrl")["a non_thinking"]) == 50


def test_models_stand_side_by_side(tmp_path: Path) -> None:
    for label, model in (("a", "one"), ("b", "two")):
        play(tmp_path / label / "length-ctrl" / "non_thinking", Counted(), model=model)
    (row,) = compare(tmp_path, ["a", "b"])
    assert row["cells"]["a"]["value"] == row["cells"]["b"]["value"] and row["cells"]["b"]["change"] == 0.0
    table = markdown([row], ["a", "b"])
    assert "| length-ctrl | non_thinking | closeness |" in table and "+0.000 (+0.000 to +0.000)" in table
