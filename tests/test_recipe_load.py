"""A good recipe: how it is read, overridden and resolved, what follows from it, and how fast."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from posttrain.errors import PosttrainError
from posttrain.recipe import kinds
from posttrain.recipe.demands import parse_demand
from posttrain.recipe.fingerprint import dump_resolved
from posttrain.recipe.load import LoadedRecipe, load_recipe
from posttrain.recipe.references import kinds_of, start_of
from posttrain.recipe.schema import Recipe
from posttrain.recipe.source import parse_yaml
from posttrain.recipe.stage import Stage
from posttrain.templates.families import Kind


class Tune(Stage):
    kind: Literal["tune"] = "tune"
    makes: Kind | None = None
    text: str = ""
    share: float = 0.5
    sources: list[dict[str, str]] = Field(default_factory=list)

    def result_kind(self, start_kind: Kind) -> Kind:
        return self.makes or start_kind


class Distil(Stage):
    kind: Literal["distil"] = "distil"
    from_: str = Field(default="", alias="from")


RECIPE = """\
name: tiny
x-shared:
  steps: &steps {max_steps: 10, learning_rate: 1e-3}
  more: &more {learning_rate: 5, warmup_steps: 2}
model: {path: models/base, kind: base}
data:
  rows: {path: rows.jsonl, reserve: 1}
evaluation: {data: [rows], budgets: [0, 16]}
stages:
  cold_start: {kind: tune, makes: thinking, train: {<<: *steps, learning_rate: 2e-3}}
  fusion: {kind: tune, makes: hybrid, train: {<<: [*steps, *more]}}
  general: {kind: tune}
  student:
    kind: distil
    model: {path: owner/student, revision: 12e4567a}
    teacher: general
  again: {kind: tune, start_from: cold_start, sources: [{from: ./models/base}, {from: general}]}
  other: {kind: tune, start_from: base, teacher: ./models/base}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kinds, "STAGE_KINDS", {"tune": f"{__name__}:Tune", "distil": f"{__name__}:Distil"})
    (tmp_path / "models" / "base").mkdir(parents=True)
    for file in ("config.json", "tokenizer.json", "pytorch_model.bin"):
        (tmp_path / "models" / "base" / file).write_text("{}")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1"}\n')
    return tmp_path


