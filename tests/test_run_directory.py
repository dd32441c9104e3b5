"""A run's directory under changing recipes: what is kept, what is made anew, what is refused, and who may write."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.errors import PosttrainError
from posttrain.model.artifacts import RunDir, StageDir, seal, write_json, write_text
from posttrain.model.lock import alone
from posttrain.recipe.fingerprint import recipe_fingerprint
from posttrain.recipe.load import LoadedRecipe, load_recipe
from posttrain.run.pipeline import run_recipe
from posttrain.run.prepare import prepare, refuse_others
from posttrain.run.preview import preview_stage

SHAPE = (
    "hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 1, num_key_value_heads: 1, head_dim: 16, "
    "intermediate_size: 16, max_position_embeddings: 256"
)
RECIPE = f"""\
name: tiny
model:
  architecture: Qwen3ForCausalLM
  config: {{{SHAPE}}}
  tokenizer: {{train_on: [sums], vocab_size: 300}}
data:
  sums: {{task: arithmetic, size: 40, reserve: 4, decontaminate: key}}
evaluation: {{data: [sums], max_new_tokens: 16, think_follow: {{turns: 1}}}}
engine: {{cpu: true}}
stages:
  first: {{kind: sft, samples: [{{data: sums}}], train: {{max_steps: 1, max_length: 128}}}}
  second: {{kind: sft, samples: [{{data: sums}}], train: {{max_steps: 1, max_length: 128}}}}
  student: {{kind: sft, samples: [{{data: sums}}], model: {{architecture: Qwen3ForCausalLM, config: {{{SHAPE}}}}}}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_text(tmp_path / "recipe.yaml", RECIPE)
    return tmp_path


def loaded(folder: Path, *changes: str) -> LoadedRecipe:
    return load_recipe(folder / "recipe.yaml", changes)


def prepared(folder: Path, *changes: str) -> RunDir:
    run = RunDir(folder / "run")
    prepare(loaded(folder, *changes).recipe, run, folder)
    return run


def figures(run: RunDir) -> tuple[int, int, int]:
    """Rows of the data, width of the base model, width of the student."""
    rows = json.loads((run.data("sums") / "funnel.json").read_text())["rows_read"]
    models = (run.base, run.stage("student").start)
    return rows, *(json.loads((model / "config.json").read_text())["hidden_size"] for model in models)


def files(run: RunDir) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}


def test_data_and_models_follow_the_recipe(folder: Path) -> None:
    run = prepared(folder)
    assert figures(run) == (40, 16, 16)
    before = files(run)
    prepared(folder, "name=other", "evaluation.samples=2", "stages.first.train.max_steps=2")
    assert files(run) == before
    prepared(folder, "data.sums.size=30", "model.config.hidden_size=32")
    assert figures(run) == (30, 32, 16)
    prepared(folder, "stages.student.model.config.hidden_size=48")
    assert figures(run) == (40, 16, 48)


def test_reserved_rows_that_are_gone_are_reserved_again(folder: Path) -> None:
    run = prepared(folder)
    before = run.reserved("sums").read_bytes()
    run.reserved("sums").unlink()
    prepared(folder)
    assert run.reserved("sums").read_bytes() == before


def test_a_command_that_redoes_nothing_refuses_other_data(folder: Path) -> None:
    run = prepared(folder)
    refuse_others(loaded(folder).recipe, run)
    with pytest.raises(PosttrainError, match=r"data/sums was made from another recipe: data.sums.size: 40 -> 30"):
        refuse_others(loaded(folder, "data.sums.size=30").recipe, run)


def finished(folder: Path) -> RunDir:
    """A run whose first two stages are done, as far as their records say."""
    run = RunDir(folder / "run")
    for name in ("first", "second"):
        stage = run.stage(name)
        write_text(stage.model / "model.safetensors", "weights")
        seal(stage.model)
        write_json(stage.started, recipe_fingerprint(loaded(folder).recipe, name))
        write_json(stage.record, {"name": name})
    return run


def test_a_restart_that_is_refused_clears_nothing(folder: Path) -> None:
    run = finished(folder)
    before = files(run)
    change = loaded(folder, "stages.first.train.max_steps=7")
    with pytest.raises(PosttrainError, match="stage first is finished, and the recipe has changed under it"):
        run_recipe(change, run.path, restart_from="second")
    write_text(folder / "broken.jsonl", '{"prompt": 1}\n')
    change = loaded(folder, "data.more={path: broken.jsonl}")
    with pytest.raises(PosttrainError, match=r"broken.jsonl:1"):
        run_recipe(change, run.path, restart_from="first")
    assert before.items() <= files(run).items()


def test_what_a_later_trainer_refuses_is_told_before_the_first_begins(folder: Path) -> None:
    change = loaded(folder, "stages.second.train.lr_scheduler_kwargs={foo: 1}")
    with pytest.raises(PosttrainError, match=r"stages.second.*SFTConfig refuses these options.*'foo'"):
        run_recipe(change, folder / "run")
    assert [path.name for path in (folder / "run").iterdir()] == [".lock"]


def test_a_clearing_that_is_killed_leaves_a_stage_that_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = StageDir(tmp_path / "stage")
    for path in (stage.record, stage.started, stage.data / "rows", stage.model / "weights", stage.start / "weights"):
        write_text(path, "{}")
    real = shutil.rmtree

    def killed(path: Path) -> None:
        if path == stage.model:
            raise KeyboardInterrupt
        real(path)

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        stage.clear()
    assert not stage.record.exists() and stage.started.exists()
    monkeypatch.undo()
    stage.clear()
    assert [path.name for path in stage.path.iterdir()] == ["start"]


def test_a_directory_is_one_run_s(tmp_path: Path) -> None:
    def another() -> subprocess.CompletedProcess[str]:
        code = f"import pathlib, posttrain.model.lock as it\nwith it.alone(pathlib.Path({str(tmp_path)!r})): pass"
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    with alone(tmp_path):
        assert f"PosttrainError: another process runs in {tmp_path}" in another().stderr
    assert another().returncode == 0


def test_a_preview_leaves_the_run_as_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = prepared(folder)
    before = files(run)
    preview_stage(loaded(folder), run.path, "first", 1)
    assert "samples     36" in capsys.readouterr().out
    preview_stage(loaded(folder, "data.sums.size=30"), run.path, "first", 1)
    assert "samples     26" in capsys.readouterr().out
    with pytest.raises(PosttrainError, match="builds its data with first, not trained yet"):
        preview_stage(loaded(folder), run.path, "second", 1)
    assert files(run) == before
