"""The parser: cases written out, any chunking, any text, and the way back through the templates."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.templates.families import FAMILIES, Family, get_family
from posttrain.templates.parse import ParsedMessage, StreamParser, TokenStreamParser, parse, parse_ids
from posttrain.templates.render import render, render_training

HYBRID, THINKING, INSTRUCT = (get_family(n) for n in ("qwen3", "qwen3_thinking_2507", "qwen3_instruct_2507"))
FAMILY = st.sampled_from(sorted(FAMILIES)).map(get_family)
EXAMPLES = settings(max_examples=300)
EMPTY = "<think>\n\n</think>\n\n"
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'

SPECIAL = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
MARKERS = [
    "<think>", "</think>", "<think>\n", "\n</think>\n\n", EMPTY, "<tool_call>", "</tool_call>", "<tool_call>\n", CALL,
    "\n</tool_call>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "\n", "\n\n", " ", '"', "\\", '{"name": "g"', "}",
    '{"name": "f", "arguments": ', '{"x": "</tool_call>"}', '{"x": "<tool_call>', "<thi", "</", "é", "🧠", "a", "<",
]  # fmt: skip
TEXT = st.lists(st.sampled_from(MARKERS) | st.text(max_size=5), max_size=14).map("".join)
PREFILLED = st.sampled_from(["", "<think>\n", EMPTY, "<think>\nso far"]) | TEXT


# --- any text ---------------------------------------------------------------------------------------------------------


@given(text=TEXT, prefilled=PREFILLED, family=FAMILY, data=st.data())
@settings(EXAMPLES, max_examples=1500)
def test_any_chunking_gives_what_parse_gives(text: str, prefilled: str, family: Family, data: st.DataObject) -> None:
    expected = parse(text, family, prefilled=prefilled)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    if data.draw(st.booleans()):
        cuts = list(range(len(text) + 1))
    parser = StreamParser(family, prefilled)
    deltas = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        deltas += parser.feed(text[start:end])
    assert parser.close() == expected == parser.close()
    deltas += parser.tail
    if "missing_open" not in expected.problems:
        assert "".join(d.text for d in deltas if d.kind == "reasoning") == (expected.reasoning or "")
        assert "".join(d.text for d in deltas if d.kind == "content") == expected.content
        assert sum(d.kind == "tool_call" for d in deltas) == len(expected.tool_calls)
    assert all(delta.text or delta.kind == "tool_call" for delta in deltas)


@given(text=TEXT, prefilled=PREFILLED, family=FAMILY)
@EXAMPLES
def test_what_a_parse_always_is(text: str, prefilled: str, family: Family) -> None:
    parsed = parse(text, family, prefilled=prefilled)
    assert parsed.well_formed == (not parsed.problems)
    assert parsed.closed == ("unclosed_think" not in parsed.problems)
    assert parsed == parse(text + "<|im_end|>", family, prefilled=prefilled)
    assert all(isinstance(call.arguments, dict | str) for call in parsed.tool_calls)
    if parsed.well_formed:
        assert parsed.closed and (parsed.reasoning is not None) == family.thinks
        assert all(isinstance(call.arguments, dict) for call in parsed.tool_calls)
    assert len(parsed.reasoning or "") + len(parsed.content) <= len(prefilled) + len(text)
    with pytest.raises(RuntimeError):
        closed = StreamParser(family)
        closed.close()
        closed.feed("x")


@given(text=TEXT, family=FAMILY)
@EXAMPLES
def test_a_well_formed_message_comes_back_the_same_when_it_is_rendered(text: str, family: Family) -> None:
    parsed = parse(text, family)
    if parsed.well_formed:
        rendered = _turn(render_training([QUERY, parsed.to_message()], family)[0])
        assert parse(rendered, family) == parsed


# --- generate, parse, render ------------------------------------------------------------------------------------------

QUERY = {"role": "user", "content": "q"}
WORDS = st.text(st.sampled_from("ab <>/{}\"'\\\n\t é思🧠") | st.characters(codec="utf-8"), max_size=12).filter(
    lambda text: not any(marker in text for marker in SPECIAL)  # hypothesis knows the constants of this package
)
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS | st.sampled_from(MARKERS[:11])
OBJECT = st.dictionaries(WORDS, VALUES | st.lists(VALUES, max_size=2) | st.dictionaries(WORDS, VALUES, max_size=2))
SPACED = OBJECT.map(lambda value: json.dumps(value, indent=1)) | OBJECT.map(
    lambda v: json.dumps(v, separators=(",", ":"))
)
FUNCTION = st.fixed_dictionaries(
    {"name": st.text("abc_.-é0 ", max_size=6), "arguments": OBJECT | SPACED | WORDS | st.just('{"a": 1, "a": 2.50}')}
)
TURN = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": WORDS},
    optional={"reasoning_content": WORDS, "tool_calls": st.lists(FUNCTION, max_size=3)},
)


def _turn(text: str) -> str:
    """What the model emits of the last turn of a rendered conversation, its prompt cut off."""
    return text.rsplit("<|im_start|>assistant\n", 1)[1].removesuffix("\n")


@given(turn=TURN, family=FAMILY, served=st.booleans())
@settings(EXAMPLES, max_examples=1000)
def test_round_trip(turn: dict[str, Any], family: Family, served: bool) -> None:
    if not family.thinks:
        turn.pop("reasoning_content", None)

    def show(message: dict[str, Any]) -> str:
        return render([QUERY, message], family) if served else render_training([QUERY, message], family)[0]

    text = show(turn)
    for mode in family.modes:
        prefilled = family.prefill[mode]
        emitted = _turn(text)
        if emitted.startswith(prefilled):  # the prompt of this mode could have led here
            parsed = parse(emitted[len(prefilled) :], family, prefilled=prefilled)
            assert show(parsed.to_message()) == text
            assert parsed.mode == ("thinking" if (turn.get("reasoning_content") or "").strip() else "non_thinking")
            assert [call.name for call in parsed.tool_calls] == [c["name"] for c in turn.get("tool_calls", [])]
            assert set(parsed.problems) <= {"broken_tool_call", "arguments_not_object"}
            for call, given_call in zip(parsed.tool_calls, turn.get("tool_calls", []), strict=True):
                if isinstance(given_call["arguments"], dict):
                    assert call.arguments == given_call["arguments"]


# --- cases written out ------------------------------------------------------------------------------------------------


def _is(parsed: ParsedMessage, reasoning: str | None, content: str, *problems: str, calls: int = 0) -> None:
    assert (parsed.reasoning, parsed.content, parsed.problems) == (reasoning, content, problems)
    assert len(parsed.tool_calls) == calls
    assert parsed.well_formed == (not problems)


def test_think_blocks() -> None:
    _is(parse("<think>\nhm\n</think>\n\n4<|im_end|>", HYBRID), "hm", "4")
    _is(parse("<think>\nhm\n</think>\n\n4", HYBRID), "hm", "4")
    _is(parse(EMPTY + "4<|im_end|>\n<|endoftext|>", HYBRID), "", "4")
    _is(parse("<think></think>4", HYBRID), "", "4")
    _is(parse("4<|im_end|>", HYBRID, prefilled=EMPTY), "", "4")
    _is(parse("more\n</think>\n\n4", HYBRID, prefilled="<think>\nso far, "), "so far, more", "4")
    _is(parse("4", HYBRID), None, "4", "no_think_block")
    _is(parse("", HYBRID), None, "", "no_think_block")
    _is(parse("4", INSTRUCT), None, "4")
    stop = HYBRID.stop_thinking
    _is(parse("<think>\na" + stop + "4", HYBRID), "a" + stop.split("\n</think>")[0], "4")


def test_the_opening_marker_stood_in_the_prompt() -> None:
    for prefilled in ("", "<think>\n"):
        _is(parse("hm\n</think>\n\n4<|im_end|>", THINKING, prefilled=prefilled), "hm", "4")
        _is(parse("<think>\nhm\n</think>\n\n4", THINKING), "hm", "4")
    _is(parse(" </think>4", THINKING), " ", "4")
    _is(parse("hm\n</think>\n\n4", HYBRID, prefilled="<think>\n"), "hm", "4")
    _is(parse("hm\n</think>\n\n4", HYBRID), "hm", "4", "missing_open")
    _is(parse(f"a\n{CALL}\n</think>\n\n4", HYBRID), f"a\n{CALL}", "4", "missing_open")
    _is(parse("</think>\n\n4", HYBRID), "", "4", "missing_open")
    _is(parse("the tag </think> ends it", INSTRUCT), None, "the tag </think> ends it", "stray_close")


def test_broken_blocks() -> None:
    unclosed = parse("<think>\nhm", HYBRID)
    _is(unclosed, "hm", "", "unclosed_think")
    assert not unclosed.closed and unclosed.mode == "thinking"
    _is(parse("hm", THINKING), "hm", "", "unclosed_think")
    _is(parse("<think>\na <think> b\n</think>\n\n4", HYBRID), "a <think> b", "4", "nested_think")
    _is(parse("<think>\na\n</think>\n\nb</think>c", HYBRID), "a", "b</think>c", "stray_close")
    _is(parse("well <think>a</think>4", HYBRID), "a", "well 4", "text_before_think")
    _is(parse("<think>a</think>4<|im_end|>\n<|im_start|>user\nhi", HYBRID), "a", "4", "text_after_end")
    _is(parse("<think>a</think>4<|im_start|>user\nhi", HYBRID), "a", "4<|im_start|>user\nhi", "stray_message_start")
    _is(parse("<think>a</think>4", INSTRUCT), "a", "4", "unexpected_think")
    _is(parse("<think>\nuse <tool_call> here\n</think>\n\n4", HYBRID), "use <tool_call> here", "4")


def test_thinking_hidden_behind_an_empty_block_is_thinking() -> None:
    hidden = parse("4\n<think>\nlong\n</think>\n\n5", HYBRID, prefilled=EMPTY)
    _is(hidden, "long", "4\n\n\n5", "repeated_think")
    assert hidden.mode == "thinking"
    _is(parse("<think>\na\n</think>\n\n4<think>b", HYBRID), "a\n\nb", "4", "repeated_think", "unclosed_think")


def test_tool_calls() -> None:
    parsed = parse(f"{EMPTY}Let me look.\n{CALL}\n{CALL}<|im_end|>", HYBRID)
    _is(parsed, "", "Let me look.", calls=2)
    assert (parsed.tool_calls[0].name, parsed.tool_calls[0].arguments) == ("f", {"a": 1})
    _is(parse(f"{EMPTY}{CALL}\n", HYBRID), "", "", calls=1)
    _is(parse(f"{EMPTY}\n{CALL}", HYBRID), "", "\n", calls=1)  # a content of newlines alone, rendered before a call
    _is(parse(f"{CALL} done", INSTRUCT), None, " done", "text_after_tool_calls", calls=1)
    _is(parse("</tool_call>", INSTRUCT), None, "</tool_call>", "stray_tool_close")
    inside = parse('<tool_call>\n{"name": "f", "arguments": {"q": "</tool_call>\\"<think>"}}\n</tool_call>', INSTRUCT)
    _is(inside, None, "", calls=1)
    assert inside.tool_calls[0].arguments == {"q": '</tool_call>"<think>'}
    loose = parse('<tool_call>{"arguments":{"a":1.0},"name":"f"}</tool_call>', INSTRUCT)
    _is(loose, None, "", calls=1)
    assert (loose.tool_calls[0].name, loose.tool_calls[0].arguments) == ("f", {"a": 1.0})


@pytest.mark.parametrize(
    ("body", "name", "arguments", "problem"),
    [
        ('{"name": "f", "arguments": {"a": 1}', "f", '{"a": 1', "broken_tool_call"),
        ('{"name": "f", "arguments": {"a": }}', "f", '{"a": }', "broken_tool_call"),
        ('{"name": "f", "arguments": "x"}', "f", '"x"', "arguments_not_object"),
        ('{"name": "f", "arguments": [1]}', "f", "[1]", "arguments_not_object"),
        ('{"name": "f"}', "f", '{"name": "f"}', "broken_tool_call"),
        ('{"name": 3, "arguments": {}}', "", '{"name": 3, "arguments": {}}', "broken_tool_call"),
        ("f(a=1)", "", "f(a=1)", "broken_tool_call"),
        ("[]", "", "[]", "broken_tool_call"),
        ("", "", "", "broken_tool_call"),
        ("[" * 100_000, "", "[" * 100_000, "broken_tool_call"),
        ('{"name": "f", "arguments": ' + "9" * 9999 + "}", "f", "9" * 9999, "broken_tool_call"),
    ],
)
def test_tool_calls_that_are_no_json(body: str, name: str, arguments: str, problem: str) -> None:
    parsed = parse(f"<tool_call>\n{body}\n</tool_call>", INSTRUCT)
    _is(parsed, None, "", problem, calls=1)
    assert (parsed.tool_calls[0].name, parsed.tool_calls[0].arguments) == (name, arguments)


def test_tool_calls_that_do_not_end() -> None:
    cut = parse('<tool_call>\n{"name": "f", "arg', INSTRUCT)
    _is(cut, None, "", "unclosed_tool_call", "broken_tool_call", calls=1)
    assert cut.tool_calls[0].name == "f"
    body = '{"name": "f", "arguments": {"a": 1}}'
    _is(
        parse(f"<tool_call>\n{body}\n<tool_call>\n{body}\n</tool_call>", INSTRUCT),
        None,
        "",
        "unclosed_tool_call",
        calls=2,
    )
    # an odd quote: the end marker is inside a string at first sight
    for odd in ('{"name": "f", "arguments": {"a}}\n', '{"name": "f", "arguments": {"a}}'):
        parsed = parse(f"<tool_call>{odd}</tool_call>\n{CALL}", INSTRUCT)
        _is(parsed, None, "", "broken_tool_call", calls=2)
        assert parsed.tool_calls[1].arguments == {"a": 1}
    held = '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>'
    for before in ("", held):
        parsed = parse(f'{before}<tool_call>{{"a</tool_call>b</think>{CALL}', HYBRID)
        _is(parsed, f'{before}<tool_call>{{"a</tool_call>b', "", "missing_open", calls=1)


def test_reading_is_linear() -> None:
    import time

    pairs = '<tool_call>{"a</tool_call>' * 20_000 + "<think>" * 20_000 + "</think>" * 20_000 + "<" * 20_000
    start = time.process_time()
    parse(pairs, INSTRUCT)
    parser = StreamParser(HYBRID)
    for character in pairs[:200_000]:
        parser.feed(character)
    parser.close()
    assert time.process_time() - start < 10  # seconds; about 1 when it was written, hours if quadratic


# --- token ids --------------------------------------------------------------------------------------------------------


@given(text=TEXT, prefilled=st.sampled_from(["", EMPTY]), data=st.data())
@EXAMPLES
def test_token_ids_one_by_one(text: str, prefilled: str, data: st.DataObject) -> None:
    """A tokenizer of single bytes, with each marker a token: the worst there is for characters."""

    def decode(ids: list[int]) -> str:
        pieces = b"".join(bytes([i]) if i < 256 else SPECIAL[i - 256].encode() for i in ids)
        return pieces.decode("utf-8", errors="replace")

    ids = list(text.encode("utf-8", errors="replace"))
    for number in range(len(SPECIAL)):  # put some of the markers in as tokens, and some broken bytes
        if data.draw(st.booleans()):
            ids.insert(data.draw(st.integers(0, len(ids))), 256 + number)
    expected = parse_ids(ids, decode, HYBRID, prefilled=prefilled)
    assert expected == parse(decode(ids), HYBRID, prefilled=prefilled)
    parser = TokenStreamParser(HYBRID, decode, prefilled)
    deltas = [delta for token in ids for delta in parser.feed([token])]
    assert parser.close() == expected == parser.close()
    deltas += parser.tail
    if "missing_open" not in expected.problems:
        assert "".join(d.text for d in deltas if d.kind == "content") == expected.content
