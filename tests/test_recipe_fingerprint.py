"""A stage's fingerprint changes with what decides its result, and with nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, create_model

from posttrain.recipe import kinds
from posttrain.recipe.fingerprint import content_of, fingerprint_difference, recipe_fingerprint
from posttrain.recipe.load import load_recipe
from posttrain.recipe.stage import Stage

LOC = tuple[tuple[str | int, ...], str]

RECIPE = """\
name: tiny
model: {architecture: Qwen3ForCausalLM, config: {hidden_size: 64}, tokenizer: {train_on: [words], vocab_size: 300}}
data:
  words: {task: arithmetic, size: 50}
  rows: {path: rows.jsonl}
  other: {path: other.jsonl}
  held_out: {task: arithmetic, size: 60, reserve: 10}
evaluation: {data: [held_out]}
stages:
  cold_start: {kind: tune, uses: rows, train: {learning_rate: 1e-3}}
  rl: {kind: tune, uses: rows, train: {max_steps: 3}}
  fusion: {kind: tune, uses: rows, queries_of: cold_start}
  student: {kind: tune, uses: other, teacher: rl, model: {architecture: Qwen3ForCausalLM, config: {hidden_size: 32}}}
  apart: {kind: tune, start_from: cold_start}
"""
STAGES = ("cold_start", "rl", "fusion", "student", "apart")


class Tune(Stage):
    kind: Literal["tune"] = "tune"
    uses: str | None = None
    queries_of: str | None = None
    judge: str | None = None

    def data_references(self) -> list[LOC]:
        return [(("uses",), self.uses)] if self.uses else []

    def stage_references(self) -> list[LOC]:
        return [(("queries_of",), self.queries_of)] if self.queries_of else []


class Other(Stage):
    kind: Literal["other"] = "other"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kinds, "STAGE_KINDS", {"tune": f"{__name__}:Tune", "other": f"{__name__}:Other"})
    write_data(tmp_path)
    return tmp_path


def write_data(folder: Path) -> None:
    (folder / "rows.jsonl").write_text('{"prompt": "1+1"}\n')
    (folder / "other.jsonl").write_text('{"prompt": "2+2"}\n')


def differences(folder: Path, *overrides: str, text: str = RECIPE) -> dict[str, list[str]]:
    """What changes for each stage when the recipe does."""
    (folder / "recipe.yaml").write_text(RECIPE)
    before = load_recipe(folder / "recipe.yaml").recipe
    old = {name: recipe_fingerprint(before, name) for name in STAGES}
    (folder / "recipe.yaml").write_text(text)
    after = load_recipe(folder / "recipe.yaml", overrides).recipe
    # As it comes back from stage.json.
    kept = {name: json.loads(json.dumps(old[name])) for name in STAGES}
    changes = {name: fingerprint_difference(kept[name], recipe_fingerprint(after, name)) for name in STAGES}
    return {name: lines for name, lines in changes.items() if lines}


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("seed=1", "cold_start rl fusion student apart"),
        ("template.stop_thinking=Enough.</think>", "cold_start rl fusion student apart"),
        ("model.config.hidden_size=128", "cold_start rl fusion student apart"),
        ("model.dtype=bfloat16", "cold_start rl fusion student apart"),
        # The tokenizer is trained on it, and the student takes the base model's.
        ("data.words.size=51", "cold_start rl fusion student apart"),
        # Rows of every data set are dropped for being too close to reserved ones.
        ("data.held_out.seed=7", "cold_start rl fusion student apart"),
        ("data.rows.limit=1", "cold_start rl fusion student apart"),
        ("data.other.limit=1", "student"),
        ("stages.cold_start.train.learning_rate=2e-3", "cold_start rl fusion student apart"),
        ("stages.rl.train.max_steps=4", "rl fusion student"),
        ("stages.fusion.queries_of=rl", "fusion"),
        ("stages.fusion.start_from=base", "fusion"),
        ("stages.student.model.config.hidden_size=48", "student"),
        ("stages.student.teacher=fusion", "student"),
        ("stages.apart.optimizer={learning_rate: 0.01}", "apart"),
        # What looks on, or comes after.
        ("name=other", ""),
        ("evaluation.samples=4", ""),
        ("evaluation.max_new_tokens=10", ""),
        ("engine={launcher: accelerate, processes: 2, strategy: ddp}", ""),
        ("stages.rl.require={thinking.accuracy: '> 0.5'}", ""),
        ("stages.rl.evaluate_every=5", ""),
        ("stages.rl.train.logging_steps=1", ""),
        ("stages.rl.train.save_steps=2", ""),
        ("stages.rl.train.report_to=[tensorboard]", ""),
        ("stages.last={kind: other}", ""),
        ("data.more={path: other.jsonl}", ""),
    ],
)
def test_what_a_change_reaches(folder: Path, override: str, changed: str) -> None:
    assert list(differences(folder, override)) == changed.split()


def test_a_difference_is_readable(folder: Path) -> None:
    changes = differences(folder, "stages.rl.train={learning_rate: 2e-3}", "stages.student.judge=b")
    assert changes["rl"] == ["train.learning_rate: (not there) -> 0.002", "train.max_steps: 3 -> (not there)"]
    assert changes["student"] == [
        "judge: (not there) -> b",
        "stages.rl.train.learning_rate: (not there) -> 0.002",
        "stages.rl.train.max_steps: 3 -> (not there)",
    ]


def test_a_stage_put_in_between_changes_where_the_next_starts(folder: Path) -> None:
    between = RECIPE.replace("  rl: {", "  extra: {kind: other}\n  rl: {")
    changes = differences(folder, text=between)
    assert changes["rl"][0] == "starts_from: stage cold_start -> stage extra"
    assert list(changes) == ["rl", "fusion", "student"]


def test_the_content_of_a_file_counts_and_its_place_does_not(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (folder / "recipe.yaml").write_text(RECIPE)
    here = recipe_fingerprint(load_recipe(folder / "recipe.yaml").recipe, "cold_start")
    moved = tmp_path_factory.mktemp("moved")
    write_data(moved)
    (moved / "recipe.yaml").write_text(RECIPE)
    assert recipe_fingerprint(load_recipe(moved / "recipe.yaml").recipe, "cold_start") == here
    (moved / "rows.jsonl").write_text('{"prompt": "1+2"}\n')  # of the same length
    content_of.cache_clear()
    (line,) = fingerprint_difference(here, recipe_fingerprint(load_recipe(moved / "recipe.yaml").recipe, "cold_start"))
    assert line.startswith("data.rows.path.rows.jsonl: 18 bytes, crc32 ")


def test_content_of_folders_and_patterns(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "a.jsonl").write_text("1")
    (tmp_path / "b.jsonl").write_text("")
    (tmp_path / "in" / "c.txt").write_text("3")
    one, nothing = "1 bytes, crc32 83dcefb7", "0 bytes, crc32 00000000"  # CRC-32 of "1" and of ""
    assert content_of(str(tmp_path / "*.jsonl")) == {"a.jsonl": one, "b.jsonl": nothing}
    assert list(content_of(str(tmp_path))) == ["a.jsonl", "b.jsonl", "in/c.txt"]
    assert content_of(str(tmp_path / "nowhere")) == {}


def test_a_large_file_is_read_in_blocks_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain.recipe import fingerprint

    monkeypatch.setattr(fingerprint, "BLOCK", 8)
    monkeypatch.setattr(fingerprint, "WHOLE_FILE", 512)
    file = tmp_path / "large"
    for size in (512, 513, 520, 1000, 100_003):
        file.write_bytes(bytes(size))
        whole = fingerprint._checksum(file)
        for position in (0, size - 1):
            content = bytearray(size)
            content[position] = 1
            file.write_bytes(content)
            assert fingerprint._checksum(file) != whole, (size, position)


def newer(spec: Any) -> Any:
    """The same part of a recipe under a schema that has got a key more, here and in every part inside it."""
    cls = create_model(f"Newer{type(spec).__name__}", __base__=type(spec), added=(int, Field(default=3)))
    inside = {name: getattr(spec, name) for name in spec.model_fields_set}
    return cls.model_construct(
        _fields_set=set(inside),
        **{name: newer(value) if isinstance(value, BaseModel) else value for name, value in inside.items()},
    )


def test_a_key_that_a_later_version_adds_changes_nothing(folder: Path) -> None:
    text = RECIPE.replace("apart: {kind: tune,", "apart: {kind: tune, optimizer: {learning_rate: 0.01},")
    (folder / "recipe.yaml").write_text(text)
    old = load_recipe(folder / "recipe.yaml", ["template.stop_thinking=Enough.</think>"]).recipe
    new = old.model_copy(
        update={
            "model": newer(old.model),
            "template": newer(old.template),
            "data": {name: newer(spec) for name, spec in old.data.items()},
            "stages": {name: newer(stage) for name, stage in old.stages.items()},
        }
    )
    for name in STAGES:
        assert fingerprint_difference(recipe_fingerprint(old, name), recipe_fingerprint(new, name)) == []
    # Once it is given, it counts.
    given = new.model_copy(update={"template": new.template.model_copy(update={"added": 4})})
    assert fingerprint_difference(recipe_fingerprint(old, "rl"), recipe_fingerprint(given, "rl")) == [
        "template.added: (not there) -> 4"
    ]
