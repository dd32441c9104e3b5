"""Which queries a stage of rollouts uses, and how each sample asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_from_disk
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import PosttrainError
from posttrain.model.artifacts import RunDir
from posttrain.recipe.kinds import stage_class
from posttrain.recipe.schema import DataSpec, EvaluationSpec, ModelSpec, Recipe, TemplateSpec
from posttrain.recipe.stage import Stage, StageContext
from posttrain.recipe.trainer_options import train_faults
from posttrain.rl import pass_rate
from posttrain.rl.grpo import GrpoStage
from posttrain.rl.modes import Asking, ThinkingBudgets, ask, deal
from posttrain.tasks.registry import get_task
from posttrain.templates.families import Kind, Mode, get_family
from posttrain.templates.render import last_flag

QWEN3 = get_family("qwen3")
Stage.model_rebuild(_types_namespace={"ModelSpec": ModelSpec})
Recipe.model_rebuild()


def grpo(**options: Any) -> GrpoStage:
    stage = stage_class("grpo").model_validate({"queries": {"from": "sums"}, **options})
    assert isinstance(stage, GrpoStage)
    return stage


def context(tmp_path: Path, stage: Stage, *, kind: Kind = "hybrid", family: str = "qwen3", **data: int) -> StageContext:
    """A run with one data set of arithmetic queries for each keyword (name: rows)."""
    run = RunDir(tmp_path)
    for place, (name, size) in enumerate((data or {"sums": 40}).items()):
        rows = list(get_task("arithmetic").queries(size, seed=place, steps=[4, 8]))
        Dataset.from_list(rows).save_to_disk(str(run.data(name)))
    recipe = Recipe(
        name="test",
        model=ModelSpec(path="nowhere"),
        data={"sums": DataSpec(task="arithmetic", size=1)},
        evaluation=EvaluationSpec(data=["sums"]),
        stages={"rl": stage},
    )
    return StageContext(
        recipe=recipe,
        name="rl",
        run=run,
        dir=run.stage("rl"),
        start=run.base,
        teacher=None,
        family=get_family(family),
        kind=kind,
        quiet=True,
    )


def built(where: StageContext) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    where.dir.data.mkdir(parents=True)
    funnel = where.recipe.stages["rl"].build_data(where)
    return list(load_from_disk(str(where.dir.data / "train"))), funnel


@given(st.integers(0, 200), st.dictionaries(st.sampled_from("abcd"), st.floats(0.01, 1), min_size=1), st.integers(0, 9))
def test_shares_are_kept_as_exactly_as_whole_numbers_go(count: int, shares: dict[str, float], seed: int) -> None:
    import random

    dealt = deal(count, shares, random.Random(seed))
    assert len(dealt) == count
    for item, share in shares.items():
        assert abs(dealt.count(item) - count * share / sum(shares.values())) < 1


def test_modes_flags_and_budgets_are_dealt_out_by_sample() -> None:
    rows = list(get_task("arithmetic").queries(80, seed=1))
    asking = Asking(
        modes={"thinking": 0.75, "non_thinking": 0.25},
        flags=True,
        unflagged=0.5,
        in_system=0.25,
        thinking_budgets=ThinkingBudgets(share=0.2, choices=[16, 32]),
    )
    asked = list(ask(rows, asking, QWEN3, seed=3))
    thinking = [row for row in asked if row["mode"] == "thinking"]
    silent = [row for row in asked if row["mode"] == "non_thinking"]
    assert (len(thinking), len(silent)) == (60, 20)
    # Every non-thinking sample carries its flag; half of the thinking ones none.
    assert all(row["switch"] == "flag" and last_flag(row["prompt"], QWEN3) == "non_thinking" for row in silent)
    flagged = [row for row in thinking if row["switch"] == "flag"]
    assert len(flagged) == 30
    assert all(last_flag(row["prompt"], QWEN3) == "thinking" for row in flagged)
    assert all(last_flag(row["prompt"], QWEN3) is None for row in thinking if row["switch"] == "default")
    budgets = [row["thinking_budget"] for row in thinking]
    assert (budgets.count(-1), budgets.count(16), budgets.count(32)) == (48, 6, 6)
    assert all(row["thinking_budget"] == -1 for row in silent)
    in_system = [row for row in asked if row["prompt"][0]["role"] == "system"]
    assert 0 < len(in_system) <= 20
    assert list(ask(rows, asking, QWEN3, seed=3)) == asked
    assert rows[0]["prompt"] == [{"role": "user", "content": rows[0]["prompt"][0]["content"]}]


def test_without_flags_the_template_asks(tmp_path: Path) -> None:
    rows, _ = built(context(tmp_path, grpo(modes={"thinking": 0.5, "non_thinking": 0.5})))
    assert {row["switch"] for row in rows} == {"template"}
    assert [row["mode"] for row in rows].count("thinking") == 20
    assert all(last_flag(row["prompt"], QWEN3) is None for row in rows)


def test_queries_of_an_earlier_stage_are_left_out_by_key(tmp_path: Path) -> None:
    stage = grpo(queries={"from": "sums", "exclude_queries_of": ["cold"]})
    where = context(tmp_path, stage)
    everything = list(load_from_disk(str(where.run.data("sums"))))
    used = everything[:15]
    cold = where.run.stage("cold").data
    cold.mkdir(parents=True)
    # The same problems under other names and letters: only the key tells.
    Dataset.from_list([{"key": row["key"], "id": "x"} for row in used]).to_parquet(str(cold / "queries.parquet"))
    rows, funnel = built(where)
    keys = {row["key"] for row in rows}
    assert keys == {row["key"] for row in everything[15:]} - {row["key"] for row in used}
    step = next(step for step in funnel["steps"] if step["step"] == "unused")
    assert step["why"] == {"used_before": step["dropped"]}
    assert step["dropped"] == step["in"] - len(keys)
    examples = [json.loads(line) for line in (where.dir.data / "examples.jsonl").read_text().splitlines()]
    assert any(example["why"] == "used_before" and example["detail"] == "used by cold" for example in examples)
    assert pytest.importorskip("pyarrow.parquet").read_table(where.dir.data / "queries.parquet").num_rows == len(keys)


def test_data_sets_are_mixed_by_weight_as_far_as_the_scarcest_reaches(tmp_path: Path) -> None:
    stage = grpo(queries={"from": {"one": 3.0, "two": 1.0}})
    rows, _ = built(context(tmp_path, stage, one=60, two=200))
    from_one = sum(row["id"].startswith("arithmetic-0-") for row in rows)
    distinct = len({row["key"] for row in load_from_disk(str(tmp_path / "data" / "one"))})
    assert from_one == distinct
    assert len(rows) - from_one == round(distinct / 3)


def test_a_problem_that_stands_twice_is_used_once(tmp_path: Path) -> None:
    where = context(tmp_path, grpo(queries={"from": ["sums", "again"], "order": "as_is"}), sums=30, again=30)
    Dataset.from_list(list(load_from_disk(str(where.run.data("sums"))))).save_to_disk(str(tmp_path / "copy"))
    (tmp_path / "copy").rename(tmp_path / "data" / "twin")
    where = context(tmp_path / "b", grpo(queries={"from": "sums", "limit": 7}))
    rows, funnel = built(where)
    assert len(rows) == len({row["key"] for row in rows}) == 7
    assert funnel["steps"][-2]["step"] == "limit"


def test_no_query_left_is_an_error_that_shows_the_funnel(tmp_path: Path) -> None:
    where = context(tmp_path, grpo(queries={"from": "sums", "only_queries_of": ["cold"]}))
    cold = where.run.stage("cold").data
    cold.mkdir(parents=True)
    Dataset.from_list([{"key": "another"}]).to_parquet(str(cold / "queries.parquet"))
    with pytest.raises(PosttrainError, match=r"no query is left.*used before: 40 -> 0"):
        built(where)


@pytest.mark.parametrize("order", ["hardest_first", "variance"])
def test_order_within_the_band(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    stage = grpo(queries={"from": "sums", "order": order, "limit": 10, "pass_rate": {"low": 0.2, "high": 0.8}})
    where = context(tmp_path, stage)
    measured: list[Mode] = []

    def rates(spec: Any, context: StageContext, rows: list[dict[str, Any]], mode: Mode, limit: int) -> list[float]:
        measured.append(mode)
        return [index % 11 / 10 for index in range(len(rows))]  # the model itself is tested in test_rl_rollouts

    monkeypatch.setattr(pass_rate, "measure_pass_rates", rates)
    rows, funnel = built(where)
    assert measured == ["thinking"]
    found = [row["pass_rate"] for row in rows]
    assert len(found) == 10
    if order == "hardest_first":
        assert found == sorted(found)
        assert min(found) == 0.2 and max(found) <= 0.8
    else:  # the least certain first, from either side
        assert [abs(rate - 0.5) for rate in found] == sorted(abs(rate - 0.5) for rate in found)
        assert min(found) < 0.5 < max(found)
    learnable = next(step for step in funnel["steps"] if step["step"] == "learnable")
    assert set(learnable["why"]) == {"too_hard", "too_easy"}


@pytest.mark.parametrize(
    ("options", "kind", "family", "said"),
    [
        ({"modes": {"non_thinking": 1.0}}, "thinking", "qwen3", "no non_thinking mode"),
        ({"modes": {"thinking": 1.0}}, "instruct", "qwen3", "no thinking mode"),
        ({"modes": {"thinking": 1.0}}, "instruct", "qwen2_5", "'qwen2_5' has no thinking mode"),
        ({"flags": True}, "instruct", "qwen2_5", "no mode flags"),
        (
            {"modes": {"non_thinking": 1.0}, "thinking_budgets": {"share": 1, "choices": [4]}},
            "hybrid",
            "qwen3",
            "thinks",
        ),
        ({"queries": {"from": "sums", "order": "hardest_first"}}, "hybrid", "qwen3", "needs a pass rate"),
        ({"queries": {"from": "sums", "order": "variance"}}, "hybrid", "qwen3", "variance needs a pass rate"),
        ({"train": {"use_vllm": True, "vllm_mode": "server"}}, "hybrid", "qwen3", "only colocate"),
        (
            {"train": {"use_vllm": True, "vllm_tensor_parallel_size": 2}},
            "hybrid",
            "qwen3",
            "parallel_size has no effect",
        ),
        ({"train": {"vllm_mode": "colocate"}}, "hybrid", "qwen3", "vllm_mode without use_vllm"),
        ({"train": {"temperature": 0}}, "hybrid", "qwen3", "temperature 0"),
        ({"rewards": {"acuracy": 1.0}}, "hybrid", "qwen3", "no reward 'acuracy'"),
    ],
)
def test_faults_are_told_before_anything_runs(
    tmp_path: Path, options: dict[str, Any], kind: Kind, family: str, said: str
) -> None:
    stage = grpo(**options)
    recipe = context(tmp_path, stage).recipe.model_copy(update={"template": TemplateSpec(family=family)})
    found = [fault.what for fault in stage.faults(recipe, kind)]
    assert any(said in what for what in found), found
    sound = grpo(train={"use_vllm": True, "vllm_gpu_memory_utilization": 0.3})
    assert list(sound.faults(context(tmp_path / "b", sound).recipe, "hybrid")) == []


@pytest.mark.parametrize(
    "option",
    ["chat_template_kwargs", "generation_kwargs", "min_p", "repetition_penalty", "reward_weights", "shuffle_dataset"],
)
def test_options_that_would_be_silently_ignored_are_refused(option: str) -> None:
    assert GrpoStage.trainer_config == "trl:GRPOConfig"
    faults = list(train_faults(GrpoStage, {option: 1}, ("stages", "rl", "train")))
    assert [fault.loc[-1] for fault in faults] == [option]
    assert faults[0].why
