"""BFCL: dialogues with simulated services, Java and JavaScript, and verdicts equal to the package's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import PosttrainError
from posttrain.evaluation.suites import bfcl_multi_turn, data
from posttrain.evaluation.suites.bfcl import LANGUAGES, Bfcl
from posttrain.evaluation.suites.bfcl_source_values import read_java, read_javascript
from posttrain.evaluation.suites.play import play_suite
from posttrain.evaluation.suites.suite import Item, Played, Setting
from posttrain.model.generation import Completion, Prompt
from posttrain.tasks import isolated
from posttrain.templates.families import get_family
from posttrain.templates.parse import parse
from posttrain.templates.render import render
from tests.reference_bfcl import (
    call_answers,
    call_asked,
    call_verdict,
    dialogue_answers,
    dialogue_asked,
    dialogue_verdict,
    right_calls,
    right_turns,
    verdicts,
)
from tests.scripted_server import said, scripted
from tests.test_served import generator

QWEN3 = get_family("qwen3")
SETTING = Setting("non_thinking", None, QWEN3)
Call = dict[str, Any]

pytestmark = pytest.mark.skipif(
    not (data.services_directory().exists() and (data.directory().parent / "wheels").exists()),
    reason="no data of BFCL: run `make suites`",
)


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return Bfcl().items()


@pytest.fixture(scope="module")
def dialogues(items: list[Item]) -> list[Item]:
    """Every 57th dialogue: all services, all four categories."""
    return [item for item in items if "turns" in item.facts][::57]


def completion(text: str, *, truncated: bool = False) -> Completion:
    prefilled = QWEN3.prefill["non_thinking"]
    message = parse(text, QWEN3, prefilled=prefilled)
    return Completion([], [0], [False], text, message, prefilled, "non_thinking", None, 0, None, truncated)


def as_text(calls: Sequence[Call]) -> str:
    return "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)


def playing(turns: Sequence[Sequence[Call]], *, at_once: bool = True) -> Callable[..., list[Completion]]:
    """A player of one dialogue who makes these calls by turn, at once or one after the other, and says then: done."""

    def answer(prompt: Prompt) -> str:
        roles = [message["role"] for message in prompt.messages]
        since = roles[::-1].index("user")  # messages after the user's last one
        steps = roles[len(roles) - since :].count("assistant")
        calls = turns[roles.count("user") - 1]
        return as_text(calls if at_once and not steps else calls[steps : steps + 1] if not at_once else []) or "Done."

    return lambda prompts, **options: [completion(answer(prompt)) for prompt in prompts]


def played(item: Item, turns: Sequence[Sequence[Call]], **options: Any) -> Played:
    (play,) = Bfcl().play(playing(turns, **options), [item], SETTING)
    return play


# --- dialogues


def test_right_calls_are_right_and_none_are_wrong(dialogues: list[Item]) -> None:
    """Of all 800, that is: `python benchmarks/reference_bfcl.py`."""
    for number, item in enumerate(dialogues):
        play = played(item, right_turns(item), at_once=bool(number % 2))
        assert play.marks.scores == {"accuracy": 1.0}, (item.id, play.marks.reason)
        empty = played(item, [[] for _ in right_turns(item)])
        assert empty.marks.scores == {"accuracy": 0.0} and empty.marks.reason.endswith("no call")


def test_dialogues_are_scored_as_by_their_own_checker(dialogues: list[Item]) -> None:
    asked = [(item, turns) for item in dialogues for turns in dialogue_answers(item)]
    theirs = verdicts(dialogue_asked(item, turns) for item, turns in asked)
    ours = [dialogue_verdict(item, turns) for item, turns in asked]
    assert [(item.id, turns) for (item, turns), a, b in zip(asked, ours, theirs, strict=True) if a != b] == []
    assert 0.15 < sum(ours) / len(ours) < 0.6, "both verdicts are common"


def test_a_function_is_withheld_until_its_turn(items: list[Item]) -> None:
    item = next(item for item in items if item.group == "multi_turn_miss_func")
    ((turn, held),) = item.facts["later"].items()
    name = held[0]["function"]["name"]
    offered = []

    def ask(prompts: Sequence[Prompt]) -> list[Completion]:
        (prompt,) = prompts
        told = sum(message["role"] == "user" for message in prompt.messages)
        offered.append((told > int(turn), name in [tool["function"]["name"] for tool in prompt.tools or []]))
        return playing(right_turns(item))(prompts)

    (play,) = Bfcl().play(ask, [item], SETTING)
    assert play.marks.scores == {"accuracy": 1.0}
    assert set(offered) == {(False, False), (True, True)}


def test_what_calls_say_is_told_and_rendered(items: list[Item]) -> None:
    """As a checkpoint is asked: every prompt of a dialogue renders, one with calls that cannot be read too."""
    item = next(item for item in items if item.id == "multi_turn_base_0")
    turns = right_turns(item)
    prompts: list[str] = []

    def ask(asked: Sequence[Prompt]) -> list[Completion]:
        (prompt,) = asked
        prompts.append(render(prompt.messages, QWEN3, tools=prompt.tools, mode="non_thinking"))
        broken = "<tool_call>\n{}\n</tool_call>\n<tool_call>\n{broken\n</tool_call>\n" if len(prompts) == 1 else ""
        return [completion(broken + playing(turns)(asked)[0].text)]

    (play,) = Bfcl().play(ask, [item], SETTING)
    assert play.marks.scores == {"accuracy": 1.0} and not play.completions[0].message.well_formed
    assert '<tool_response>\n{"current_working_directory": "document"}\n</tool_response>' in prompts[1]
    assert len(play.messages[1]["tool_calls"]) == 2 + len(turns[0]), "what is kept has all of them"


HOSTILE = (
    *("eval", "print", "__init__", "_load_scenario", "_current_dir", "__class__", "exit", "self.cd", "cd.__globals__"),
    "",
)


def test_only_public_methods_can_be_called_and_every_answer_is_marked(items: list[Item]) -> None:
    item = next(item for item in items if item.id == "multi_turn_base_0")
    right = right_turns(item)
    strange = [{"name": name, "arguments": {"folder": "document"}} for name in HOSTILE]
    play = played(item, [[*strange, *right[0]], *right[1:]])
    assert play.marks.scores == {"accuracy": 1.0}, "what is refused changes nothing"
    told = [message["content"] for message in play.messages if message["role"] == "tool"]
    assert told[: len(HOSTILE) - 1] == [
        f"Error during execution: name {name!r} is not defined" for name in HOSTILE if name
    ]
    wrong: list[Any] = [{"folder": []}, {"folder": None}, {"x y": 1}, {"self": 1}, {"folder": {"a": [[]]}}]
    play = played(item, [[{"name": "cd", "arguments": arguments} for arguments in wrong]])
    told = [message["content"] for message in play.messages if message["role"] == "tool"]
    assert len(told) == len(wrong) and all("rror" in text for text in told)
    assert play.marks.scores == {"accuracy": 0.0}


def test_a_call_that_never_ends_ends_the_dialogue(items: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfcl_multi_turn, "DEADLINE", 0.3)
    item = next(item for item in items if "MathAPI" in item.facts.get("scenario", {}).get("classes", ()))
    huge = {"name": "power", "arguments": {"base": 9**9, "exponent": 9**9}}
    play = played(item, [[huge]])
    assert play.marks.scores == {"accuracy": 0.0} and "cannot be carried out: stopped" in play.marks.reason
    monkeypatch.undo()
    assert played(item, right_turns(item)).marks.scores == {"accuracy": 1.0}


def test_the_process_calculates_as_before(items: list[Item]) -> None:
    """Verifiers of mathematics run in these processes too."""
    precision = "(__import__('mpmath').mp.prec, __import__('decimal').getcontext().prec)"
    before = isolated.call("builtins:eval", precision, deadline=10.0)
    item = next(item for item in items if "MathAPI" in item.facts.get("scenario", {}).get("classes", ()))
    calls = [
        {"name": "logarithm", "arguments": {"value": 7, "base": 2, "precision": 90}},
        {"name": "square_root", "arguments": {"number": 7, "precision": 90}},
    ]
    play = played(item, [calls])
    said = [message["content"] for message in play.messages if message["role"] == "tool"]
    assert len(said) == 2 and all(len(text) > 90 for text in said), "with ninety digits"
    assert isolated.call("builtins:eval", precision, deadline=10.0) == before


def test_too_many_steps_and_a_cut_off_answer_lose(dialogues: list[Item]) -> None:
    item = dialogues[0]
    first, *others = right_turns(item)
    again = [{"name": "nothing", "arguments": {}}] * (bfcl_multi_turn.STEPS - len(first))
    assert played(item, [[*again, *first], *others], at_once=False).marks.scores == {"accuracy": 1.0}
    play = played(item, [[*again, *again, *first], *others], at_once=False)
    assert play.marks.reason == "turn 1: more than 20 steps" and len(play.completions) == bfcl_multi_turn.STEPS + 1
    (cut,) = Bfcl().play(lambda prompts: [completion(as_text(first), truncated=True)], [item], SETTING)
    assert cut.marks.scores == {"accuracy": 0.0} and cut.marks.reason == "cut off"


def test_dialogues_and_questions_are_played_together_and_resumed(items: list[Item], tmp_path: Path) -> None:
    mixed = [*items[:3], *items[-2:], items[3]]
    turns = {item.prompt[0]["content"]: right_turns(item) for item in items[-2:]}
    left = 99

    def generate(prompts: Sequence[Prompt], *, seed: int) -> list[Completion]:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        found = [turns.get(prompt.messages[0]["content"], [[]]) for prompt in prompts]
        return [playing(calls)([prompt])[0] for calls, prompt in zip(found, prompts, strict=True)]

    def run(directory: Path) -> dict[str, Any]:
        return play_suite(
            *(Bfcl(), mixed, SETTING, generate, directory),
            depends_on={},
            seed=0,
            chunk=4,
            advance=lambda count: None,
        )

    whole = run(tmp_path / "whole")
    assert whole["metrics"]["accuracy"]["value"] == pytest.approx(2 / 6)
    assert whole["groups"]["multi_turn_long_context"]["accuracy"]["value"] == 1.0
    left = 5
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut")
    left = 99
    assert run(tmp_path / "cut") == whole
    answers = [(tmp_path / name / "answers.jsonl").read_bytes() for name in ("whole", "cut")]
    assert answers[0] == answers[1]


def test_a_served_model_plays_a_dialogue(items: list[Item]) -> None:
    item = next(item for item in items if item.id == "multi_turn_miss_param_0")
    turns = right_turns(item)

    def answer(path: str, body: dict[str, Any]) -> Any:
        text = playing(turns)([Prompt(body["messages"], tools=body["tools"])])[0]
        calls = [
            {
                "id": f"x{at}",
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
            }
            for at, call in enumerate(text.message.tool_calls)
        ]
        return said("", reason="tool_calls", tool_calls=calls) if calls else said("Done.")

    with scripted(answer) as server:
        ask = generator(server)
        (play,) = Bfcl().play(lambda prompts: ask(prompts, seed=0), [item], SETTING)
    assert play.marks.scores == {"accuracy": 1.0}, play.marks.reason


def test_data_from_before_the_dialogues_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bfcl.jsonl").write_text("{}\n")
    monkeypatch.setenv("POSTTRAIN_SUITES", str(tmp_path))
    with pytest.raises(PosttrainError, match=r"bfcl_functions are not there(.|\n)*make suites"):
        Bfcl().check()


# --- single turns


def test_calls_are_scored_as_by_their_own_checker(items: list[Item]) -> None:
    """A tenth of the questions in Java and JavaScript, a hundredth of the others."""
    wanting = [item for item in items if item.facts["wanted"] and "turns" not in item.facts]
    other = [item for item in wanting if item.group in LANGUAGES]
    chosen = [*other[::10], *[item for item in wanting if item.group not in LANGUAGES][::100]]
    asked = [(item, calls) for item in chosen for calls in call_answers(item)]
    theirs = verdicts(call_asked(item, calls) for item, calls in asked)
    ours = [call_verdict(item, calls) for item, calls in asked]
    assert [(item.id, calls) for (item, calls), a, b in zip(asked, ours, theirs, strict=True) if a != b] == []
    assert 0.1 < sum(ours) / len(ours) < 0.5, "both verdicts are common"


def test_right_calls_in_java_and_javascript_are_right(items: list[Item]) -> None:
    asked = [item for item in items if item.group in LANGUAGES]
    assert len(asked) == 150
    wrong = [item.id for item in asked if not call_verdict(item, right_calls(item))]
    # They want elements of any type to be numbers and flags, but read them as texts.
    assert wrong == ["simple_java_36", "simple_java_65"]
    for item in asked:
        described = item.tools[0]["function"]["parameters"]["properties"]  # type: ignore[index]
        assert {one["type"] for one in described.values()} == {"string"}


@pytest.mark.parametrize(
    ("text", "kind", "inner", "value"),
    [
        ("-12", "integer", None, -12),
        ("12.0", "integer", None, "12.0"),
        ("12L", "long", None, 12),
        ("12", "long", None, "12"),
        ("1.5e3f", "float", None, 1500.0),
        ("1.5", "double", None, 1.5),
        ("true", "boolean", None, True),
        ("True", "boolean", None, "True"),
        ("config", "HashMap", None, "config"),
        ("new int[]{1, 2}", "Array", "integer", [1, 2]),
        ('new String[]{"a"}', "Array", "String", ['"a"']),
        ('new ArrayList<String>(Arrays.asList("a", "b"))', "ArrayList", "String", ["a", "b"]),
        ("new ArrayList<>() {{ add(1); add(2); }}", "ArrayList", "integer", [1, 2]),
        ("new ArrayList<>()", "ArrayList", "integer", []),
        ('new HashMap<>() {{ put("a", 1); put("b", "x"); put("c", 2.5f); }}', "HashMap", None, dict(a=1, b="x", c=2.5)),
        ("new HashMap<>()", "HashMap", None, {}),
        ("new HashMap<>() {{" + "\n" * 20_000, "HashMap", None, {}),
    ],
)
def test_java_values(text: str, kind: str, inner: str | None, value: Any) -> None:
    assert read_java(text, kind, inner) == value


@pytest.mark.parametrize(
    ("text", "kind", "inner", "value"),
    [
        ("'a'", "String", None, "a"),
        ("12n", "Bigint", None, 12),
        ("1.5", "float", None, 1.5),
        ("false", "Boolean", None, False),
        ("['a', \"b\"]", "array", "String", ["a", "b"]),
        ("new Array(1, 2)", "array", "integer", [1, 2]),
        ("[[1, 2], ['a']]", "array", "array", [[1, 2], ["a"]]),
        ("[" + "[1]," * 5_000, "array", "array", ["[1"]),
        ("{}", "dict", None, {}),
        ("{a: 1, 'b': [1, 'x'], \"c\": true}", "dict", None, {"a": 1, "b": [1, "x"], "c": True}),
        ("options", "dict", None, "options"),
    ],
)
def test_javascript_values(text: str, kind: str, inner: str | None, value: Any) -> None:
    assert read_javascript(text, kind, inner) == value
