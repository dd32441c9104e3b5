"""`posttrain distill`: the recipe that it writes, and one whole run of it."""

from __future__ import annotations

import json
import re
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from posttrain.cli import main
from posttrain.errors import PosttrainError
from posttrain.model.artifacts import read_json
from posttrain.model.policy import build_policy
from posttrain.recipe.endpoint import EndpointSpec
from posttrain.recipe.load import load_recipe
from posttrain.recipe.schema import ModelSpec, TrainedTokenizer
from posttrain.run.distill import Asked, write_distillation
from posttrain.run.distill_data import verifier_for
from posttrain.templates.families import get_family
from tests.scripted_server import said, scripted
from tests.served import build_thinker

SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32,
    "intermediate_size": 32, "max_position_embeddings": 512, "vocab_size": 288,
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that knows that the answer is 42, and a student that knows nothing; and questions."""
    folder = tmp_path_factory.mktemp("models")
    build_thinker(folder / "teacher")
    spec = ModelSpec(architecture="Qwen3ForCausalLM", config=SHAPE, tokenizer=str(folder / "teacher"))
    build_policy(spec, get_family("qwen3"), folder / "student", seed=1)
    rows = [{"question": f"What is {number}+{42 - number}?", "answer": 42} for number in range(40)]
    (folder / "sums.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def asked(models: Path, tmp_path: Path, **changed: Any) -> Asked:
    given: dict[str, Any] = {"teacher": str(models / "teacher"), "student": str(models / "student")}
    given |= {"data": [str(models / "sums.jsonl")], "output": tmp_path / "run", "max_new_tokens": 96}
    return Asked(**{**given, **changed})


@pytest.mark.timeout(900)  # a whole run
def test_a_student_is_distilled_by_one_command(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["distill", "--teacher", f"{models}/teacher", "--student", f"{models}/student"]
    command += ["--data", f"{models}/sums.jsonl", "--output", f"{tmp_path}/run", "--max-new-tokens", "96", "--quiet"]
    command += ["--set", "stages.on_policy.train.max_steps=2", "--set", "stages.off_policy.train.max_steps=4"]
    command += ["--set", "evaluation.think_follow.dialogues=0"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert f"recipe: {tmp_path}/run.yaml" in out and f"report: {tmp_path}/run/report.html" in out
    report = read_json(tmp_path / "run" / "report.json")
    assert report["finished"] and [stage["name"] for stage in report["stages"]] == ["off_policy", "on_policy"]
    funnel = read_json(tmp_path / "run" / "stages" / "off_policy" / "data" / "funnel.json")
    sampled = funnel["rejection_sampling"]
    assert len(sampled) == 2
    for counts in sampled.values():  # 36 questions, two answers each, all right but those that think too long
        assert counts["completions"] == 72 and 30 < counts["accepted"] <= 72
    written = (tmp_path / "run.yaml").read_text()
    assert main(command) == 0 and (tmp_path / "run.yaml").read_text() == written  # it finds all done


def test_the_recipe_is_for_people_and_says_what_was_found(models: Path, tmp_path: Path) -> None:
    file, run = write_distillation(asked(models, tmp_path, words=["distill", "--teacher", "a b"]))
    assert (file, run) == (tmp_path / "run.yaml", tmp_path / "run")
    text = file.read_text()
    assert "#   posttrain distill --teacher 'a b'" in text and "# all answers are numbers" in text
    recipe = load_recipe(file).recipe
    assert recipe.data["sums"].map == {"prompt": "question"} and recipe.data["sums"].reserve == 4
    assert recipe.model.path == str(models / "student")
    for stage in recipe.stages.values():
        assert stage.teacher == str(models / "teacher")
    rates = [stage.train["learning_rate"] for stage in recipe.stages.values()]
    assert rates == [pytest.approx(6e-4), pytest.approx(3e-4)]  # 2e-5 at a width of 1024, this one is 32


def test_answers_fit_in_the_students_positions(models: Path, tmp_path: Path) -> None:
    file, _ = write_distillation(asked(models, tmp_path, max_new_tokens=4096))
    assert load_recipe(file).recipe.evaluation.max_new_tokens == 256  # of 512


def test_tasks_files_and_hub_ids_go_together(models: Path, tmp_path: Path) -> None:
    data = ["reasoning_gym:chain_sum", str(models / "sums.jsonl"), "arithmetic", str(models / "sums.jsonl")]
    file, _ = write_distillation(asked(models, tmp_path, data=data, student="Qwen/Qwen3-0.6B", teacher="Qwen/Qwen3-8B"))
    recipe = load_recipe(file).recipe
    assert list(recipe.data) == ["chain_sum", "sums", "arithmetic", "sums_2"]
    assert recipe.data["chain_sum"].task == "reasoning_gym:chain_sum" and recipe.model.path == "Qwen/Qwen3-0.6B"


def test_a_served_teacher_is_asked_for_its_name(models: Path, tmp_path: Path) -> None:
    with scripted(lambda path, body: said("x")) as it:
        it.models = ["org/big"]
        file, _ = write_distillation(asked(models, tmp_path, teacher=it.url))
        it.models = ["big", "small"]
        with pytest.raises(PosttrainError, match="several models: `big`, `small`"):
            write_distillation(asked(models, tmp_path, teacher=it.url))
    stages = load_recipe(file).recipe.stages
    assert list(stages) == ["off_policy", "on_policy"]
    for stage in stages.values():
        assert isinstance(stage.teacher, EndpointSpec) and stage.teacher.model == "org/big"
    with pytest.raises(PosttrainError, match="is not reachable"):
        write_distillation(asked(models, tmp_path, teacher="http://127.0.0.1:9/v1"))


def test_a_recipe_that_was_changed_is_left_alone(models: Path, tmp_path: Path) -> None:
    file, _ = write_distillation(asked(models, tmp_path))
    changed = file.read_text().replace("answers: 2", "answers: 4")
    file.write_text(changed)
    with pytest.raises(PosttrainError, match=r"posttrain run .*run.yaml --output"):
        write_distillation(asked(models, tmp_path))
    assert file.read_text() == changed


def test_a_recipe_of_which_nothing_has_begun_is_written_anew(models: Path, tmp_path: Path) -> None:
    """A run that was refused, for a row or its teacher, is put right by the same command."""
    path = tmp_path / "rows.jsonl"
    path.write_text((models / "sums.jsonl").read_text())
    file, run = write_distillation(asked(models, tmp_path, data=[str(path)], teacher=str(models / "techer")))
    with pytest.raises(PosttrainError, match=r"techer does not exist(.|\n)*did you mean .*teacher"):
        load_recipe(file)
    write_distillation(asked(models, tmp_path, data=[str(path)]))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:20]))
    write_distillation(asked(models, tmp_path, data=[str(path)]))
    assert load_recipe(file).recipe.data["rows"].reserve == 2
    (run / "stages" / "off_policy").mkdir(parents=True)
    (run / "stages" / "off_policy" / "started.json").touch()
    with pytest.raises(PosttrainError, match="its run has begun"):
        write_distillation(asked(models, tmp_path))


@pytest.mark.parametrize(
    ("changed", "said_of_it"),
    [
        ({"data": ["chain_sum"]}, "reasoning_gym:chain_sum"),
        ({"data": ["./nowhere.jsonl"]}, "no such file"),
        ({"data": ["openai/gsm8k"]}, r"neither a file here nor a task(.|\n)*`dataset: openai/gsm8k`"),
        ({"teacher_model": "big"}, "--teacher-model names a model of a server"),
        ({"teacher": "http://"}, "no address of a server"),
        ({"student": "http://127.0.0.1:9/v1"}, "a student is trained here"),
        ({"family": "qwen33"}, "unknown template family"),
        ({"verifier": "numbr"}, "did you mean `?number"),
    ],
)
def test_what_cannot_be_used_is_named(models: Path, tmp_path: Path, changed: dict[str, Any], said_of_it: str) -> None:
    with pytest.raises(PosttrainError, match=said_of_it):
        write_distillation(asked(models, tmp_path, **changed))


def test_rows_without_answers_are_named_with_their_columns(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "mark": "b"}\n')
    with pytest.raises(PosttrainError, match=r"no column of answers.*prompt, mark"):
        write_distillation(asked(models, tmp_path, data=[str(path)]))


def stranger(models: Path, folder: Path, template: str) -> Path:
    """The teacher as another project leaves it: without posttrain.json, with this chat template of trl's."""
    shutil.copytree(models / "teacher", folder)
    (folder / "posttrain.json").unlink()
    text = (resources.files("trl") / "chat_templates" / template).read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("template", "family", "why"),
    [
        ("qwen2_5.jinja", "qwen2_5", "renders as the teacher's does"),
        ("qwen3.jinja", "qwen3", "renders as the teacher's does"),
        ("llama3.jinja", "qwen3", "is none of qwen3"),
    ],
)
def test_the_family_is_told_by_the_teachers_chat_template(
    models: Path, tmp_path: Path, template: str, family: str, why: str
) -> None:
    teacher = stranger(models, tmp_path / "teacher", template)
    file, _ = write_distillation(asked(models, tmp_path, teacher=str(teacher)))
    recipe = load_recipe(file).recipe
    assert recipe.template.family == family and why in file.read_text()
    modes = {"thinking", "non_thinking"} if family == "qwen3" else {"non_thinking"}
    assert set(recipe.stages["off_policy"].modes) == modes  # type: ignore[attr-defined]


