"""Teachers of a recipe: one, served, or several by data set and task; who answers what; what is checked first."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import PosttrainError
from posttrain.model.artifacts import RunDir
from posttrain.model.policy import build_policy
from posttrain.recipe.endpoint import EndpointSpec
from posttrain.recipe.fingerprint import recipe_fingerprint
from posttrain.recipe.kinds import stage_class
from posttrain.recipe.load import load_recipe
from posttrain.recipe.schema import ModelSpec, Recipe, TrainedTokenizer
from posttrain.recipe.stage import Stage
from posttrain.recipe.teacher import Teachers, in_words
from posttrain.run.context import context_of
from posttrain.run.pipeline import run_recipe
from posttrain.run.prepare import prepare
from posttrain.sft.routing import check_routes
from posttrain.templates.families import get_family
from tests.scripted_server import said, scripted

RECIPE = """
name: family
model:
  architecture: Qwen3ForCausalLM
  config: {{hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 1, num_key_value_heads: 1, head_dim: 32, intermediate_size: 32}}
  tokenizer: {{train_on: [sums], vocab_size: 320}}
data:
  sums: {{task: arithmetic, size: 40, options: {{steps: {{1: 1}}}}, reserve: 4, decontaminate: key}}
  rows: {{path: rows.jsonl, verifier: exact, decontaminate: "off"}}
evaluation: {{data: [sums], max_new_tokens: 8, think_follow: {{dialogues: 0}}}}
engine: {{cpu: true, threads: 1}}
stages:
  student:
    kind: off_policy_distillation
    teacher: {teacher}
    queries: {{from: [sums, rows]}}
    keep: all
    distinct: true
    flags: false
    modes: {{non_thinking: 1}}
    train: {{max_steps: 1, per_device_train_batch_size: 4}}
