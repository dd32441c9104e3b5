"""`posttrain eval --suite` from the command line: a real model of random weights, and a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3ForCausalLM

from posttrain.cli import main
from posttrain.evaluation.suites.stage import suite_problems, suite_scores
from posttrain.model.artifacts import is_complete, read_json
from posttrain.model.generation import Generator
from posttrain.model.policy import load_model, load_tokenizer
from posttrain.recipe.demands import figure_names
from posttrain.recipe.schema import EvaluationSpec
from posttrain.report.collect import flatten
from posttrain.run.gates import figure, missed
from posttrain.templates.families import get_family
from tests.conftest import CHAIN
from tests.scripted_server import said, scripted
from tests.test_generation import config, tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two tiny Qwen3 models of random weights."""
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        directory = tmp_path_factory.mktemp("models") / f"tiny{seed}"
        Qwen3ForCausalLM(config(initializer_range=0.2, max_position_embeddings=4096)).save_pretrained(directory)
        tokenizer().save_pretrained(directory)
        made.append(directory)
    return made


def evaluate(*arguments: Any) -> int:
    return main(["eval", *map(str, arguments), "--quiet"])


def test_two_models_in_both_modes_and_under_a_budget(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--suite", "length-ctrl", "--suite", "think-follow", "--limit", 3, "--max-new-tokens", 8, "--budget", 4]
    named = [word for path in models for word in ("--model", path)]
    assert evaluate(*asked, *named, "--output", tmp_path) == 0
    settings = {path.name for path in (tmp_path / "tiny0" / "length-ctrl").iterdir()}
    assert settings == {"thinking", "non_thinking", "thinking@4"}
    assert all(is_complete(path) for path in tmp_path.glob("*/*/*"))
    limited = [json.loads(line) for line in (tmp_path / "tiny1/length-ctrl/thinking@4/answers.jsonl").open()]
    assert len(limited) == 3 and all(turn["thinking_tokens"] <= 4 for record in limited for turn in record["turns"])
    follow = read_json(tmp_path / "tiny0/think-follow/flags/figures.json")
    assert follow["metrics"]["followed"]["n"] == 3 * 4
    table = (tmp_path / "suites.md").read_text()
    assert "| suite | setting | metric | tiny0 | tiny1 |" in table and "think-follow" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/*/answers.jsonl")}
    assert evaluate(*asked, *named, "--output", tmp_path) == 0, "what is finished is not asked again"
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/*/answers.jsonl")}


def test_a_served_model(tmp_path: Path) -> None:
    with scripted(lambda path, body: said("<think>\nHm.\n</think>\n\n" + "one two three " * 10)) as server:
        server.models = ["org/model"]
        asked = ["--suite", "length-ctrl", "--limit", 4, "--mode", "thinking", "--output", tmp_path]
        assert evaluate("--endpoint", server.url, "--model", "org/model", *asked) == 0
        assert len(server.asked) == 4
        body = server.asked[0][1]
        assert body["chat_template_kwargs"] == {"enable_thinking": True} and body["max_tokens"] == 4096
    figures = read_json(tmp_path / "model" / "length-ctrl" / "thinking" / "figures.json")
    assert figures["items"] == 4 and figures["answers"]["thought"]["value"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model", "nowhere"], "nothing to score on"),
        (["--model", "nowhere", "--suite", "length-ctrl"], "no model there"),
        (["--model", "MODEL", "--suite", "nothing"], "no suite is called"),
        (["--model", "MODEL", "--model", "MODEL", "--suite", "length-ctrl"], "two models are called"),
        (["--model", "m", "--suite", "length-ctrl", "--endpoint", "nowhere"], "no address of a server"),
        (["--model", "m", "--suite", "length-ctrl", "--endpoint", "http://127.0.0.1:9"], "not reachable"),
        (["--model", "MODEL", "--suite", "gsm-symbolic"], "make suites"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_asked(
    arguments: list[str],
    told: str,
    models: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POSTTRAIN_SUITES", str(tmp_path / "none"))
    given = [str(models[0]) if word == "MODEL" else word for word in arguments]
    assert evaluate(*given, "--output", tmp_path / "out") == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--suite", "length-ctrl", "--mode", "thinking", "--family", "qwen2_5"], "is asked nothing"),
        (["--suite", "think-follow", "--family", "qwen2_5"], "is asked nothing"),
        (
            ["--suite", "length-ctrl", "--mode", "non_thinking", "--budget", "4"],
            "no question is asked under --budget 4",
        ),
        (["--suite", "think-follow", "--budget", "4"], "no question is asked under --budget 4"),
    ],
)
def test_what_would_ask_nothing_is_refused(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted(lambda path, body: said("one two three")) as server:
        assert evaluate("--endpoint", server.url, "--model", "teacher", *arguments, "--output", tmp_path / "out") == 2
    assert told in capsys.readouterr().err and not server.asked and not list(tmp_path.rglob("figures.json"))


def test_a_suite_that_does_not_fit_is_told_and_the_others_are_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with scripted(lambda path, body: said("one two three")) as server:
        asked = ["--suite", "think-follow", "--suite", "length-ctrl", "--limit", 2, "--family", "qwen2_5"]
        assert evaluate("--endpoint", server.url, "--model", "teacher", *asked, "--output", tmp_path) == 0
    assert "teacher is not asked think-follow: the family qwen2_5 has no flags" in caplog.text


def test_served_models_may_have_labels(tmp_path: Path) -> None:
    with scripted(lambda path, body: said("one two three")) as server:
        server.models = ["one/model", "other/model", "a=b"]
        named = ["--model", "first=one/model", "--model", "other/model", "--model", "a=b"]
        asked = ["--suite", "length-ctrl", "--limit", 1, "--mode", "non_thinking", "--output", tmp_path]
        assert evaluate("--endpoint", server.url, *named, *asked) == 0
        assert sorted({body["model"] for _, body, _ in server.asked}) == ["a=b", "one/model", "other/model"]
    assert {path.parts[-4] for path in tmp_path.rglob("figures.json")} == {"first", "model", "a=b"}


def test_the_same_seed_gives_the_same_answers(models: list[Path], tmp_path: Path) -> None:
    asked = ["--suite", "length-ctrl", "--limit", 2, "--max-new-tokens", 6, "--mode", "thinking", "--model", models[0]]
    for name in ("a", "b"):
        assert evaluate(*asked, "--output", tmp_path / name) == 0
    answers = [(tmp_path / n / "tiny0/length-ctrl/thinking/answers.jsonl").read_text() for n in ("a", "b")]
    assert answers[0] == answers[1]
    assert evaluate(*asked, "--seed", 5, "--output", tmp_path / "a") == 2, "answers of another seed stand there"


# --- suites that a recipe names


def test_a_recipes_suites_are_figures_of_every_stage(models: list[Path], tmp_path: Path) -> None:
    spec = EvaluationSpec(data=["x"], suites=["length-ctrl", "think-follow"], suite_limit=2, max_new_tokens=6)
    family = get_family("qwen3")
    generate = Generator(load_model(models[0]), load_tokenizer(models[0]), family, max_new_tokens=6)
    played = suite_scores(generate, spec, models[0], family, tmp_path, label="x", quiet=True)
    assert set(played["thinking"]) == {"length-ctrl", "think-follow"} and set(played["non_thinking"]) == {"length-ctrl"}
    scores = {mode: {"by_suite": figures} for mode, figures in played.items()}
    plain, intervals = flatten(scores)
    assert set(plain["thinking"]) == {"suite/length-ctrl", "suite/think-follow"}
    assert intervals["thinking"]["suite/length-ctrl"][2] == 2
    name = "thinking.by_suite.length-ctrl"
    assert figure(scores, name) == played["thinking"]["length-ctrl"]["value"]
    assert name in figure_names(spec, family, "hybrid") and missed({name: "> 1"}, scores)
    assert suite_scores(None, spec, models[0], family, tmp_path, label="x", quiet=True) == played  # type: ignore[arg-type]


def test_suites_that_cannot_be_played_are_refused_when_the_recipe_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTTRAIN_SUITES", str(tmp_path))
    spec = EvaluationSpec(data=["x"], suites=["nothing", "bfcl", "think-follow"])
    assert [problem.what.split(":")[0] for problem in suite_problems(spec)] == [
        "no suite is called 'nothing'",
        "the data of suite bfcl are not there",
    ]
    named = ["--set", "evaluation.suites=[nothing, bfcl]", "--output", str(tmp_path / "run")]
    for command in ("check", "run"):
        assert main([command, str(CHAIN), *named]) == 2
        told = capsys.readouterr().err
        assert "no suite is called 'nothing'" in told and "make suites" in told
