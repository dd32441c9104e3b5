"""A clean wheel: one top-level name, the folders behind the links as plain files, working wherever it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "posttrain"
LINKS = ("rl", "distill", "budget", "templates", "recipes")

USE = """
import sys
from pathlib import Path
import posttrain, posttrain.budget.state, posttrain.distill.on_policy, posttrain.rl.grpo, posttrain.sft.stage
from posttrain.errors import PosttrainError
from posttrain.recipe.load import load_recipe
from posttrain.templates.families import FAMILIES
from posttrain.templates.render import render
home = Path(posttrain.__file__).parent
print(home)
for recipe in sorted((home / "recipes").glob("*.yaml")):
    try:
        load_recipe(recipe)
    except PosttrainError as error:  # a model that has to be made first
        assert [problem.remedy for problem in error.problems] == ["run `make smollm2`, which makes it"], error
for family in FAMILIES.values():
    assert "hello" in render([{"role": "user", "content": "hello"}], family, add_generation_prompt=True)
assert (home / "report" / "report.html.jinja").is_file() and (home / "py.typed").is_file()
assert "torch" not in sys.modules
"""


def build(source: Path, target: Path, *options: str) -> Path:
    """The one file that a build leaves."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), *options, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = target.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"), "--wheel")


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as opened:
        assert not any(info.external_attr >> 28 == 0o12 for info in opened.infolist())  # no links
        return set(opened.namelist())


def in_the_tree() -> set[str]:
    """Every file of the package, those behind links too."""
    found = set()
    for folder, folders, files in os.walk(PACKAGE, followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        found |= {(Path(folder) / name).relative_to(ROOT).as_posix() for name in files}
    return found


def test_links_lead_into_this_repository() -> None:
    links = {path.name: os.readlink(path) for path in PACKAGE.iterdir() if path.is_symlink()}
    assert links == {name: f"../{name}" for name in LINKS}
    assert all((ROOT / name).is_dir() for name in LINKS)


def test_the_wheel_has_one_top_level_name_and_every_file(wheel: Path) -> None:
    found = names(wheel)
    assert {name.split("/")[0] for name in found} == {"posttrain", "posttrain-0.1.0.dist-info"}
    assert {name for name in found if name.startswith("posttrain/")} == in_the_tree()
    for name in ("rl/grpo.py", "distill/trainer.py", "budget/state.py", "templates/qwen3.jinja", "py.typed"):
        assert f"posttrain/{name}" in found
    with zipfile.ZipFile(wheel) as opened:
        assert b"posttrain = posttrain.cli:main" in opened.read("posttrain-0.1.0.dist-info/entry_points.txt")


def test_the_source_distribution_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    source = build(ROOT, tmp_path / "sdist", "--sdist")
    with tarfile.open(source) as opened:
        assert not any(member.issym() or member.islnk() for member in opened.getmembers())
        opened.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert names(build(unpacked, tmp_path / "wheel", "--wheel")) == names(wheel)


def test_installed_elsewhere_it_works_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*install, "--target", str(target), str(wheel)], check=True, capture_output=True)
    assert {path.name for path in target.iterdir()} == {"posttrain", "posttrain-0.1.0.dist-info", "bin"}
    environment = {**os.environ, "PYTHONPATH": str(target)}  # before the editable install of the tests
    used = subprocess.run(
        [sys.executable, "-c", USE], cwd=elsewhere, env=environment, capture_output=True, text=True, check=False
    )
    assert used.returncode == 0, used.stderr
    assert Path(used.stdout.strip()) == target / "posttrain"
    script = subprocess.run(
        [str(target / "bin" / "posttrain"), "--version"], cwd=elsewhere, env=environment, capture_output=True, text=True
    )
    assert script.stdout == "posttrain 0.1.0\n"
