"""The documentation holds what it says: commands, links, recipes, examples, the map, the reference of a recipe."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from posttrain.cli import parser
from posttrain.errors import PosttrainError
from posttrain.recipe.kinds import STAGE_KINDS
from posttrain.recipe.load import load_recipe
from posttrain.rl.rewards import REWARDS, Rollout, resolve_reward
from posttrain.tasks.registry import TASKS, get_task
from posttrain.tasks.task import check_gold
from posttrain.templates.families import get_family
from posttrain.templates.parse import parse

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "ROADMAP.md",
    "docs/budget.md",
    "docs/environments.md",
    "docs/recipe.md",
    "docs/rewards.md",
    "docs/reinforcement_learning.md",
    "docs/sandbox.md",
    "docs/serving.md",
    "docs/suites.md",
    "templates/README.md",
)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)
    return [block for of, block in found if of == language]


def prose(page: str) -> str:
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def block_of(page: str, language: str, needle: str) -> str:
    found = [block for block in blocks(page, language) if needle in block]
    assert len(found) == 1, f"{page}: {len(found)} {language} blocks with {needle!r}"
    return found[0]


def commands(page: str) -> Iterator[list[str]]:
    """Every `posttrain ...` that a page's shell blocks run, without the word itself."""
    for block in blocks(page, "sh"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["posttrain"]:
                yield words[1:]


# --- the reference


def test_the_reference_of_a_recipe_is_what_the_schema_gives() -> None:
    script = ROOT / "docs" / "make_reference.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_reference_has_every_kind_task_and_reward() -> None:
    text = text_of("docs/recipe.md")
    assert all(f"## kind: {kind}\n" in text for kind in STAGE_KINDS)
    assert all(f"| `{name}" in text for name in [*TASKS, *REWARDS])


# --- commands and links


def test_commands_of_the_readme_parse() -> None:
    found = list(commands("README.md"))
    for words in found:
        parser().parse_args(words)
    assert {words[0] for words in found} == {
        "check",
        "run",
        "report",
        "eval",
        "chat",
        "data",
        "serve",
        "rewards",
        "distill",
    }


def test_a_command_that_is_not_there_would_be_noticed() -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["train", "somewhere"])


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/recipe.md"])
def test_commands_named_in_a_sentence_exist(page: str) -> None:
    (choices,) = (action.choices for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    named = re.findall(r"`posttrain ([a-z_]+)[^`]*`", prose(page))
    assert set(named) <= set(choices)


def test_what_the_roadmap_calls_working_can_be_called() -> None:
    for line in text_of("ROADMAP.md").splitlines():
        if not line.startswith("|") or "missing" in line:
            continue
        for command in re.findall(r"`posttrain ([^`]+)`", line):
            parser().parse_args(shlex.split(command))


@pytest.mark.parametrize("page", PAGES)
def test_targets_of_make_exist(page: str) -> None:
    targets = re.search(r"^\.PHONY: (.*)$", text_of("Makefile"), re.MULTILINE)
    assert targets is not None
    named = re.findall(r"`make ([a-z0-9-]+)", prose(page))
    for block in blocks(page, "sh"):
        named += re.findall(r"^make ([a-z0-9-]+)", block, re.MULTILINE)
    assert set(named) <= set(targets[1].split())


def headings(page: Path) -> set[str]:
    """The anchors that a page's headings make."""
    lines = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        assert "://" not in target, f"{page}: {target}"
        path, _, anchor = target.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        assert there.exists(), f"{page}: {target}"
        assert not anchor or anchor in headings(there), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES[:-1])  # the last one has a path as an example of what is no flag
def test_test_files_and_recipes_that_are_named_exist(page: str) -> None:
    for name in re.findall(r"\b(?:tests|recipes|benchmarks|docs)/[\w./-]+\.(?:py|yaml|md)\b", prose(page)):
        missing = f"(missing) `{name}`" in text_of(page)
        assert (ROOT / name).exists() != missing, f"{page}: {name}"


# --- the recipe of the README


def readme_recipe(folder: Path, addition: str = "") -> Path:
    path = folder / "first.yaml"
    path.write_text(block_of("README.md", "yaml", "name: first") + addition, encoding="utf-8")
    return path


def test_the_recipe_of_the_readme_is_valid_and_its_overrides_too(tmp_path: Path) -> None:
    path = readme_recipe(tmp_path)
    assert list(load_recipe(path).recipe.stages) == ["cold_start", "reasoning_rl"]
    for words in commands("README.md"):
        if "--set" in words:
            load_recipe(path, [words[words.index("--set") + 1]])