def loaded(folder: Path, *overrides: str, text: str = RECIPE) -> LoadedRecipe:
    (folder / "recipe.yaml").write_text(text)
    return load_recipe(folder / "recipe.yaml", overrides)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # YAML 1.1 reads the first four as text, false, 8 and 90.
        ("1e-6", 1e-6),
        ("no", "no"),
        ("010", 10),
        ("1:30", "1:30"),
        ("3e4", 3e4),
        ("-1.5E+3", -1500.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("10_000", 10_000),
        ("0x10", 16),
        ("0o17", 15),
        (".inf", float("inf")),
        ("-.inf", float("-inf")),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("2026-11-23", "2026-11-23"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("12e4567a", "12e4567a"),
        ("'1e-6'", "1e-6"),
        ("!!str 5", "5"),
        ("{a: 1e-6, b: [3e4]}", {"a": 1e-6, "b": [3e4]}),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    read = parse_yaml(text, "here").value()
    assert read == value and type(read) is type(value)


def test_merge_keys_own_values_win_then_the_first_merged(folder: Path) -> None:
    stages = loaded(folder).recipe.stages
    assert stages["cold_start"].train == {"max_steps": 10, "learning_rate": 2e-3}
    assert stages["fusion"].train == {"max_steps": 10, "learning_rate": 1e-3, "warmup_steps": 2}


def test_overrides(folder: Path) -> None:
    recipe = loaded(
        folder,
        "stages.cold_start.train.learning_rate=1e-6",
        "stages.general.train.max_steps=5",  # below a mapping that is not in the file
        "evaluation.budgets.1=3_000",
        "engine={processes: 1, threads: 2}",
        "engine.threads=null",
        "data.more={path: rows.jsonl}",
        "seed=1",
        "seed=2",
    ).recipe
    assert recipe.stages["cold_start"].train["learning_rate"] == 1e-6
    assert recipe.stages["fusion"].train["learning_rate"] == 1e-3  # the anchor's own mapping is not written into
    assert recipe.stages["general"].train == {"max_steps": 5}
    assert recipe.evaluation.budgets == [0, 3000]
    assert recipe.engine.threads is None
    assert recipe.data["more"].path == str(folder / "rows.jsonl")
    assert recipe.seed == 2


def test_local_paths_begin_at_the_recipe_and_hub_ids_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    recipe = loaded(folder).recipe
    base = str(folder / "models" / "base")
    assert recipe.model.path == base
    assert recipe.data["rows"].path == str(folder / "rows.jsonl")
    student, again, other = (recipe.stages[name] for name in ("student", "again", "other"))
    assert student.model is not None and student.model.path == "owner/student"
    assert student.model.revision == "12e4567a"
    assert student.teacher == "general"
    assert isinstance(again, Tune) and again.sources == [{"from": base}, {"from": "general"}]
    assert other.teacher == base


def test_starts_and_kinds_along_the_stages(folder: Path) -> None:
    recipe = loaded(folder).recipe
    assert {name: start_of(recipe, name)[:2] for name in recipe.stages} == {
        "cold_start": ("base",),
        "fusion": ("stage", "cold_start"),
        "general": ("stage", "fusion"),
        "student": ("model", recipe.stages["student"].model),
        "again": ("stage", "cold_start"),
        "other": ("base",),
    }
    assert kinds_of(recipe) == {
        "cold_start": ("base", "thinking"),
        "fusion": ("thinking", "hybrid"),
        "general": ("hybrid", "hybrid"),
        "student": ("base", "base"),
        "again": ("thinking", "thinking"),
        "other": ("base", "base"),
    }


def test_every_place_has_its_line(folder: Path) -> None:
    recipe = loaded(folder, "stages.general.train.max_steps=5")
    file = folder / "recipe.yaml"
    assert recipe.where("stages", "student", "model", "path") == f"{file}:15"
    assert recipe.where("stages", "cold_start", "train", "max_steps") == f"{file}:3"  # where the anchor has it
    assert recipe.where("stages", "cold_start", "train", "absent") == f"{file}:10"
    assert recipe.where("stages", "again", "sources", 1, "from") == f"{file}:17"
    assert recipe.where("stages", "general", "train", "max_steps") == "--set stages.general.train.max_steps=5"
    assert recipe.where("engine") == f"{file}:1"


def test_the_resolved_recipe_is_the_recipe(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    first = loaded(folder, "stages.general.train.learning_rate=1e-6")
    elsewhere = tmp_path_factory.mktemp("run")
    again = loaded(elsewhere, text=first.text)
    assert again.recipe == first.recipe
    assert again.text == first.text
    assert yaml.safe_load(first.text)["engine"]["strategy"] == "ddp"  # defaults stand in it
    assert "from:" in first.text and "from_" not in first.text


TEXTS = st.one_of(
    st.sampled_from(["no", "1e-6", "010", "1:30", "~", "", "null", "=", "<<", "2026-11-23", "a: b", "# x", "'", "x-1"]),
    st.text(st.characters(codec="utf-8")),
)


@settings(max_examples=50)
@given(
    text=TEXTS,
    share=st.floats(allow_nan=False, allow_infinity=False),
    values=st.dictionaries(TEXTS, TEXTS | st.floats() | st.booleans()),
)
def test_whatever_stands_in_a_recipe_comes_back(text: str, share: float, values: dict[str, Any]) -> None:
    """dump, then parse, is the identity: for text that looks like something else, and for every float."""
    stage = Tune(kind="tune", text=text, share=share, train=values)
    back = parse_yaml(yaml_of(stage), "dumped").value()
    assert json.dumps(back["stages"]["one"]["train"]) == json.dumps(values)
    assert (back["stages"]["one"]["text"], back["stages"]["one"]["share"]) == (text, share)


def yaml_of(stage: Stage) -> str:
    return dump_resolved(Recipe.model_construct(name="one", stages={"one": stage}))


@pytest.mark.parametrize(
    ("text", "demand"),
    [(">= 0.95", (">=", 0.95)), ("<1e-2", ("<", 0.01)), (" == 1 ", ("==", 1.0)), ("> -3", (">", -3.0))],
)
def test_demands(text: str, demand: tuple[str, float]) -> None:
    assert parse_demand(text) == demand


@pytest.mark.parametrize("text", ["0.95", "=> 1", ">= 0.9 0.8", ">=", "", "above 1", ">= .9.1"])
def test_what_is_no_demand(text: str) -> None:
    with pytest.raises(ValueError, match="no demand"):
        parse_demand(text)


SHIPPED = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_a_shipped_recipe_loads_and_resolves(path: Path, tmp_path: Path) -> None:
    """One whose model has to be made first says how, and loads once a directory is where it looks."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    copy = Path(shutil.copy(path, folder))
    for prompt in path.parent.glob("*.jinja"):
        shutil.copy(prompt, folder)
    made_by = yaml.safe_load(path.read_text())["model"].get("made_by")
    if made_by:
        with pytest.raises(PosttrainError, match=f"{folder.parent}/models/.* does not exist(?s:.*)run `{made_by}`"):
            load_recipe(copy)
        model = (folder / yaml.safe_load(path.read_text())["model"]["path"]).resolve()
        model.mkdir(parents=True)
        for name in ("config.json", "tokenizer.json", "pytorch_model.bin"):
            (model / name).write_text("{}")
    first = load_recipe(copy)
    assert loaded(tmp_path, text=first.text).recipe == first.recipe


@pytest.mark.parametrize("bad", [False, True], ids=["good", "bad"])
def test_a_recipe_is_judged_in_a_fresh_process_without_anything_heavy(tmp_path: Path, bad: bool) -> None:
    """In seconds of this process's own CPU time: the machine may be busy with others."""
    text = textwrap.dedent(
        f"""\
        name: tiny
        model:
          architecture: Qwen3ForCausalLM
          config: {{hidden_size: 64}}
          tokenizer: {{train_on: [chains], vocab_size: 300}}
          adapter: {{lora: {{r: 8}}}}
        data:
          chains: {{task: arithmetic, size: 100, reserve: 10}}
          gym: {{task: "reasoning_gym:chain_sum", size: 100}}
        evaluation: {{data: [chains]}}
        stages:
          cold_start: {{kind: sft, samples: [{{data: chains}}], train: {{learning_rate: 1e-3}}}}
          rl: {{kind: grpo, queries: {{from: chains}}, train: {{num_generations: 4}}}}
          student:
            kind: off_policy_distillation
            teacher: rl
            modes: {{thinking: 1.0}}
            model: {{architecture: Qwen3ForCausalLM, config: {{hidden_size: 32}}}}
            queries: {{from: chains}}
          on_policy:
            kind: on_policy_distillation
            teacher: rl
            queries: {{from: chains}}
            train: {{{"temperatur" if bad else "temperature"}: 1.0}}
        """
    )
    (tmp_path / "recipe.yaml").write_text(text)
    code = f"""
        import sys, time
        from pathlib import Path
        from posttrain.errors import PosttrainError
        from posttrain.recipe.load import load_recipe
        try:
            load_recipe(Path({str(tmp_path / "recipe.yaml")!r}))
            print("good")
        except PosttrainError as error:
            print(*[problem.what for problem in error.problems], sep="\\n")
        print(time.process_time())
        heavy = "torch transformers trl peft datasets numpy accelerate pandas pyarrow reasoning_gym".split()
        print([name for name in heavy if name in sys.modules])
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=60
    )
    *told, seconds, heavy = result.stdout.splitlines()
    assert told == (["unknown option `temperatur`: DistillationConfig has none"] if bad else ["good"])
    assert heavy == "[]"
    assert float(seconds) < 0.9
