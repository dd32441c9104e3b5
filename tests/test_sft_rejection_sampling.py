"""Rejection sampling: any sampler, chunks that survive a kill, and counts that add up."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from posttrain.data.funnel import Funnel, json_line
from posttrain.model.generation import Completion, Prompt
from posttrain.sft.completions import Candidate, Completions
from posttrain.sft.rejection_sampling import (
    RejectionSampling,
    response_of,
    select,
    typical_thinking,
    unusable,
)
from posttrain.sft.response_filters import ResponseFilters, Surroundings, score_with_task
from posttrain.sft.sampler import stage_named
from posttrain.sft.samples import Sample
from posttrain.tasks.registry import get_task
from posttrain.templates.families import Mode, get_family
from posttrain.templates.parse import parse

QWEN3 = get_family("qwen3")
QUERIES = list(get_task("arithmetic").queries(10, seed=3, steps=[2, 4]))


class Killed(BaseException):
    """What a kill is to the process: nothing catches it."""


class Sampler:
    """Answers arithmetic: right, wrong, truncated, without thinking or twice the same, as the seed has it."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.calls: list[int] = []
        self._dies_after = dies_after

    def __call__(
        self, prompts: Sequence[Prompt], *, seed: int, progress: Callable[[int], None] | None = None
    ) -> list[Completion]:
        if self._dies_after is not None and len(self.calls) >= self._dies_after:
            raise Killed
        self.calls.append(len(prompts))
        rng = random.Random(seed)
        done = [self._answer(prompt, rng) for prompt in prompts]
        if progress:
            progress(len(done))
        return done

    def _answer(self, prompt: Prompt, rng: random.Random) -> Completion:
        row = next(row for row in QUERIES if row["prompt"] == prompt.messages)
        kind = rng.choice(["right", "right", "wrong", "truncated", "other mode"])
        right = row["response"]
        content = right if kind != "wrong" else right.replace(row["answer"], str((int(row["answer"]) + 1) % 10))
        thinks = (prompt.mode == "thinking") != (kind == "other mode")
        text = f"<think>\n{row['reasoning'] if thinks else ''}\n</think>\n\n{content}"
        if kind == "truncated":
            text = text[: len(text) // 2]
        message = parse(text, QWEN3)
        rest: dict[str, Any] = {"prompt_ids": [], "forced": [], "prefilled": "", "mode": prompt.mode}
        rest |= {"thinking_budget": prompt.thinking_budget, "thinking_tokens": 3, "closed_by": "natural"}
        ids = list(range(len(text)))
        cut = kind == "truncated"
        return Completion(completion_ids=ids, text=text, message=message, truncated=cut, **rest)


def completions(directory: Path, sampler: Sampler, mode: Mode = "thinking", **changed: Any) -> Completions:
    given: dict[str, Any] = {"samples": 4, "seed": 5, "made_with": ["model"], "chunk": 12, "mode": mode}
    return Completions(QUERIES, lambda: sampler, directory=directory, **given | changed)


def kept(done: Completions, funnel: Funnel | None = None, keep: int = 2) -> list[Sample]:
    active = ResponseFilters().active()
    around = Surroundings(score_with_task)
    return list(select(done, active, around, keep=keep, source="rs", funnel=funnel or Funnel()))


def test_the_filters_leave_right_answers_in_the_mode_asked_for(tmp_path: Path) -> None:
    modes: tuple[Mode, Mode] = ("thinking", "non_thinking")
    for mode in modes:
        done = completions(tmp_path / mode, Sampler(), mode)
        done.generate()
        samples = kept(done)
        assert samples
        for sample in samples:
            assert sample.mode == mode and sample.messages[0]["role"] == "user"
            assert bool(sample.messages[-1].get("reasoning_content")) is (mode == "thinking")
            assert score_with_task(sample.messages[-1]["content"], sample.query) == 1.0


def test_the_counts_add_up(tmp_path: Path) -> None:
    done = completions(tmp_path, Sampler())
    done.generate()
    funnel = Funnel()
    samples = kept(done, funnel, keep=1)
    facts = funnel.as_json()
    steps = {step["step"]: step for step in facts["steps"]}
    assert steps["usable"]["in"] == 40 and set(steps["usable"]["why"]) <= {"truncated", "malformed", "wrong_mode"}
    order = ["usable", *(one.name for one in ResponseFilters().active()), "kept"]
    assert [step["step"] for step in facts["steps"]] == order
    for before, after in pairwise(order):
        assert steps[after]["in"] == steps[before]["kept"]
    assert steps["kept"]["kept"] == len(samples) == len({sample.query["id"] for sample in samples})
    # The sampler says the same right thing every time: what is not kept of it is a duplicate.
    assert set(steps["kept"]["why"]) == {"duplicate"}
    made = facts["rejection_sampling"]["rs"]
    assert made["completions"] == 40 and made["queries"] == 10
    assert made["accepted"] == steps["kept"]["in"] and made["queries_with_an_accepted_one"] == len(samples)
    shares = made["accepted_share_by_difficulty"]
    sizes = {str(d): sum(row["difficulty"] == d for row in QUERIES) for d in (2, 3, 4)}
    assert sum(shares[d] * sizes[d] * 4 for d in shares) == pytest.approx(made["accepted"])


def test_a_killed_build_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    whole = completions(tmp_path / "whole", Sampler())
    whole.generate()
    killed = Sampler(dies_after=2)
    with pytest.raises(Killed):
        completions(tmp_path / "killed", killed).generate()
    assert killed.calls == [12, 12]
    resumed = Sampler()
    heard: list[int] = []
    done = completions(tmp_path / "killed", resumed)
    done.generate(heard.append)
    assert resumed.calls == [12, 4]  # 40 completions in chunks of 12: two were there
    assert sum(heard) == 40 == len(done)
    assert list(done) == list(whole)
    for chunk in sorted((tmp_path / "whole").iterdir()):
        assert chunk.read_bytes() == (tmp_path / "killed" / chunk.name).read_bytes()


def test_finished_completions_need_no_model(tmp_path: Path) -> None:
    completions(tmp_path, Sampler()).generate()

    def refuse() -> Any:
        raise AssertionError("the model was loaded")

    given: dict[str, Any] = {"samples": 4, "seed": 5, "made_with": ["model"], "chunk": 12, "mode": "thinking"}
    Completions(QUERIES, refuse, directory=tmp_path, **given).generate()


@pytest.mark.parametrize(
    "changed",
    [{"seed": 6}, {"made_with": ["another model"]}, {"mode": "non_thinking"}, {"thinking_budget": 8}, {"samples": 3}],
)
def test_chunks_made_otherwise_are_made_anew(tmp_path: Path, changed: dict[str, Any]) -> None:
    completions(tmp_path, Sampler()).generate()
    again = Sampler()
    done = completions(tmp_path, again, **changed)
    done.generate()
    assert sum(again.calls) == len(done)
    assert [len(group) for group in done] == [changed.get("samples", 4)] * 10


def test_a_half_written_chunk_is_never_read(tmp_path: Path) -> None:
    completions(tmp_path, Sampler()).generate()
    path = tmp_path / "chunk-00001.jsonl"
    whole = path.read_text(encoding="utf-8")
    for torn in ("", whole[:20], whole[: len(whole) // 2], whole[:-1]):  # as a machine that goes down may leave it
        path.write_text(torn, encoding="utf-8")
        again = Sampler()
        completions(tmp_path, again).generate()
        assert again.calls == [12] and path.read_text(encoding="utf-8") == whole


def test_unicode_line_breaks_stay_on_one_line() -> None:
    text = "a\u2028b\u2029c\x85d\ne"
    line = json_line({"content": text})
    assert len(line.splitlines()) == 1 and json.loads(line) == {"content": text}


def candidate(**more: Any) -> Candidate:
    message = {"role": "assistant", "content": "4", "reasoning_content": "two and two"}
    given = {"query": 0, "message": message, "truncated": False, "well_formed": True, "tokens": 9, "thinking_tokens": 3}
    return Candidate(**{**given, "closed_by": "natural", **more})


def test_what_no_filter_need_look_at() -> None:
    silent = {"role": "assistant", "content": "", "reasoning_content": "two"}
    plain = {"role": "assistant", "content": "4", "reasoning_content": ""}
    for given, mode, rule in (
        (candidate(), "thinking", None),
        (candidate(), "non_thinking", "wrong_mode"),
        (candidate(message=plain), "thinking", "wrong_mode"),
        (candidate(message=plain), "non_thinking", None),
        (candidate(truncated=True), "thinking", "truncated"),
        (candidate(well_formed=False), "thinking", "malformed"),
        (candidate(message=silent), "thinking", "empty"),
    ):
        drop = unusable(given, mode)  # type: ignore[arg-type]
        assert (drop.rule if drop else None) == rule


def test_typical_thinking_is_the_median_by_difficulty() -> None:
    rows = [row | {"difficulty": d} for d, row in zip([1, 1, 1, 2], QUERIES, strict=False)]
    lengths = [3, 5, 100, 7]
    responses = [
        response_of(row, candidate(message={"content": "4", "reasoning_content": "w " * n}), "thinking")
        for row, n in zip(rows, lengths, strict=True)
    ]
    assert typical_thinking(responses) == {1: 5, 2: 7}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "either `queries`"),
        ({"queries": "a", "queries_of": "b"}, "either `queries`"),
        ({"queries": "a", "samples": 2, "keep": 3}, "keep"),
        ({"queries": "a", "mode": "non_thinking", "thinking_budget": 5}, "thinking_budget"),
        ({"queries": "a", "form": "start"}, "form"),
    ],
)
def test_options_that_do_not_fit_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RejectionSampling.model_validate(given)


def test_from_is_written_as_it_is_read() -> None:
    spec = RejectionSampling.model_validate({"queries": "a", "from": "reasoning_rl"})
    assert spec.model == "reasoning_rl" and spec.model_dump()["from"] == "reasoning_rl"
    assert RejectionSampling.model_validate(spec.model_dump()) == spec


def test_what_a_model_reference_names() -> None:
    assert stage_named("reasoning_rl") == "reasoning_rl"
    for other in ("start", "base", "teacher", "./model", "~/model", "/models/x", "Qwen/Qwen3-32B"):
        assert stage_named(other) is None