def test_the_faults_that_the_readme_shows_are_those_told(tmp_path: Path) -> None:
    text = block_of("README.md", "yaml", "name: first")
    broken = tmp_path / "broken.yaml"
    wrong = (("reserve: 64", "reserv: 64"), ("learning_rate: 5e-3", "learning_rte: 5e-3"), ("from: sums", "from: sum"))
    for right, misspelled in wrong:
        assert right in text
        text = text.replace(right, misspelled)
    broken.write_text(text, encoding="utf-8")
    with pytest.raises(PosttrainError) as caught:
        load_recipe(broken)
    told = str(caught.value).replace(f"{tmp_path}/", "")
    shown = block_of("README.md", "", "posttrain: 3 problems").split("\n", 1)[1]
    assert told.strip() == shown.strip()


# --- the examples of CONTRIBUTING


def put_in_place(example: str, folder: Path) -> tuple[ModuleType, str]:
    """Import an example as a module of its own, and give the name that its line in the registry calls it by."""
    code = block_of("CONTRIBUTING.md", "python", f"# {example}\n")
    path = folder / Path(example).name
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    module_path = "posttrain." + example.removeprefix("posttrain/").removesuffix(".py").replace("/", ".")
    line = block_of("CONTRIBUTING.md", "python", f'"{module_path}:')
    assert line.strip().startswith(f'"{path.stem}": "{module_path}:')
    return module, f"{path.stem}:{line.strip().rpartition(':')[2].rstrip(',').strip(chr(34))}"


def test_the_example_of_a_stage_kind_is_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = put_in_place("rl/kto.py", tmp_path)
    monkeypatch.setitem(STAGE_KINDS, "kto", path)
    recipe = readme_recipe(tmp_path, block_of("CONTRIBUTING.md", "yaml", "kind: kto"))
    stage = load_recipe(recipe).recipe.stages["preferences"]
    assert (stage.kind, stage.data_references()) == ("kto", [(("queries",), "sums")])
    faults = {
        "stages.preferences.train.learning_rte=1": "did you mean `learning_rate`",
        "stages.preferences.queries=summs": "did you mean `sums`",
        "stages.preferences.sample=3": "did you mean `samples`",
        "template.family=qwen2_5": "has no thinking mode",
    }
    for override, expected in faults.items():
        with pytest.raises(PosttrainError, match=re.escape(expected)):
            load_recipe(recipe, [override])


def test_the_example_of_a_reward_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = put_in_place("rl/rewards/brevity.py", tmp_path)
    monkeypatch.setitem(REWARDS, "brevity", path)
    rewards: dict[str, Any] = yaml.safe_load(block_of("CONTRIBUTING.md", "yaml", "brevity:"))["rewards"]
    brevity = resolve_reward("brevity", rewards["brevity"]["options"])
    family = get_family("qwen3")
    long_thinking = parse("<think>\n" + "so " * 99 + "\n</think>\n\nfour", family)
    assert brevity({}, Rollout(long_thinking)).value == 1.0
    assert brevity({}, Rollout(parse("four " * 51, family))).value == 0.0
    assert brevity({}, Rollout(long_thinking, truncated=True)).value is None
    inline = "{brevity: {weight: 0.2, options: {word: 50}}}"
    with pytest.raises(PosttrainError, match="has no option 'word'"):
        load_recipe(readme_recipe(tmp_path), [f"stages.reasoning_rl.rewards={inline}"])


def test_the_example_of_a_task_verifies_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = put_in_place("posttrain/tasks/parity.py", tmp_path)
    monkeypatch.setitem(TASKS, "parity", path)
    task = get_task("parity")
    rows = list(task.queries(50, seed=1))
    assert rows == list(task.queries(50, seed=1)) != list(task.queries(50, seed=2))
    assert [fault for row in rows for fault in check_gold(task, row)] == []
    with pytest.raises(PosttrainError, match="largest is 0"):
        task.queries(1, seed=1, largest=0)
    recipe = readme_recipe(tmp_path)
    assert (
        load_recipe(recipe, ["data.sums={task: parity, size: 100, reserve: 10}"]).recipe.data["sums"].task == "parity"
    )


# --- the map


def test_the_map_names_every_file_and_no_other() -> None:
    named = set(re.findall(r"^\| `([\w/]+\.py)` \|", text_of("CONTRIBUTING.md"), re.MULTILINE))
    folders = [ROOT / "posttrain", *(ROOT / name for name in ("rl", "distill", "budget", "templates"))]
    there = {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in folder.rglob("*.py")
        if path.name != "__init__.py" or path.parent.name in ("rewards", "environments")
    }
    there = {path for path in there if not re.match(r"posttrain/(?:rl|distill|budget|templates|recipes)/", path)}
    assert named - there == set(), "in the map of CONTRIBUTING.md, and not there"
    assert there - named == set(), "not in the map of CONTRIBUTING.md"
