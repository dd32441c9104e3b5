"""What a recipe cannot ask of the SFT stage, and the kind of model that it leaves."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.templates.families import Kind
from tests.sft_stage import FROM_LEARN, recipe_of, sft

THINKING = {"data": "problems", "mode": "thinking"}
PLAIN = {"data": "problems", "mode": "non_thinking"}


def sampled(**more: Any) -> dict[str, Any]:
    return {"rejection_sampling": {"queries": "problems", "samples": 1, **more}}


@pytest.mark.parametrize(
    ("stage", "family", "kind", "expected"),
    [
        (sft(THINKING), "qwen3", "base", []),
        (sft(THINKING, PLAIN, fusion={}), "qwen3", "thinking", []),
        (sft(THINKING, PLAIN), "qwen3", "instruct", []),
        (sft(THINKING), "qwen2_5", "instruct", [(("samples", 0), "thinking samples")]),
        (sft(PLAIN), "qwen3_thinking_2507", "thinking", [(("samples", 0), "no such mode"), (("samples",), "alone")]),
        (
            sft(THINKING, PLAIN, fusion={}),
            "qwen2_5",
            "instruct",
            [(("samples", 0), ""), (("fusion",), "no mode flags")],
        ),
        (sft(THINKING, fusion={}), "qwen3", "thinking", [(("fusion",), "without non-thinking samples")]),
        (sft({"data": "problems"}, fusion={}), "qwen3", "thinking", []),  # the rows may hold both
        (sft(PLAIN), "qwen3", "thinking", [(("samples",), "non-thinking samples alone")]),
        (
            sft(THINKING, sampled(mode="non_thinking"), fusion={}),
            "qwen3",
            "thinking",
            [(("samples", 1, "rejection_sampling", "mode"), "of kind thinking")],
        ),
        (
            sft(sampled(**{"from": "teacher"})),
            "qwen3",
            "base",
            [(("samples", 0, "rejection_sampling", "from"), "the stage has none")],
        ),
        (sft(THINKING, train={"packing": True}), "qwen3", "base", [(("train", "packing"), "own option")]),
        (
            sft(THINKING, packing=True, train={"max_length": None}),
            "qwen3",
            "base",
            [(("train", "max_length"), "length")],
        ),
    ],
)
def test_faults(stage: dict[str, Any], family: str, kind: Kind, expected: list[tuple[Any, str]]) -> None:
    recipe = recipe_of({"s": stage}, template={"family": family})
    faults = list(recipe.stages["s"].faults(recipe, kind))
    assert [fault.loc for fault in faults] == [loc for loc, _ in expected]
    for fault, (_, words) in zip(faults, expected, strict=True):
        assert words in fault.what


@pytest.mark.parametrize(
    ("stage", "start", "result"),
    [
        (sft(THINKING), "base", "thinking"),
        (sft(PLAIN), "base", "instruct"),
        (sft(THINKING, PLAIN), "base", "hybrid"),
        (sft({"data": "problems"}), "instruct", "instruct"),
        (sft(THINKING), "instruct", "thinking"),
        (sft(sampled(), PLAIN, fusion={}), "thinking", "hybrid"),
        (sft(THINKING), "hybrid", "hybrid"),
    ],
)
def test_the_kind_of_the_result(stage: dict[str, Any], start: Kind, result: Kind) -> None:
    assert recipe_of({"s": stage}).stages["s"].result_kind(start) == result


def test_references_are_named_with_their_place() -> None:
    asked = {"queries": {"not_solved_without_thinking": {"model": "cold"}}}
    stage = recipe_of({"s": sft(THINKING, sampled(), {"rejection_sampling": FROM_LEARN}, filters=asked)}).stages["s"]
    assert stage.data_references() == [
        (("samples", 0, "data"), "problems"),
        (("samples", 1, "rejection_sampling", "queries"), "problems"),
    ]
    assert stage.stage_references() == [
        (("samples", 2, "rejection_sampling", "queries_of"), "learn"),
        (("samples", 2, "rejection_sampling", "from"), "learn"),
        (("filters", "queries", "not_solved_without_thinking", "model"), "cold"),
    ]