def test_markers_that_the_student_will_be_given_are_no_difference(models: Path, tmp_path: Path) -> None:
    """A flagship made from the student's family has think tokens, which the student gets when its run begins."""
    tokenizer = TrainedTokenizer(train_on=["sums"], vocab_size=330)
    shape = {key: value for key, value in SHAPE.items() if key != "vocab_size"}
    spec = ModelSpec(architecture="Qwen3ForCausalLM", config=shape, tokenizer=tokenizer)
    build_policy(spec, get_family("qwen3"), tmp_path / "teacher", seed=1, texts=["some words"] * 20)
    shutil.copytree(tmp_path / "teacher", tmp_path / "student")
    path = tmp_path / "student" / "tokenizer.json"
    said = read_json(path)
    given = {"teacher": str(tmp_path / "teacher"), "student": str(tmp_path / "student")}
    markers = ("<think>", "</think>")
    for changed, second in (({}, "on_policy"), ({"<|im_end|>": "<|end|>"}, "gold")):
        left = [one for one in said["added_tokens"] if one["content"] not in markers]
        left = [one | {"content": changed.get(one["content"], one["content"])} for one in left]
        path.write_text(json.dumps(said | {"added_tokens": left}))
        file, _ = write_distillation(asked(models, tmp_path, output=tmp_path / second, **given))
        assert list(load_recipe(file).recipe.stages) == ["off_policy", second]


