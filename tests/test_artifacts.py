"""Complete or absent: what a sealed directory promises, and what is noticed when it is broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.model.artifacts import (
    MANIFEST,
    Damaged,
    faults_of,
    is_complete,
    read_json,
    read_rows,
    seal,
    write_json,
    write_text,
)
from posttrain.recipe.demands import parse_demand
from posttrain.run.gates import figure, missed


def sealed(path: Path) -> Path:
    write_text(path / "weights.bin", "x" * 100)
    write_json(path / "deep" / "config.json", {"a": 1})
    seal(path, step=3)
    return path


def test_sealed_directory_is_whole(tmp_path: Path) -> None:
    directory = sealed(tmp_path / "d")
    assert is_complete(directory) and faults_of(directory) == []


@pytest.mark.parametrize("content", ["[1]", "3", "null", '"text"', "[" * 100_000])
def test_what_is_no_object_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "clock.json"
    assert read_json(path) is None
    path.write_text(content)
    with pytest.raises(Damaged, match=r"clock\.json: (no JSON object|not JSON)"):
        read_json(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(Damaged, match=r"clock\.json: not JSON"):
        read_json(path)


def test_without_its_manifest_a_directory_is_incomplete(tmp_path: Path) -> None:
    directory = sealed(tmp_path / "d")
    (directory / MANIFEST).unlink()
    assert not is_complete(directory)
    assert "incomplete" in faults_of(directory)[0]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda d: (d / "weights.bin").unlink(), "missing"),
        (lambda d: (d / "weights.bin").write_text("x" * 99), "99 bytes, 100 expected"),
        (lambda d: (d / "weights.bin").write_text("x" * 99 + "y"), "checksum differs"),
        (lambda d: (d / MANIFEST).write_text("{"), "not JSON"),
        (lambda d: (d / MANIFEST).write_text("{}"), "it names no files"),
        (lambda d: (d / MANIFEST).write_bytes(b"\xff\xfe"), "not JSON"),
        (lambda d: (d / MANIFEST).write_text("[]"), "no JSON object"),
    ],
)
def test_damage_is_named(tmp_path: Path, harm: object, said: str) -> None:
    directory = sealed(tmp_path / "d")
    harm(directory)  # type: ignore[operator]
    assert said in faults_of(directory)[0]


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {("not", "a", "key"): 1})
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]


SCORES = {"thinking": {"accuracy": {"value": 0.91, "low": 0.9, "high": 0.95, "n": 10}}, "think_follow": {"value": 0.97}}


@pytest.mark.parametrize(
    ("require", "lines"),
    [
        ({"think_follow": ">= 0.95", "thinking.accuracy": "> 0.9"}, []),
        ({"think_follow": ">= 0.98"}, ["think_follow is 0.97, >= 0.98 is required"]),
        ({"thinking.accuracy": "<0.9"}, ["thinking.accuracy is 0.91, < 0.9 is required"]),
        ({"non_thinking.accuracy": ">= 0"}, ["non_thinking.accuracy >= 0 is required, but it was not measured"]),
    ],
)
def test_gates(require: dict[str, str], lines: list[str]) -> None:
    assert missed(require, SCORES) == lines


def test_demands_are_comparisons() -> None:
    assert parse_demand(" >= 1e-2 ") == (">=", 0.01)
    for text in ("0.9", "=> 0.9", ">= high", ""):
        with pytest.raises(ValueError, match="no demand"):
            parse_demand(text)
    assert figure(SCORES, "thinking") is None


def test_rows_are_read_line_by_line_whatever_breaks_lines_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    rows = [{"text": mark, "more": {"n": n}} for n, mark in enumerate("\x0b\x1c\x85\u2028\u2029")]
    whole = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for cut in (
        '{"text": "a", "more": {"n": 1}',
        '{"text": "\u00e9',
    ):  # what a kill leaves, in the middle of a letter too
        path.write_bytes((whole + cut).encode()[:-1] + b"\n" + whole.encode())
        assert read_rows(path) == rows * 2
