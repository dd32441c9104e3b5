"""The templates against the official texts, and the properties of the training variant, over nasty conversations."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from functools import cache
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.errors import PosttrainError
from posttrain.templates.families import FAMILIES, Family, Mode, get_family
from posttrain.templates.recognize import family_of_template
from posttrain.templates.render import last_flag, render, render_training, template_text

FAMILY = st.sampled_from(sorted(FAMILIES)).map(get_family)
EXAMPLES = settings(max_examples=250)

# --- conversations ---------------------------------------------------------------------------------------------------

MARKERS = [
    "<think>", "</think>", "<think>\n", "\n</think>\n\n", "<tool_call>", "\n</tool_call>", "<tool_response>",
    "</tool_response>", "<|im_start|>", "<|im_end|>", "<|im_start|>assistant\n", "<|endoftext|>", "/think", "/no_think",
    "{{ 1 }}", "{% generation %}", "{#", "\n", "\n\n", " ", "", "\t", "\r\n", "'", '"', "\\n", "&lt;", "<b>", "é",
    "思考", "🧠", "\u2028", "\u0301", "\x00", "None",
]  # fmt: skip
TEXT = st.lists(st.sampled_from(MARKERS) | st.text(max_size=6), max_size=6).map("".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
ARGUMENTS = st.dictionaries(TEXT, JSON, max_size=3) | TEXT | JSON
FUNCTION = st.fixed_dictionaries({"name": TEXT, "arguments": ARGUMENTS})
CALL = FUNCTION | FUNCTION.map(lambda function: {"type": "function", "id": "1", "function": function})
TOOLS = st.none() | st.lists(st.dictionaries(TEXT, JSON, max_size=3), max_size=3)
PASTED = TEXT.map(lambda text: f"<tool_response>{text}</tool_response>")


@st.composite
def conversations(draw: st.DrawFn, family: Family, reasoning: bool = True) -> list[dict[str, Any]]:
    """Messages that the family's official template accepts, in any order of roles."""
    content = TEXT | st.none() if family.null_content else TEXT
    user = st.fixed_dictionaries({"role": st.just("user"), "content": content | PASTED})
    system = st.fixed_dictionaries({"role": st.just("system"), "content": content})
    tool = st.fixed_dictionaries({"role": st.just("tool"), "content": content}, optional={"name": TEXT})
    thoughts = {"reasoning_content": TEXT | st.none()} if reasoning else {}
    assistant = st.fixed_dictionaries({"role": st.just("assistant"), "content": content}, optional=thoughts)
    calling = st.fixed_dictionaries(
        {"role": st.just("assistant"), "tool_calls": st.lists(CALL, min_size=1, max_size=3)},
        optional={"content": TEXT | st.none(), **thoughts},
    )
    idle = assistant.map(lambda message: message | {"tool_calls": None})
    messages = draw(st.lists(user | system | tool | assistant | calling | idle, min_size=1, max_size=6))
    if messages[0]["role"] == "system":
        messages[0]["content"] = draw(TEXT)
    return messages


def short_conversations(family: Family) -> Iterator[list[dict[str, Any]]]:
    """Every conversation of up to three messages of kinds that the templates treat differently."""
    call: dict[str, Any] = {"name": "f", "arguments": {"x": "<é"}}
    calls = [{"type": "function", "function": call}, {"function": None} | call, call | {"arguments": '{"x":1}'}]
    texts = [
        "q", "<tool_response>a</tool_response>", "<tool_response>a", "a</tool_response>", "\n\na\n", "a</think>b",
        "x<think>\n\nr\n\n</think>\n\na", "r</think>a</think>\nb", "\n",
    ]  # fmt: skip
    kinds: list[dict[str, Any]] = [{"role": "user", "content": text} for text in texts[:4]]
    kinds += [{"role": role, "content": "<think>\n\n</think>\n\ns\n"} for role in ("system", "tool")]
    kinds += [{"role": "assistant", "content": text} for text in (texts[0], *texts[4:])]
    kinds += [{"role": "assistant", "content": text, "tool_calls": calls[:1]} for text in (None, "", "\n", "a")]
    kinds.append({"role": "assistant", "tool_calls": calls if family.null_content else [calls[0], calls[2]]})
    if family.null_content:
        kinds += [{"role": "user", "content": None}, {"role": "assistant"}]
    if family.thinks:
        kinds += [{"role": "assistant", "content": t, "reasoning_content": "\nr <think>\n"} for t in ("\na", texts[5])]
        kinds += [{"role": "assistant", "reasoning_content": "", "content": "a</think>b", "tool_calls": calls[:1]}]
    openings = [kinds[0], kinds[1], kinds[4], kinds[5], kinds[-1]]
    for several in ([kinds], [kinds, kinds], [openings, kinds, kinds]):
        yield from (list(messages) for messages in product(*several))