"""  # noqa: E501


def written(tmp_path: Path, teacher: Any) -> Path:
    rows = [{"prompt": f"Say {word}", "answer": word, "key": word} for word in ("one", "two", "three")]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(teacher=json.dumps(teacher)))
    return path


def loaded(tmp_path: Path, teacher: Any) -> Recipe:
    return load_recipe(written(tmp_path, teacher)).recipe


SERVED = {"endpoint": "http://127.0.0.1:8000/v1", "model": "qwen3-32b"}


def test_one_line_chooses_the_teacher(tmp_path: Path) -> None:
    for teacher in ("Qwen/Qwen3-32B", SERVED, {"by_data": {"rows": "Qwen/Qwen3-8B"}, "default": SERVED}):
        stage = loaded(tmp_path, teacher).stages["student"]
        assert stage.teacher is not None
    assert isinstance(stage.teacher, Teachers) and isinstance(stage.teacher.default, EndpointSpec)
    assert in_words(stage.teacher) == "Qwen/Qwen3-8B for rows, qwen3-32b (served) for the rest"


@pytest.mark.parametrize(
    ("teacher", "said_of_it"),
    [
        ({"endpoint": "localhost:8000", "model": "m"}, "no address of a server"),
        ({"endpoint": "http://h/v1"}, "`stages.student.teacher.model` is missing"),
        ({**SERVED, "concurency": 4}, "did you mean `concurrency`?"),
        ({**SERVED, "tokenizer": "./nowhere"}, "nowhere does not exist"),
        ({"by_data": {"sum": SERVED}}, "did you mean `sums`?"),
        ({"by_task": {"exact": "./gone"}, "default": SERVED}, "gone does not exist"),
        ({}, "a distillation stage has no teacher"),
        ({"by_task": {"exact": "studnt"}, "default": SERVED}, "neither a path nor a hub id nor a stage"),
    ],
)
def test_a_teacher_that_cannot_be_is_told_with_its_line(tmp_path: Path, teacher: Any, said_of_it: str) -> None:
    with pytest.raises(PosttrainError) as error:
        loaded(tmp_path, teacher)
    assert said_of_it in str(error.value) and "recipe.yaml:15" in str(error.value)


def test_where_a_model_is_served_changes_no_result(tmp_path: Path) -> None:
    def fingerprint(teacher: Any) -> Any:
        return recipe_fingerprint(loaded(tmp_path, teacher), "student")

    moved = {**SERVED, "endpoint": "https://elsewhere/v1", "concurrency": 9, "api_key_env": "KEY", "patience": 1}
    assert fingerprint(SERVED) == fingerprint(moved) != fingerprint({**SERVED, "model": "qwen3-8b"})


def test_a_querys_teacher_is_its_data_sets_else_its_tasks_else_the_default() -> None:
    teachers = Teachers(by_data={"rows": "a"}, by_task={"exact": "b", "math": "c"}, default="d")
    assert [teachers.of("rows", "exact"), teachers.of(None, "exact"), teachers.of("x", "other")] == ["a", "b", "d"]


def test_every_query_is_asked_of_its_own_teacher(tmp_path: Path) -> None:
    with scripted(lambda path, body: said("of the first")) as first, scripted(lambda path, body: said("2nd")) as second:
        first.models, second.models = ["big"], ["small"]
        by_task = {"exact": {"endpoint": second.url, "model": "small"}}
        recipe = loaded(tmp_path, {"by_task": by_task, "default": {"endpoint": first.url, "model": "big"}})
        run = RunDir(tmp_path / "run")
        prepare(recipe, run, tmp_path)
        context = context_of(recipe, run, "student", quiet=True)
        stage = recipe.stages["student"]
        stage.check_outside(context)
        stage.build_data(context)
        first.models = []
        with pytest.raises(PosttrainError, match="has no model `big`"):
            stage.check_outside(context)
    assert {body["messages"][0]["content"] for _, body, _ in second.asked} == {"Say one", "Say two", "Say three"}
    assert {body["model"] for _, body, _ in second.asked} == {"small"}
    assert len(first.asked) == len({json.dumps(body["messages"]) for _, body, _ in first.asked}) > 20
    rows = [json.loads(line) for line in (context.dir.data / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        says = row["messages"][-1]["content"]
        assert says == ("2nd" if row["messages"][0]["content"].startswith("Say") else "of the first")


def test_several_servers_answer_at_the_same_time(tmp_path: Path) -> None:
    """Neither answers before the other one is asked."""
    asked = {name: threading.Event() for name in ("big", "small")}

    def answer(path: str, body: dict[str, Any]) -> Any:
        asked[body["model"]].set()
        assert all(one.wait(timeout=20) for one in asked.values()), "one server waits for the other"
        return said(f"of the {body['model']}")

    with scripted(answer) as first, scripted(answer) as second:
        by_task = {"exact": {"endpoint": second.url, "model": "small", "patience": 0}}
        teachers = {"by_task": by_task, "default": {"endpoint": first.url, "model": "big", "patience": 0}}
        recipe = loaded(tmp_path, teachers)
        run = RunDir(tmp_path / "run")
        prepare(recipe, run, tmp_path)
        first.models, second.models = ["big"], ["small"]
        context = context_of(recipe, run, "student", quiet=True)
        recipe.stages["student"].build_data(context)
    rows = [json.loads(line) for line in (context.dir.data / "samples.jsonl").read_text().splitlines()]
    assert {row["messages"][-1]["content"] for row in rows} == {"of the big", "of the small"}


def test_a_server_is_asked_in_both_modes_and_for_all_data_at_once(tmp_path: Path) -> None:
    short = threading.Event()

    def answer(path: str, body: dict[str, Any]) -> Any:
        if not body["chat_template_kwargs"]["enable_thinking"]:
            short.set()
            return said("short")
        if body["messages"][0]["content"] == "Say three":
            assert short.wait(timeout=20), "the other mode waits for the last answer in this one"
        return said("long", reasoning="well")

    path = written(tmp_path, {"endpoint": "http://127.0.0.1:1/v1", "model": "teacher"})
    with scripted(answer) as it:
        both = path.read_text().replace("modes: {non_thinking: 1}", "modes: {non_thinking: 0.5, thinking: 0.5}")
        path.write_text(both.replace("http://127.0.0.1:1/v1", it.url))
        recipe, run = load_recipe(path).recipe, RunDir(tmp_path / "run")
        prepare(recipe, run, tmp_path)
        context = context_of(recipe, run, "student", quiet=True)
        recipe.stages["student"].build_data(context)
    thinks = [body["chat_template_kwargs"]["enable_thinking"] for _, body, _ in it.asked]
    assert sum(thinks) == len(thinks) / 2 and all(thinks[: len(thinks) // 4])  # the longest answers first
    rows = [json.loads(line) for line in (context.dir.data / "samples.jsonl").read_text().splitlines()]
    last = [row["messages"][-1] for row in rows]
    assert {(one["content"], one.get("reasoning_content") or "") for one in last} == {("long", "well"), ("short", "")}


def test_a_query_without_a_teacher_is_told_before_any_is_asked(tmp_path: Path) -> None:
    with scripted(lambda path, body: said("x")) as it:
        recipe = loaded(tmp_path, {"by_task": {"arithmetic": {"endpoint": it.url, "model": "teacher"}}})
        run = RunDir(tmp_path / "run")
        prepare(recipe, run, tmp_path)
        context = context_of(recipe, run, "student", quiet=True)
        for stage in (recipe.stages["student"], on_policy(recipe)):
            with pytest.raises(PosttrainError, match="3 of task `exact`"):
                stage.check_outside(context)
        with pytest.raises(PosttrainError, match="3 of task `exact`"):
            recipe.stages["student"].build_data(context)
        assert not it.asked


def test_too_few_queries_for_a_step_are_told_before_the_first_stage_begins(tmp_path: Path) -> None:
    recipe, run = loaded(tmp_path, "org/one"), RunDir(tmp_path / "run")
    prepare(recipe, run, tmp_path)
    stage = on_policy(recipe, train={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 64})
    with pytest.raises(PosttrainError, match=r"\d\d queries do not fill one generation batch of 256"):
        stage.check_outside(context_of(recipe, run, "student", quiet=True))


def on_policy(recipe: Recipe, **options: Any) -> Stage:
    """The recipe's stage as an on-policy one."""
    given = {"teacher": recipe.stages["student"].teacher, "queries": {"from": ["sums", "rows"]}, **options}
    return stage_class("on_policy_distillation").model_validate(given)