@pytest.mark.parametrize(
    ("text", "said_of_it"),
    [
        ("", "no row in it"),
        ("nonsense\n", "no row in it"),
        ('{"question": "a", "answer": 1}\n', "a single row"),
        ('{"question": "a", "answer": 1}\n' * 9, "the same question stands in all of its 9 rows"),
    ],
)
def test_a_file_without_rows_to_learn_from_is_refused(models: Path, tmp_path: Path, text: str, said_of_it: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(PosttrainError, match=said_of_it):
        write_distillation(asked(models, tmp_path, data=[str(path)]))


def test_a_question_that_stands_there_often_counts_once(models: Path, tmp_path: Path) -> None:
    """Reserved questions leave the training rows wherever they stand: three of three would leave nothing."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"question": "What is {n}+1?", "answer": {n + 1}}}\n' for n in range(3)) * 10)
    file, _ = write_distillation(asked(models, tmp_path, data=[str(path)]))
    recipe = load_recipe(file).recipe
    assert recipe.data["rows"].reserve == 1 and "of about 3 questions" in file.read_text()
    assert recipe.stages["on_policy"].train["per_device_train_batch_size"] == 1


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_rows_of_a_large_file_are_counted_or_told_by_its_size(models: Path, tmp_path: Path, kind: str) -> None:
    rows = Dataset.from_list(
        [{"question": f"What is {number} and 1 more?", "answer": number} for number in range(6000)]
    )
    path = tmp_path / f"rows.{kind}"
    rows.to_parquet(str(path)) if kind == "parquet" else rows.to_json(str(path))
    file, _ = write_distillation(asked(models, tmp_path, data=[str(path)]))
    about = int(re.findall(r"of about (\d+) questions", file.read_text())[0])
    assert about == 6000 if kind == "parquet" else 5000 < about < 7000


def test_rows_whose_answer_is_missing_choose_no_verifier(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows: list[dict[str, Any]] = [{"question": "a", "answer": 1}, {"question": "b", "answer": None}, {"question": "c"}]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    file, _ = write_distillation(asked(models, tmp_path, data=[str(path)]))
    assert load_recipe(file).recipe.data["rows"].verifier == "number"


@pytest.mark.parametrize("name", ["2024.jsonl", "true.jsonl", "my #1: rows.jsonl", "été 'quoted'.jsonl"])
def test_names_of_files_are_texts_to_the_recipe(models: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    shutil.copy(models / "sums.jsonl", path)
    file, _ = write_distillation(asked(models, tmp_path, data=[str(path)], output=tmp_path / "2026"))
    recipe = load_recipe(file).recipe
    (spec,) = recipe.data.values()
    assert recipe.name == "2026" and spec.path == str(path) and list(recipe.data) == recipe.evaluation.data


def test_a_student_in_a_gguf_file_is_named_as_one_and_a_teacher_in_one_is_refused(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.touch()
    file, _ = write_distillation(asked(models, tmp_path, student=str(path)))
    model = load_recipe(file).recipe.model
    assert (model.path, model.gguf_file) == (str(tmp_path), "small.gguf")
    file, _ = write_distillation(asked(models, tmp_path, teacher=str(path), output=tmp_path / "other"))
    with pytest.raises(PosttrainError, match="a teacher is a directory with safetensors, or served"):
        load_recipe(file)


def test_paths_begin_where_the_command_is_given(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    shutil.copy(models / "sums.jsonl", tmp_path / "data" / "a.jsonl")
    (tmp_path / "runs").mkdir()
    file, _ = write_distillation(asked(models, tmp_path, data=["data/*.jsonl"], output=Path("runs/small")))
    (spec,) = load_recipe(file).recipe.data.values()
    assert spec.path == str(tmp_path / "data" / "*.jsonl")
    file, _ = write_distillation(asked(models, tmp_path, teacher="data/big", output=Path("runs/other")))
    with pytest.raises(PosttrainError, match="data/big does not exist"):  # no hub id: `data` is a folder here
        load_recipe(file)


@pytest.mark.timeout(900)  # a whole run
def test_a_teacher_with_another_tokenizer_is_crossed_to(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second stage is GOLD's; the report tells the agreement by bytes, and what it cost."""
    shape = {key: value for key, value in SHAPE.items() if key != "vocab_size"}
    tokenizer = TrainedTokenizer(train_on=["sums"], vocab_size=330)
    spec = ModelSpec(architecture="Qwen3ForCausalLM", config=shape, tokenizer=tokenizer)
    texts = ["<think>\nLet me check that again.\n</think>\n\nThe answer is 42!"] * 20
    build_policy(spec, get_family("qwen3"), tmp_path / "student", seed=1, texts=texts)
    command = ["distill", "--teacher", f"{models}/teacher", "--student", f"{tmp_path}/student"]
    command += ["--data", f"{models}/sums.jsonl", "--output", f"{tmp_path}/run", "--max-new-tokens", "96", "--quiet"]
    command += ["--set", "stages.gold.train.max_steps=2", "--set", "stages.off_policy.train.max_steps=2"]
    command += ["--set", "stages.gold.train.lmbda=0.0", "--set", "evaluation.think_follow.dialogues=0"]
    assert main(command) == 0
    stages = load_recipe(tmp_path / "run.yaml").recipe.stages
    assert [(name, stage.kind) for name, stage in stages.items()] == [
        ("off_policy", "off_policy_distillation"), ("gold", "gold_distillation"),
    ]  # fmt: skip
    agreement = read_json(tmp_path / "run" / "stages" / "gold" / "agreement.json")
    assert [row["mode"] for row in agreement["bytes"]] == ["thinking", "non_thinking"]
    assert all(row["teacher"] > row["student"] > 0 and row["bytes"] > 0 for row in agreement["bytes"])
    assert agreement["cost"]["teacher_answers"] == 72 and agreement["cost"]["trained"] > 0
    assert agreement["cost"]["student_sampled"] == 0 and agreement["cost"]["flops"] > 0
    assert "nats a byte, teacher" in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.parametrize(
    ("answers", "verifier"),
    [([1, "2.5", "\\boxed{3}"], "number"), (["A", "(b)"], "choice"), (["x^2", "7"], "math"), (["Paris"], "exact")],
)
def test_the_verifier_is_the_strictest_that_reads_all_answers(answers: list[Any], verifier: str) -> None:
    assert verifier_for(answers)[0] == verifier
