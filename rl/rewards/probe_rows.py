"""Rows that verifiers of files are probed with, and what the rewards of form are probed with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.rl.rewards.tricks import answered


def _row(task: str, prompt: str, answer: str = "", **entry: Any) -> dict[str, Any]:
    text = json.dumps(entry) if entry else ""
    return {
        "id": prompt,
        "task": task,
        "prompt": [{"role": "user", "content": prompt}],
        "answer": answer,
        "entry": text,
    }


def _demanding(prompt: str, gold: str, *constraints: Mapping[str, Any]) -> dict[str, Any]:
    return _row("constraints", prompt, gold=gold, constraints=list(constraints))


ROWS: Mapping[str, list[dict[str, Any]]] = {
    "exact": [
        _row("exact", "What is the capital of Norway?", "Oslo"),
        _row("exact", "Which river runs through Cairo?", "the Nile"),
        _row("exact", "Who wrote Faust?", "Johann Wolfgang von Goethe"),
    ],
    "number": [
        _row("number", "What is 17 + 25?", "42"),
        _row("number", "What is half of 5?", "2.5"),
        _row("number", "How many legs have 3 spiders and 2 dogs?", "32"),
    ],
    "choice": [
        _row("choice", "Which is a fruit? A) stone B) apple C) cloud D) key", "B"),
        _row("choice", "Which is largest? A) 3 B) 1 C) 2 D) 9", "D"),
        _row("choice", "Which is cold? A) fire B) sun C) ice D) lava", "C"),
    ],
    "math": [
        _row("math", "Solve x^2 = 2 for x > 0.", "\\sqrt{2}"),
        _row("math", "Add 1/3 and 1/6.", "\\frac{1}{2}"),
        _row("math", "What is the derivative of x^3?", "3x^2"),
        _row("math", "What is 3*4 + 5?", "17"),
    ],
    "code": [
        _row(
            "code",
            "Write add(a, b), the sum of two numbers.",
            "assert add(2, 3) == 5\nassert add(-1, 1) == 0",
            entry_point="add",
            solution="def add(a, b):\n    return a + b",
        ),
        _row(
            "code",
            "Write last(words), the last word of a list, or None.",
            "assert last(['a', 'b']) == 'b'\nassert last([]) is None",
            entry_point="last",
            solution="def last(words):\n    return words[-1] if words else None",
        ),
    ],
    "constraints": [
        _demanding(
            "Describe the sea in four words, in lower case, with the word salt.",
            "it tastes of salt",
            {"kind": "words", "target": 4},
            {"kind": "lower"},
            {"kind": "include", "phrases": ["salt"]},
        ),
        _demanding(
            "Two bullets on tea, none of them with the word hot, the last one ending in cup.",
            "- tea is a drink of leaves\n- it is poured into a cup",
            {"kind": "bullets", "count": 2},
            {"kind": "include", "phrases": ["tea"]},
            {"kind": "exclude", "phrases": ["hot"]},
            {"kind": "ends", "text": "cup"},
        ),
    ],
}
"""For tasks that make no queries of their own."""


@dataclass(frozen=True)
class FormProbe:
    """What a reward of form is for: good completions earn 1, bad ones 0.

    Attributes:
        row: the query's row. facts: of every rollout; bad_facts: of the bad ones, beside them.
    """

    row: dict[str, Any]
    good: Sequence[str]
    bad: Sequence[str]
    facts: Mapping[str, Any] = field(default_factory=dict)
    bad_facts: Mapping[str, Any] = field(default_factory=dict)


_END = "<|im_end|>"
_SUM = {
    "id": "sum",
    "task": "arithmetic",
    "prompt": [{"role": "user", "content": "7 c+5 =?"}],
    "answer": "2",
    "entry": "",
}
_THOUGHT = answered("\\boxed{2}")
_GERMAN = (
    "Das ist die Antwort auf die Frage und sie ist nicht lang, aber wir sind mit dem Ergebnis zufrieden, denn es ist "
    "auch das, was auf der Seite stand, die wir aus dem Buch von gestern haben und die nicht neu ist."
)
_ENGLISH = (
    "This is the answer to the question and it is not long, but we are happy with what we have, for it is that which "
    "was on the page that we have from the book of the day before and which is not new to us then."
)

FORM_PROBES: Mapping[str, FormProbe] = {
    "mode_following": FormProbe(
        _SUM, [_THOUGHT], ["", _END, f"\\boxed{{2}}{_END}", f"<think></think>a{_END}", "<think></think>a", "zzz 8 {"]
    ),
    "format": FormProbe(
        _SUM,
        [_THOUGHT],
        ["", _END, f"\\boxed{{2}}{_END}", "<think></think>a", "<think>\nhm", f"<think>\nhm\n</think>\n\n{_END}", "zzz"],
    ),
    "answer_format": FormProbe(
        _SUM, [_THOUGHT, answered("\\boxed{3}")], ["", answered("2"), answered("\\boxed{x}"), "<think></think>a", "zzz"]
    ),
    "length": FormProbe(_SUM, [_THOUGHT], [_THOUGHT], {"tokens": 50, "max_tokens": 100}, {"tokens": 100}),
    "length_control": FormProbe(
        _row("constraints", "Say it in five words.", length={"unit": "words", "target": 5}),
        [answered("it is a fine day")],
        ["", _END, answered("one two three four five six seven eight nine ten"), "<think>\nit is a fine day"],
    ),
    "language": FormProbe(
        _row("exact", "Wie heißt das? Antworte auf Deutsch.", language="German"),
        [answered(_GERMAN)],
        ["", _END, answered(_ENGLISH), answered("это ответ"), answered("123 { }"), f"<think>\n{_GERMAN}{_END}"],
    ),
    "repetition": FormProbe(
        _SUM, [_THOUGHT, answered(_ENGLISH)], ["", _END, answered("so it is " * 60), answered(f"{_ENGLISH} " * 5)]
    ),
}