def test_a_task_that_no_query_has_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Misspelled, its queries would all go to the default."""
    recipe = loaded(tmp_path, {"by_task": {"arithmetics": "org/one"}, "default": "org/two"})
    run = RunDir(tmp_path / "run")
    prepare(recipe, run, tmp_path)
    check_routes(context_of(recipe, run, "student", quiet=True))
    assert "no query is of task `arithmetics`" in caplog.text and "there are `arithmetic`, `exact`" in caplog.text


def test_a_run_whose_teacher_is_down_begins_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, {"endpoint": "http://127.0.0.1:9", "model": "big"})
    with pytest.raises(PosttrainError, match=r"the teacher at http://127.0.0.1:9/v1 is not reachable"):
        run_recipe(load_recipe(path), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "stages" / "student" / "started.json").exists()


def test_another_tokenizer_is_told_before_the_first_stage_begins(tmp_path: Path) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    tokenizer = TrainedTokenizer(train_on=["sums"], vocab_size=300)
    other = ModelSpec(architecture="Qwen3ForCausalLM", config=shape, tokenizer=tokenizer)
    build_policy(other, get_family("qwen3"), tmp_path / "other", seed=0, texts=["other words altogether"] * 50)
    path = written(tmp_path, "student")
    more = "queries: {from: sums}, modes: {non_thinking: 1}"
    text = path.read_text().replace('    teacher: "student"\n', '    teacher: "./other"\n')
    path.write_text(text + f"  on_policy: {{kind: on_policy_distillation, teacher: ./other, {more}}}\n")
    with pytest.raises(PosttrainError, match=r"the tokenizers of student and teacher \(.*other\) differ: entry"):
        run_recipe(load_recipe(path), tmp_path / "run", quiet=True)
    assert not list((tmp_path / "run" / "stages").glob("*/started.json"))