@cache
def official(family: Family) -> str:
    """The official text, from the trl package. 2507-Thinking: Qwen3's, but its generation prompt opens the block."""
    shipped = resources.files("trl") / "chat_templates"
    if family.name != "qwen3_thinking_2507":
        return (shipped / f"{family.name}.jinja").read_text(encoding="utf-8")
    text = (shipped / "qwen3.jinja").read_text(encoding="utf-8")
    head, _ = text.split("{%- if add_generation_prompt %}")
    return head + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"


def by_transformers(text: str, messages: list[dict[str, Any]], **options: Any) -> tuple[str, list[tuple[int, int]]]:
    """Text and generation spans as transformers' own environment makes them of a template."""
    from transformers.utils.chat_template_utils import render_jinja_template

    (rendered,), spans = render_jinja_template([messages], chat_template=text, **options)
    return rendered, spans[0] if spans else []


# --- the served templates ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_short_conversations_all_of_them(family: Family) -> None:
    expected, served, trained = map(_compile, (official(family), *(template_text(family, t) for t in (False, True))))
    texts: dict[str, str] = {}
    for messages in short_conversations(family):
        assert served.render(messages=messages) == expected.render(messages=messages)
        text, _ = render_training(messages, family)
        assert text == trained.render(messages=messages)
        texts[repr(messages)] = text
        assert len(messages) == 1 or text.startswith(texts[repr(messages[:-1])])


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_options_all_of_them(family: Family) -> None:
    """Generation prompt, enable_thinking and tools, with and without a system message, after each role."""
    tool = {"type": "function", "function": {"name": "f<é", "parameters": {"b": 1, "a": [None, 1.5, "'"]}}}
    starts = [[], [{"role": "system", "content": "s\n"}], [{"role": "system", "content": ""}]]
    ends = [
        GOOD,
        {"role": "assistant", "content": "a"},
        {"role": "tool", "content": "t"},
        {"role": "system", "content": ""},
    ]
    expected, served = _compile(official(family)), _compile(template_text(family))
    for start, end, tools in product(starts, ends, [None, [], [tool], [tool, {}]]):
        messages = [*start, GOOD, end]
        for prompt, enable in product((False, True), ("absent", True, False, None, 0, 1, "false")):
            options: dict[str, Any] = {"tools": tools, "add_generation_prompt": prompt}
            options |= {} if enable == "absent" else {"enable_thinking": enable}
            text = expected.render(messages=messages, **options)
            assert served.render(messages=messages, **options) == text
            mode = _mode(enable)
            if mode in (None, *family.modes):
                assert render(messages, family, tools=tools, mode=mode, add_generation_prompt=prompt) == text


def _mode(enable: object) -> Mode | None:
    """What `render` calls a value of `enable_thinking`; others than a bool are as good as absent."""
    return "thinking" if enable is True else "non_thinking" if enable is False else None


def _compile(text: str) -> Any:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template(text)


