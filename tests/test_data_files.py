"""Files of rows: JSON lines, arrays and parquet as they are, broken ones named by file and line."""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain.data.sources import load, load_data
from posttrain.errors import PosttrainError
from tests.data_rows import Spec, faults, query, write

logging.getLogger("posttrain").setLevel(logging.INFO)


# --- broken files


def test_broken_lines_are_named_all_at_once(tmp_path: Path) -> None:
    rows: list[Any] = [query(n) for n in range(1, 31)]
    rows[16] = '{"prompt": "What is 17?", "answer": 34'
    rows[20] = b'{"prompt": "caf\xe9", "answer": 1}'
    rows[22] = "[1, 2]"
    rows[24] = {"answer": 1}
    rows[26] = {"prompt": 5, "answer": 1}
    rows[28] = '{"prompt": "\\ud800", "answer": 1}'
    found = faults(tmp_path, rows, verifier="number")
    assert [fault.partition("|")[0] for fault in found] == [
        *(f"rows.jsonl:{n}" for n in (17, 21, 23, 25, 27, 29)),
        "data.d",
    ]
    for fault, said in zip(
        found,
        [
            "broken JSON",
            "not UTF-8: byte 0xe9 at byte 16",
            "not a list",
            "no column 'prompt'; the row has answer",
            "prompt is text or a list of messages, not a number",
            "half a surrogate pair",
            "6 bad rows in data 'd'",
        ],
        strict=True,
    ):
        assert said in fault


def test_of_many_faults_20_are_shown(tmp_path: Path) -> None:
    rows = [query(0), *({"prompt": "?", "answer": "x" * (n + 1)} for n in range(57))]
    found = faults(tmp_path, rows, verifier="number")
    assert len(found) == 22 and found[19].startswith("rows.jsonl:21|") and found[20] == "data.d|... and 37 more"


def test_of_one_fault_in_every_row_3_are_shown_beside_others(tmp_path: Path) -> None:
    rows = [query(0), *["oops"] * 57, {"prompt": 5, "answer": 1}]
    found = faults(tmp_path, rows, verifier="number")
    assert [fault.partition("|")[0] for fault in found[:4]] == [f"rows.jsonl:{n}" for n in (2, 3, 4, 59)]
    assert found[4] == "data.d|... and 54 more" and "58 bad rows" in found[5]


def test_bad_rows_can_be_skipped_counted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "rows.jsonl", [query(1), "{", query(3), {"prompt": "?", "answer": "x"}])
    spec = Spec(path=str(path), verifier="number", on_bad_rows="skip", filter="answer != 6")
    loaded = load("d", spec, base_dir=tmp_path, seed=0)
    counts = loaded.counts
    assert (len(loaded.dataset), counts.kept, counts.filtered, counts.bad, counts.read) == (1, 1, 1, 2, 3)
    assert "rows.jsonl:2: broken JSON" in counts.bad_examples[0]
    assert any("2 bad rows skipped" in record.message for record in caplog.records)


def test_blank_lines_and_a_byte_order_mark_are_no_faults(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(query(1)).encode() + b"\r\n\r\n  \n" + json.dumps(query(2)).encode())
    assert len(load_data("d", Spec(path=str(path), verifier="number"), base_dir=tmp_path, seed=0)) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"\n\n", "there is no row in the file"),
        ('{"prompt": "a"}'.encode("utf-16"), "the file is UTF-16"),
    ],
)
@pytest.mark.parametrize("on_bad_rows", ["refuse", "skip"])
def test_a_file_without_rows_is_refused_whatever(tmp_path: Path, content: bytes, said: str, on_bad_rows: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(PosttrainError) as error:
        load_data("d", Spec(path=str(path), on_bad_rows=on_bad_rows), base_dir=tmp_path, seed=0)
    assert error.value.problems[0].where == str(path) and said in error.value.problems[0].what


def test_refused_data_leaves_no_file(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [*[query(n) for n in range(1500)], "{"])
    cache = tmp_path / "cache"
    with pytest.raises(PosttrainError):
        load_data("d", Spec(path=str(path), verifier="number"), base_dir=tmp_path, seed=0, cache_dir=cache)
    assert list(cache.iterdir()) == []
    load_data(
        "d", Spec(path=str(path), verifier="number", on_bad_rows="skip"), base_dir=tmp_path, seed=0, cache_dir=cache
    )
    assert [file.name for file in cache.iterdir()] == ["d.arrow"]


@given(st.lists(st.binary(max_size=40), max_size=6))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_no_bytes_at_all_give_anything_but_rows_or_a_named_fault(tmp_path: Path, lines: list[bytes]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([json.dumps(query(1)).encode(), *lines]))
    try:
        dataset = load_data("d", Spec(path=str(path), verifier="number"), base_dir=tmp_path, seed=0)
    except PosttrainError as error:
        told = [problem for problem in error.problems if not re.search(r"bad row|^\.\.\. and", problem.what)]
        assert told and all(str(path) in problem.where for problem in told)
    else:
        assert len(dataset) >= 1


# --- JSON arrays and parquet


def test_a_json_array_is_read_with_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([query(n, note="x" * 50_000) for n in range(1, 8)], indent=1))  # more than one chunk
    rows = load_data("d", Spec(path=str(path), verifier="number"), base_dir=tmp_path, seed=0)
    assert [row["answer"] for row in rows] == [str(2 * n) for n in range(1, 8)]
    path.write_text('[\n {"prompt": "a", "answer": 1},\n 7,\n {"prompt": "b", "answer": "c"}\n]')
    with pytest.raises(PosttrainError) as error:
        load_data("d", Spec(path=str(path), verifier="number"), base_dir=tmp_path, seed=0)
    assert [problem.where for problem in error.value.problems[:2]] == [f"{path}:3", f"{path}:4"]


