"""Bad input on the command line: one clear error in words, exit code 2, nothing begun."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain.cli import main
from posttrain.errors import PosttrainError, Problem
from posttrain.recipe.weights import directory_faults

from .vllm_model import write_tiny_model

ROW = {"task": "number", "prompt": "2+2?", "completion": "<think>\nhm\n</think>\n\n4", "answer": "4"}
JUDGE = "endpoint: 'http://127.0.0.1:9/v1', model: m"
NOWHERE = "/proc/nowhere"  # nobody can write there, root neither


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture
def model(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What is said where a command refuses to begin."""
    try:
        assert main([str(argument) for argument in arguments]) == 2
    except SystemExit as done:
        assert done.code == 2
    return capsys.readouterr().err


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("model.safetensors", cut, "is damaged: 128160 bytes, and its header tells 256320"),
    ("model.safetensors", lambda path: path.write_bytes(b"rubbish"), "is cut off"),
    ("model.safetensors", lambda path: path.unlink(), "no weights there"),
    ("model.safetensors", replace_by_directory, "is no file"),
    ("config.json", lambda path: path.write_bytes(b"{no"), "is damaged: no JSON"),
    ("config.json", lambda path: path.write_bytes(b"\xff\xfe"), "is damaged: no JSON"),
    ("config.json", lambda path: path.write_bytes(b"[]"), "is damaged: no JSON object"),
    ("config.json", lambda path: path.write_bytes(b"{}"), "could not be loaded: ValueError: Unrecognized model"),
    ("posttrain.json", lambda path: path.write_bytes(b"[1]"), "is damaged: no JSON object"),
    ("posttrain.json", lambda path: path.write_bytes(b"{}"), "is damaged: it names no family"),
    ("tokenizer.json", lambda path: path.write_bytes(b"{}"), "could not be loaded: KeyError"),
]


@pytest.mark.parametrize(("file", "damage", "said"), DAMAGE)
def test_a_damaged_model_is_named(
    file: str, damage: Callable[[Path], object], said: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(model / file)
    told = refused(
        capsys, "eval", "--model", model, "--suite", "length-ctrl", "--limit", "1", "--output", model / "out"
    )
    assert said in told and str(model) in told and "do:" in told
    assert said in refused(capsys, "chat", model)


def test_a_damaged_model_is_not_served(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut(model / "model.safetensors")
    assert "is damaged: 128160 bytes" in refused(capsys, "serve", model)


def test_a_damaged_model_is_named_before_a_recipe_begins(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "posttrain.json").write_text("[1]")
    recipe = model.parent / "recipe.yaml"
    recipe.write_text(
        f"name: x\nmodel: {{path: {model}}}\ndata: {{sums: {{task: arithmetic, size: 9, reserve: 2}}}}\n"
        "evaluation: {data: [sums]}\nstages: {sft: {kind: sft, samples: [{data: sums, mode: thinking}]}}\n"
    )
    assert "posttrain.json is damaged: no JSON object" in refused(capsys, "check", recipe)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--limit", "0"], "no whole number of 1 or more"),
        (["--limit", "-3"], "no whole number of 1 or more"),
        (["--max-new-tokens", "0"], "no whole number of 1 or more"),
        (["--batch-size", "0"], "no whole number of 1 or more"),
        (["--budget", "-5"], "no whole number of 0 or more"),
        (["--output", NOWHERE], "cannot be written to"),
        (["--suite", "length-control"], "did you mean length-ctrl"),
    ],
)
def test_options_of_eval(options: list[str], said: str, sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, "eval", "--model", sound, "--suite", "length-ctrl", *options)