@given(data=st.data(), family=FAMILY, prompt=st.booleans())
@settings(EXAMPLES, max_examples=400)
def test_served_template_renders_what_the_official_one_does(data: st.DataObject, family: Family, prompt: bool) -> None:
    messages = data.draw(conversations(family))
    options: dict[str, Any] = {"tools": data.draw(TOOLS), "add_generation_prompt": prompt}
    enable = data.draw(st.sampled_from([True, False, None, 0, "absent"]))
    if enable != "absent":
        options["enable_thinking"] = enable
    expected, _ = by_transformers(official(family), messages, **options)
    assert by_transformers(template_text(family), messages, **options)[0] == expected
    mode = _mode(enable)
    if mode in (None, *family.modes):
        assert render(messages, family, tools=options["tools"], mode=mode, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_a_family_is_recognized_by_the_official_text(family: Family) -> None:
    assert family_of_template(official(family)) == family


@pytest.mark.parametrize("name", ["llama3.jinja", "gemma.jinja", "deepseekv3.jinja", "qwen2_5_vl.jinja"])
def test_another_dialect_is_no_family(name: str) -> None:
    text = (resources.files("trl") / "chat_templates" / name).read_text(encoding="utf-8")
    assert family_of_template(text) is None
    assert family_of_template("{{ nothing.of.the.kind }}") is None and family_of_template("{% if %}") is None


def test_official_text_is_the_one_this_was_written_for() -> None:
    import hashlib

    assert hashlib.sha256(official(get_family("qwen3")).encode()).hexdigest().startswith("a55ee1b1")
    assert template_text(get_family("qwen3")) != official(get_family("qwen3"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A byte-level tokenizer with Qwen's markers as added tokens, built here."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), vocab_size=300)
    core.train_from_iterator(["user assistant system\n\n"], trainer)
    core.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    core.add_tokens([AddedToken(t, normalized=False) for t in ("<think>", "</think>", "<tool_call>", "</tool_call>")])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")


@given(data=st.data(), family=FAMILY, prompt=st.booleans())
@settings(EXAMPLES, max_examples=100)
def test_tokenizers_render_the_same(tokenizer: Any, data: st.DataObject, family: Family, prompt: bool) -> None:
    messages, tools = data.draw(conversations(family)), data.draw(TOOLS)
    mode = data.draw(st.sampled_from([None, *family.modes]))
    options = {} if mode is None else {"enable_thinking": mode == "thinking"}
    tokenizer.chat_template = template_text(family)
    expected = tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=prompt, **options
    )
    assert render(messages, family, tools=tools, mode=mode, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_family_names_the_prefill_and_default_system_of_its_template(family: Family) -> None:
    user = [{"role": "user", "content": "q"}]
    for mode in family.modes:
        prompt = render(user, family, mode=mode, add_generation_prompt=True)
        assert prompt == render(user, family) + "<|im_start|>assistant\n" + family.prefill[mode]
        assert mode in family.sampling
    assert render(user, family, add_generation_prompt=True) == render(
        user, family, mode=family.default_mode, add_generation_prompt=True
    )
    system = f"<|im_start|>system\n{family.default_system}<|im_end|>\n" if family.default_system else ""
    assert render(user, family) == system + "<|im_start|>user\nq<|im_end|>\n"


# --- the training variant ---------------------------------------------------------------------------------------------


@given(data=st.data(), family=FAMILY, supervise=st.booleans())
@settings(EXAMPLES, max_examples=400)
def test_python_renderer_equals_the_training_template(data: st.DataObject, family: Family, supervise: bool) -> None:
    messages, tools = data.draw(conversations(family, reasoning=family.thinks)), data.draw(TOOLS)
    expected = by_transformers(
        template_text(family, training=True),
        messages,
        tools=tools,
        supervise_empty_think=supervise,
        return_assistant_tokens_mask=True,
    )
    assert render_training(messages, family, tools=tools, supervise_empty_think=supervise) == expected
    if supervise:  # the default, in the template too
        assert by_transformers(template_text(family, training=True), messages, tools=tools) == (expected[0], [])


@given(data=st.data(), family=FAMILY)
@EXAMPLES
def test_prefix_and_extension(data: st.DataObject, family: Family) -> None:
    messages, tools = data.draw(conversations(family, reasoning=family.thinks)), data.draw(TOOLS)
    texts = [render_training(messages[: k + 1], family, tools=tools) for k in range(len(messages))]
    for (shorter, spans), (longer, more), message in zip(texts, texts[1:], messages[1:], strict=False):
        assert longer.startswith(shorter)
        assert more[: len(spans)] == spans and len(more) - len(spans) == (message["role"] == "assistant")
    template = template_text(family, training=True)
    for k in range(1, len(messages)):  # a turn extends the prompt that asked for it
        if messages[k]["role"] == "assistant":
            prompt, _ = by_transformers(template, messages[:k], tools=tools, add_generation_prompt=True)
            assert texts[k][0].startswith(prompt)
            assert texts[k][1][-1][0] == len(prompt)


@given(data=st.data(), family=FAMILY)
@EXAMPLES
def test_spans_hold_the_assistants_words_and_nothing_else(data: st.DataObject, family: Family) -> None:
    """Replace every assistant turn by an empty one: what lies outside the spans stays, what lies inside goes."""
    messages, tools = data.draw(conversations(family, reasoning=family.thinks)), data.draw(TOOLS)
    text, spans = render_training(messages, family, tools=tools)
    blank = [{"role": "assistant", "content": ""} if m["role"] == "assistant" else m for m in messages]
    blank_text, blank_spans = render_training(blank, family, tools=tools)
    assert _outside(text, spans) == _outside(blank_text, blank_spans)
    assert len(spans) == sum(message["role"] == "assistant" for message in messages)
    ending = "<think>\n\n</think>\n\n<|im_end|>" if family.thinks else "<|im_end|>"
    given_part = family.prefill[family.default_mode]
    assert all(blank_text[start:end] == ending[len(given_part) :] for start, end in blank_spans)
    assert all(text[start:end].endswith("<|im_end|>") and text[end] == "\n" for start, end in spans)


def _outside(text: str, spans: list[tuple[int, int]]) -> list[str]:
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    return [text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]


@given(data=st.data(), family=FAMILY)
@EXAMPLES
def test_training_equals_served_where_nothing_is_history(data: st.DataObject, family: Family) -> None:
    """One assistant turn, the last, after a query: what is trained is what a server would show."""
    asked = st.builds(lambda text: {"role": "user", "content": text}, TEXT.map(lambda text: f"q{text}"))
    turn = conversations(family, reasoning=family.thinks).map(lambda ms: [m for m in ms if m["role"] == "assistant"])
    messages = [data.draw(asked), *data.draw(turn)[:1]]
    assert render_training(messages, family)[0] == render(messages, family)


def test_the_loss_on_an_empty_think_block_is_a_choice() -> None:
    messages = [{"role": "user", "content": "2+2? /no_think"}, {"role": "assistant", "content": "4"}]
    for name, expected in {
        "qwen3": "<think>\n\n</think>\n\n4<|im_end|>",
        "qwen3_thinking_2507": "\n</think>\n\n4<|im_end|>",
    }.items():
        text, [(start, end)] = render_training(messages, get_family(name))
        assert text[start:end] == expected
        text, [(start, end)] = render_training(messages, get_family(name), supervise_empty_think=False)
        assert text[start:end] == "4<|im_end|>"
    messages[1]["reasoning_content"] = "hm"  # a block with something in it is always the model's own
    text, [(start, end)] = render_training(messages, get_family("qwen3"), supervise_empty_think=False)
    assert text[start:end] == "<think>\nhm\n</think>\n\n4<|im_end|>"


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_masks_of_transformers_and_trl_checks(tokenizer: Any, family: Family) -> None:
    from trl.chat_template_utils import (
        is_chat_template_prefix_preserving,
        is_chat_template_stop_token_trained,
        supports_tool_calling,
    )

    tokenizer.chat_template = template_text(family, training=True)
    assert is_chat_template_prefix_preserving(tokenizer)
    assert is_chat_template_stop_token_trained(tokenizer)
    assert supports_tool_calling(tokenizer)
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": "é"}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "思考 <think> /no_think"},
        {"role": "assistant", "content": "a\nb"},
        {"role": "user", "content": "again"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "🧠"},
        {"role": "assistant", "content": "done"},
    ]
    if family.kind == "thinking":  # after its "<think>\n" an empty block would merge two newlines into one token
        messages = [m | {"reasoning_content": "hm"} if m["role"] == "assistant" else m for m in messages]
    out = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    text, spans = render_training(messages, family)
    masked = [token for token, on in zip(out["input_ids"], out["assistant_masks"], strict=True) if on]
    assert tokenizer.decode(out["input_ids"]) == text
    assert tokenizer.decode(masked) == "".join(text[start:end] for start, end in spans)


# --- refusals, flags, packaging ---------------------------------------------------------------------------------------

GOOD = {"role": "user", "content": "q"}
CALLS: list[tuple[str, Any]] = [
    ("messages", []),
    ("messages", "text"),
    ("messages[1]", [GOOD, "text"]),
    ("messages[1]", [GOOD, {"role": "developer", "content": "x"}]),
    ("messages[1]", [GOOD, {"content": "x"}]),
    ("messages[0]", [{"role": "user", "content": [{"type": "text", "text": "lost"}]}]),
    ("messages[0]", [{"role": "system", "content": None}]),
    ("messages[1]", [GOOD, {"role": "assistant", "content": "a", "reasoning_content": ["lost"]}]),
    ("messages[1]", [GOOD, {"role": "assistant", "content": 3}]),
    ("messages[0]", [{"role": "user", "content": "q", "tool_calls": [{"name": "f", "arguments": {}}]}]),
    ("messages[1]", [GOOD, {"role": "assistant", "tool_calls": "f()"}]),
    ("messages[1].tool_calls[0]", [GOOD, {"role": "assistant", "tool_calls": ["f()"]}]),
    ("messages[1].tool_calls[0]", [GOOD, {"role": "assistant", "tool_calls": [{"arguments": {}}]}]),
    ("messages[1].tool_calls[0]", [GOOD, {"role": "assistant", "tool_calls": [{"name": "f"}]}]),
    ("messages[1].tool_calls[0]", [GOOD, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {1, 2}}]}]),
]