@pytest.mark.parametrize(
    "text", ['[{"prompt": "a", "answer": 1}', '[{"prompt": "a", "answer": 1} {"prompt"', '[{"a": }]']
)
def test_a_broken_array_names_its_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.json").write_text("\n\n" + text)
    with pytest.raises(PosttrainError, match="broken JSON at or after line 3"):
        load_data("d", Spec(path="rows.json", verifier="number"), base_dir=tmp_path, seed=0)


def parquet(path: Path, columns: dict[str, Any]) -> Path:
    import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
    from pyarrow import parquet as pq

    pq.write_table(pa.table(columns), path)
    return path


def test_parquet_rows_are_read_and_faults_have_their_row(tmp_path: Path) -> None:
    columns = {"prompt": [f"q{n}" for n in range(2000)], "answer": [str(n) for n in range(2000)]}
    path = parquet(tmp_path / "rows.parquet", columns)
    spec = Spec(path=str(path), verifier="number")
    assert len(load_data("d", spec, base_dir=tmp_path, seed=0)) == 2000
    columns["answer"][1233] = "x"
    parquet(path, columns)
    with pytest.raises(PosttrainError) as error:
        load_data("d", spec, base_dir=tmp_path, seed=0)
    assert error.value.problems[0].where == f"{path}, row 1234"


def test_parquet_text_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    import pyarrow as pa

    prompts = pa.array([b"a", b"caf\xe9", b"c"]).view(pa.string())
    path = parquet(tmp_path / "rows.parquet", {"prompt": prompts, "answer": ["1", "2", "3"]})
    with pytest.raises(PosttrainError) as error:
        load_data("d", Spec(path=str(path), verifier="number"), base_dir=tmp_path, seed=0)
    assert str(error.value.problems[0]) == f"{path}, row 2: not UTF-8"


def test_tool_calls_from_parquet_lose_the_nulls_that_it_made_up(tmp_path: Path) -> None:
    calls = [
        {"function": {"name": name, "arguments": arguments}} for name, arguments in [("f", {"x": 1}), ("g", {"y": "b"})]
    ]
    messages = [{"role": "user", "content": "go"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    path = parquet(tmp_path / "rows.parquet", {"messages": [messages]})
    assert load_data("d", Spec(path=str(path)), base_dir=tmp_path, seed=0)[0]["messages"] == messages


@pytest.mark.parametrize("value", [datetime(2026, 1, 1, tzinfo=UTC), b"x", float("nan")])
@pytest.mark.parametrize("place", ["tool_calls", "tools", "entry"])
def test_what_json_cannot_say_is_named_with_its_row(place: str, value: Any, tmp_path: Path) -> None:
    call = {"function": {"name": "f", "arguments": {"x": value}}}
    answer: dict[str, Any] = {"role": "assistant", "content": "a"}
    columns: dict[str, Any] = {"messages": [[{"role": "user", "content": "go"}, answer]]}
    if place == "tool_calls":
        answer["tool_calls"] = [call]
    elif place == "tools":
        columns["tools"] = [[call]]
    else:
        columns = {"prompt": ["q"], "answer": ["1"], "entry": [{"x": value}]}
    path = parquet(tmp_path / "rows.parquet", columns)
    with pytest.raises(PosttrainError, match=f"'{place}' cannot be written as JSON") as error:
        load_data("d", Spec(path=str(path), verifier="number" if place == "entry" else None), base_dir=tmp_path, seed=0)
    assert error.value.problems[0].where == f"{path}, row 1"


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows.parquet", {"prompt": ["a"] * 5000, "answer": ["1"] * 5000})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(PosttrainError, match="no sound parquet file") as error:
        load_data("d", Spec(path=str(path), verifier="number"), base_dir=tmp_path, seed=0)
    assert error.value.problems[0].where == str(path)