def test_a_label_is_a_word_and_a_directorys_name_may_hold_its_sign(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--suite", "length-ctrl", "--limit", "1", "--max-new-tokens", "4", "--output", str(tmp_path / "out")]
    assert "'../x' is no label" in refused(capsys, "eval", "--model", f"../x={model}", *options)
    odd = model.rename(tmp_path / "rate=1e-4")
    assert main(["eval", "--model", str(odd), *options]) == 0
    assert (tmp_path / "out" / "rate=1e-4").is_dir()


def test_a_place_that_cannot_be_written_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text(json.dumps(ROW))
    recipe = Path(__file__).parent / "recipes" / "chain.yaml"
    assert f"{file} is a file" in refused(capsys, "run", recipe, "--output", file)
    assert "cannot be written to" in refused(capsys, "run", recipe, "--output", f"{NOWHERE}/run")
    assert f"{file} is a file" in refused(capsys, "rewards", "score", file, "--output", file / "scores.jsonl")
    assert "is a directory" in refused(capsys, "rewards", "score", file, "--output", tmp_path)
    assert "cannot be written to" in refused(capsys, "rewards", "score", file, "--output", f"{NOWHERE}.jsonl")
    assert file.read_text() == json.dumps(ROW)


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ("{length: {options: {buffer: x}}}", "option buffer is float, not 'x'"),
        ("{length: {options: 3}}", "are a mapping, not 3"),
        ("{accuracy: 0}", "no weight above 0"),
        ("{accuracy: .nan}", "no weight above 0"),
        ("{task: {options: {tables: [a]}}}", "takes no such options"),
        ("{task: {options: {tables: {number: {accuracy: {options: 3}}}}}}", "are a mapping, not 3"),
        ("{judge: {options: {endpoint: 'http://127.0.0.1:9/v1', model: m, scale: ten}}}", "option scale is int"),
        (
            "{judge: {options: {endpoint: 'http://127.0.0.1:9/v1', model: m, patience: 0, cache: 'off'}}}",
            "fails on all",
        ),
        ("{reward_model: {options: {model: nowhere}}}", "no model there"),
        ("{reward_model: {options: {stage: preferred}}}", "known within a run only"),
        ("os:getcwd", "is no reward"),
        ("os:sep", "is no reward"),
    ],
)
def test_rewards_that_cannot_be(rewards: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(ROW))
    assert said in refused(capsys, "rewards", "score", rows, "--rewards", rewards)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (json.dumps({**ROW, "prompt": "caf\u00e9"}, ensure_ascii=False).encode("latin-1"), "not UTF-8"),
        (b"[" * 100_000, "cannot be read"),
        (json.dumps({**ROW, "completion": "\ud800"}).encode(), "half a surrogate pair"),
        (json.dumps({**ROW, "task": "premises", "entry": "3"}).encode(), "`entry` is an object"),
        (json.dumps({**ROW, "task": "arithmetic", "entry": {}}).encode(), "fails on all of the 1 rows"),
    ],
)
def test_rows_that_cannot_be_scored(
    content: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(content)
    assert said in refused(capsys, "rewards", "score", rows, "--output", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_distillation_that_cannot_be_written(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i}+1?", "answer": str(i + 1)}) + "\n" for i in range(40)))
    words: list[str | Path] = [
        "distill",
        "--only-write",
        "--teacher",
        sound,
        "--student",
        sound,
        "--data",
        data,
        "--output",
    ]
    assert "no directory of this run's own" in refused(capsys, *words, "/")
    assert "cannot be written to" in refused(capsys, *words, f"{NOWHERE}/run")
    (tmp_path / "taken.yaml").mkdir()
    assert "is a directory" in refused(capsys, *words, tmp_path / "taken")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(128, 255)))
    assert "is not the one that this command writes" in refused(capsys, *words, tmp_path / "binary")


@pytest.mark.parametrize("content", [b"[1]", b"\xff\xfe", b"name: x\n", b"a: ["])
def test_a_report_of_what_is_no_run(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    assert "no recipe of a run" in refused(capsys, "report", tmp_path)


def test_a_run_whose_records_are_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path(__file__).parent / "recipes" / "chain.yaml"
    shutil.copy(recipe, tmp_path / "recipe.yaml")
    stage = tmp_path / "stages" / "cold_start"
    stage.mkdir(parents=True)
    (stage / "stage.json").write_text("{no")
    assert f"{stage / 'stage.json'}: not JSON" in refused(capsys, "report", tmp_path)
    (stage / "started.json").write_text("{no")
    assert f"{stage / 'started.json'}: not JSON" in refused(capsys, "run", recipe, "--output", tmp_path)


def test_a_stop_text_that_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path(__file__).parent / "recipes" / "chain.yaml"
    assert "does not contain '</think>'" in refused(capsys, "check", recipe, "--set", "template.stop_thinking=enough")


@pytest.mark.parametrize("seed", ["-1", "99999999999999999999", "many"])
def test_a_seed_is_a_number_that_generators_take(seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path(__file__).parent / "recipes" / "chain.yaml"
    assert "`seed` must be" in refused(capsys, "check", recipe, "--set", f"seed={seed}")


def test_a_shape_that_no_model_has(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "hidden_size": "many"}))
    assert list(directory_faults(model)) == []
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i}+1?", "answer": str(i + 1)}) + "\n" for i in range(40)))
    words: list[str | Path] = ["--student", model, "--teacher", model, "--data", data, "--output", tmp_path / "run"]
    assert "no model can be made of the shape" in refused(capsys, "distill", "--only-write", *words)


def test_one_problem_is_told_once() -> None:
    same = Problem("twice")
    assert PosttrainError([same, Problem("other"), Problem("twice")]).problems == (same, Problem("other"))