@pytest.mark.parametrize(("where", "messages"), CALLS)
@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_what_cannot_be_rendered_is_refused_by_index(where: str, messages: Any, family: Family) -> None:
    for function in (render, render_training):
        with pytest.raises(PosttrainError) as caught:
            function(messages, family)
        assert [problem.where for problem in caught.value.problems] == [where]


def test_all_problems_at_once_and_those_of_a_family() -> None:
    bad = [{"role": "user", "content": 1}, GOOD, {"role": "robot", "content": ""}]
    with pytest.raises(PosttrainError) as caught:
        render(bad, get_family("qwen3"), tools=[print])  # type: ignore[list-item, arg-type]
    assert [problem.where for problem in caught.value.problems] == ["messages[0]", "messages[2]", "tools[0]"]
    thought = [GOOD, {"role": "assistant", "content": "a", "reasoning_content": "r"}]
    assert render(thought, get_family("qwen3_instruct_2507")).endswith("assistant\na<|im_end|>\n")
    with pytest.raises(PosttrainError, match="no place for reasoning"):
        render_training(thought, get_family("qwen3_instruct_2507"))
    for role in ("user", "assistant", "tool"):
        with pytest.raises(PosttrainError, match=f"{role} message without content"):
            render([GOOD, {"role": role, "content": None}], get_family("qwen2_5"))
    with pytest.raises(PosttrainError, match="no mode 'non_thinking'"):
        render([GOOD], get_family("qwen3_thinking_2507"), mode="non_thinking")
    with pytest.raises(PosttrainError, match="did you mean 'qwen2_5'"):
        get_family("Qwen2.5")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["hello"], None),
        (["hello /think", "no, /no_think please"], "non_thinking"),
        (["/no_think a", "b /think"], "thinking"),
        (["/no_think then /think"], "thinking"),
        (["/no_think", "no flag here"], "non_thinking"),
        (["你好/no_think"], "non_thinking"),
        (["(/think)."], "thinking"),
        (["read docs/think.md, /think/about, https://x/think, /thinking and /think.py"], None),
        (["/no_think", "<tool_response>\n/think\n</tool_response>"], "non_thinking"),
    ],
)
def test_last_flag_wins(texts: list[str], expected: Mode | None) -> None:
    messages: list[dict[str, Any]] = []
    for text in texts:
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": "I saw /think and /no_think"}]
    messages += [{"role": "tool", "content": "/think"}, {"role": "user", "content": None}]
    assert last_flag(messages, get_family("qwen3")) == expected
    assert last_flag(messages, get_family("qwen3_instruct_2507")) is None


def test_a_system_flag_counts_until_a_later_one() -> None:
    system = {"role": "system", "content": "Be brief. /no_think"}
    assert last_flag([system, GOOD], get_family("qwen3")) == "non_thinking"
    assert last_flag([system, {"role": "user", "content": "q /think"}], get_family("qwen3")) == "thinking"


def test_files_families_and_pickles() -> None:
    import posttrain.templates

    folder = Path(posttrain.templates.__file__).parent
    used = {name for family in FAMILIES.values() for name in (family.template, family.training_template)}
    assert used == {path.name for path in folder.glob("*.jinja")}
    assert used == {f.name for f in resources.files("posttrain.templates").iterdir() if f.name.endswith(".jinja")}
    for family in FAMILIES.values():
        assert pickle.loads(pickle.dumps(family)) == family and hash(family) == hash(get_family(family.name))
        assert "generation %" not in template_text(family)


def test_rendering_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from posttrain.templates.families import get_family as f; from posttrain.templates import parse\n"
        "from posttrain.templates.render import render; render([{'role': 'user', 'content': ''}], f('qwen3'))\n"
        "print([m for m in ('torch', 'transformers', 'trl', 'datasets', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
