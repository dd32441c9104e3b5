"""Data sets from real files: what is read, and every fault named by file and line."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain.data.locations import looks_local, resolve
from posttrain.data.prepare import prepare_data
from posttrain.data.rows import CONVERSATION_COLUMNS
from posttrain.data.sources import load, load_data
from posttrain.errors import PosttrainError
from posttrain.model.artifacts import RunDir
from posttrain.recipe.data_faults import data_faults
from posttrain.recipe.schema import DataSpec, ModelSpec, Recipe, TrainedTokenizer
from posttrain.tasks.task import QUERY_COLUMNS, text_key

logging.getLogger("posttrain").setLevel(logging.INFO)


@dataclass(frozen=True)
class Spec:
    """A data set's description, with the defaults of the recipe's schema."""

    path: str | None = None
    dataset: str | None = None
    split: str = "train"
    task: str | None = None
    size: int | None = None
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    format: str = "auto"
    map: dict[str, str] = field(default_factory=dict)
    filter: str | None = None
    limit: int | None = None
    verifier: str | None = None
    on_bad_rows: str = "refuse"


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        row if isinstance(row, bytes) else row.encode() if isinstance(row, str) else json.dumps(row).encode()
        for row in rows
    ]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def query(n: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"What is {n} + {n}?", "answer": 2 * n, **more}


def chat(n: int, answer: str = "yes") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": answer}]}


def read(tmp_path: Path, rows: list[Any], **spec: Any) -> list[dict[str, Any]]:
    path = write(tmp_path / "rows.jsonl", rows)
    return list(load_data("d", Spec(path=str(path), **spec), base_dir=tmp_path, seed=0))


def faults(tmp_path: Path, rows: list[Any], **spec: Any) -> list[str]:
    with pytest.raises(PosttrainError) as error:
        read(tmp_path, rows, **spec)
    return [f"{Path(problem.where).name if problem.where else ''}|{problem.what}" for problem in error.value.problems]


# --- queries


def test_queries_have_the_contract_s_columns_and_types(tmp_path: Path) -> None:
    rows = read(tmp_path, [query(1), query(2, difficulty=3, domain="math", id="x", key="k")], verifier="number")
    assert [tuple(row) for row in rows] == [QUERY_COLUMNS] * 2
    first, second = rows
    assert first["prompt"] == [{"role": "user", "content": "What is 1 + 1?"}] and first["answer"] == "2"
    assert (first["id"], first["task"], first["domain"], first["difficulty"]) == ("d-1", "number", "d", 0)
    assert first["key"] == text_key("what is 1 + 1?")
    assert (second["id"], second["key"], second["domain"], second["difficulty"]) == ("x", "k", "math", 3)
    assert first["reasoning"] == first["response"] == first["entry"] == ""


def test_a_prompt_may_be_messages_and_its_key_is_that_of_its_user_turns(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1 + 1?"}]
    rows = read(tmp_path, [{"prompt": messages, "answer": "2"}, query(1)], verifier="number")
    assert rows[0]["prompt"] == messages and rows[0]["key"] == rows[1]["key"]


def test_prompts_alone_are_queries_that_nothing_scores(tmp_path: Path) -> None:
    assert read(tmp_path, [{"prompt": "Write a poem."}])[0]["task"] == ""


def test_a_verifier_checks_every_reference_answer(tmp_path: Path) -> None:
    rows = [query(1), {"prompt": "?", "answer": "seven"}, {"prompt": "?", "answer": ""}]
    assert faults(tmp_path, rows, verifier="number")[:2] == [
        "rows.jsonl:2|the answer 'seven' is not one number (verifier 'number')",
        "rows.jsonl:3|the answer is empty (verifier 'number')",
    ]


def test_an_answer_that_nothing_scores_is_refused(tmp_path: Path) -> None:
    assert "nothing scores this answer" in faults(tmp_path, [query(1)])[0]


def test_a_verifier_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert "no task is called 'numbre'" in faults(tmp_path, [query(1)], verifier="numbre")[0]
    assert "no task is called 'nope'" in faults(tmp_path, [query(1, task="nope")])[0]


# --- conversations


def test_conversations_keep_exactly_their_fields(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1, "y": [True, "a"]}}}
    other = {"type": "function", "function": {"name": "g", "arguments": {"z": 2.5}}}
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call, other]},
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
        {"role": "assistant", "content": "done"},
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    rows = read(tmp_path, [{"messages": messages, "tools": tools}, chat(2)])
    assert tuple(rows[0]) == CONVERSATION_COLUMNS
    assert rows[0]["messages"] == messages and rows[0]["tools"] == tools and rows[1]["tools"] is None
    assert rows[1]["messages"] == chat(2)["messages"] and rows[1]["key"] == text_key("question 2")


@pytest.mark.parametrize(
    ("content", "reasoning", "rest"),
    [
        ("<think>\na\nb\n</think>\n\nanswer", "a\nb", "answer"),
        ("<think>\n\n</think>\n\nanswer", "", "answer"),
        ("only closed</think>answer", "only closed", "answer"),
        ("The tag <think> opens a block.", None, "The tag <think> opens a block."),
        ("plain", None, "plain"),
    ],
)
def test_inline_reasoning_is_split_off(tmp_path: Path, content: str, reasoning: str | None, rest: str) -> None:
    turn = read(tmp_path, [chat(1, content)])[0]["messages"][1]
    assert turn["content"] == rest and turn.get("reasoning_content") == reasoning


def test_reasoning_given_in_its_field_is_left_alone(tmp_path: Path) -> None:
    turn = {"role": "assistant", "content": "The text </think> ends it.", "reasoning_content": "r"}
    row = {"messages": [{"role": "user", "content": "q"}, turn]}
    assert read(tmp_path, [row])[0]["messages"][1] == turn


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello"}]},
        {"prompt": [{"role": "user", "content": "Hi"}], "completion": "Hello"},
        {"prompt": "Hi", "completion": [{"role": "assistant", "content": [{"type": "text", "text": "Hello"}]}]},
    ],
)
def test_prompt_and_completion_become_a_conversation(tmp_path: Path, row: dict[str, Any]) -> None:
    wanted = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert read(tmp_path, [row])[0]["messages"] == wanted


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": []}, "an empty list"),
        ({"messages": "hi"}, "not a string"),
        ({"messages": None}, "column 'messages' is null"),
        ({"messages": [{"role": "human", "content": "x"}]}, "role 'human' ('user' here)"),
        ({"messages": [{"content": "x"}]}, "the role None"),
        ({"messages": ["x"]}, "message 1 is an object"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no assistant turn"),
        ({"messages": [{"role": "user", "content": 5}]}, "'content' is text, not a number"),
        ({"messages": [{"role": "user", "content": None}]}, "message 1 (user) has no content"),
        ({"messages": [{"role": "user", "content": "x", "reasoning_content": "y"}]}, "only an assistant turn"),
        (chat(1, "<think>never closed"), "malformed: unclosed_think"),
        ({**chat(1), "tools": "not json"}, "'tools' is text that is no JSON"),
        ({**chat(1), "difficulty": "hard"}, "'difficulty' is a whole number, not 'hard'"),
        ({**chat(1), "difficulty": 2**40}, "whole number"),
        ({**chat(1), "domain": ["a"]}, "'domain' is text or a number, not a list"),
        ({"other": 1}, "no column 'messages'; the row has other"),
    ],
)
def test_wrong_conversations_are_named(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    where, _, what = faults(tmp_path, [chat(0), row])[0].partition("|")
    assert where == "rows.jsonl:2" and said in what


def test_an_unknown_format_names_the_columns_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(PosttrainError) as error:
        read(tmp_path, [{"question": "a", "text": "b"}])
    text = str(error.value)
    assert "rows.jsonl:1" in text and "question, text are no known format" in text and "`map`" in text


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
    rows = [query(0), *["oops"] * 57]
    found = faults(tmp_path, rows, verifier="number")
    assert len(found) == 22 and found[19].startswith("rows.jsonl:21|") and found[20] == "data.d|... and 37 more"


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
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_at_all_give_anything_but_rows_or_a_named_fault(tmp_path: Path, lines: list[bytes]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([json.dumps(query(1)).encode(), *lines]))
    try:
        dataset = load_data("d", Spec(path=str(path), verifier="number"), base_dir=tmp_path, seed=0)
    except PosttrainError as error:
        assert all(str(path) in problem.where for problem in error.problems if "bad row" not in problem.what)
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


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows.parquet", {"prompt": ["a"] * 5000, "answer": ["1"] * 5000})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(PosttrainError, match="no sound parquet file") as error:
        load_data("d", Spec(path=str(path), verifier="number"), base_dir=tmp_path, seed=0)
    assert error.value.problems[0].where == str(path)


# --- where data lies


@pytest.mark.parametrize("name", ["./x", "../x", "/x", "~/x", "x.jsonl", "a/b.parquet", "x.json", "."])
def test_names_that_look_local(name: str) -> None:
    assert looks_local(name)


def test_names_that_do_not(tmp_path: Path) -> None:
    assert not looks_local("openai/gsm8k") and not looks_local("squad")
    assert not looks_local("openai/gsm8k", tmp_path) and not looks_local("squad", tmp_path)


def test_a_folder_beside_the_recipe_is_local(tmp_path: Path) -> None:
    (tmp_path / "squad").mkdir()
    assert looks_local("squad", tmp_path) and looks_local("squad/dev", tmp_path) and not looks_local("squad")


@pytest.mark.parametrize("spec", [Spec(path="./rwos.jsonl"), Spec(dataset="./rwos.jsonl"), Spec(dataset="rwos.jsonl")])
def test_a_missing_local_path_never_goes_to_a_hub(tmp_path: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def no_hub(*_: Any, **__: Any) -> None:
        raise AssertionError("went to a hub")

    monkeypatch.setattr(datasets, "load_dataset", no_hub)
    write(tmp_path / "rows.jsonl", [query(1)])
    with pytest.raises(PosttrainError, match="no such file or folder") as error:
        load_data("d", spec, base_dir=tmp_path, seed=0)
    assert "did you mean rows.jsonl" in str(error.value)


def test_a_name_that_cannot_be_opened_is_an_error_with_its_remedy(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_data_sources import Spec
from posttrain.data.sources import load_data
from posttrain.errors import PosttrainError
try:
    load_data("d", Spec(dataset="nobody/nothing-here"), base_dir=Path("."), seed=0)
except PosttrainError as error:
    print(error)
"""
    env = os.environ | {"HF_HUB_OFFLINE": "1"}  # read at import, hence a process of its own
    command = [sys.executable, "-c", script, str(Path(__file__).parent)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
    assert "cannot open data set 'nobody/nothing-here', split 'train'" in said and "`path`" in said


def test_folders_and_globs_give_their_files_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a/z.jsonl", ".hidden.jsonl", "_cache/x.jsonl", "notes.txt"):
        write(tmp_path / "data" / name, [query(1)])
    names = [str(file.relative_to(tmp_path / "data")) for file in resolve("data", tmp_path)]  # type: ignore[union-attr]
    assert names == ["a/z.jsonl", "b.jsonl"]
    assert resolve("data/**/z.jsonl", tmp_path) == [tmp_path / "data/a/z.jsonl"]
    with pytest.raises(PosttrainError, match="no file matches"):
        resolve("data/*.parquet", tmp_path)
    with pytest.raises(PosttrainError, match="cannot tell what kind of file"):
        resolve("data/notes.txt", tmp_path)
    with pytest.raises(PosttrainError, match="there is no folder"):
        resolve("nowhere/at/all.jsonl", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PosttrainError, match="no file in it ends in"):
        resolve("empty", tmp_path)


def test_a_folder_saved_by_datasets_and_its_splits(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([query(1), query(2)])
    DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(str(tmp_path / "saved"))
    spec = Spec(path="saved", split="test", verifier="number")
    assert len(load_data("d", spec, base_dir=tmp_path, seed=0)) == 1
    with pytest.raises(PosttrainError, match="no split 'dev'; there are train, test"):
        load_data("d", Spec(path="saved", split="dev", verifier="number"), base_dir=tmp_path, seed=0)


# --- map, filter, limit


def test_map_renames_fills_templates_and_keeps_the_rest(tmp_path: Path) -> None:
    rows = [{"question": "1+1", "gold": 2, "level": 4, "messages": "old"}]
    mapping = {"prompt": "{question} = ?\nBox it: \\boxed{{}}.", "answer": "gold", "difficulty": "level"}
    row = read(tmp_path, rows, map=mapping, filter="level > 3 and question.startswith('1')", verifier="number")[0]
    assert row["prompt"][0]["content"] == "1+1 = ?\nBox it: \\boxed{}."
    assert (row["answer"], row["difficulty"]) == ("2", 4)


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        (
            {"prompt": "question", "answer": "gold"},
            "no column 'question', which `map` makes 'prompt' from; the row has prompt, answer",
        ),
        ({"prompt": "{prompt} {question}"}, "no column 'question'"),
        ({"prompt": "{many}"}, "no column 'many'"),
    ],
)
def test_map_names_the_column_that_is_missing(tmp_path: Path, mapping: dict[str, str], said: str) -> None:
    assert said in faults(tmp_path, [query(1)], map=mapping, verifier="number")[0]


@pytest.mark.parametrize("template", ["{", "{}", "{0[x]}", "{a!r}", "{a:>5}", "}"])
def test_malformed_templates_are_refused(tmp_path: Path, template: str) -> None:
    found = faults(tmp_path, [query(1)], map={"prompt": template})
    assert found[0].startswith("data.d.map.prompt|") and "malformed" in found[0]


def test_a_template_is_no_way_into_python(tmp_path: Path) -> None:
    assert "no column 'answer.__class__'" in faults(tmp_path, [query(1)], map={"prompt": "{answer.__class__}"})[0]


def test_filter_needs_its_columns_and_says_why_it_fails(tmp_path: Path) -> None:
    found = faults(tmp_path, [query(1, level=1), query(2), query(3, level="x")], filter="level <= 4", verifier="number")
    assert found[0] == "rows.jsonl:2|the filter needs column 'level'; the row has prompt, answer"
    assert found[1].startswith("rows.jsonl:3|the filter cannot be evaluated: '<=' not supported")


def test_a_filter_that_leaves_nothing_is_an_error(tmp_path: Path) -> None:
    assert (
        "has no row left: 1 read, 1 filtered out, 0 bad"
        in faults(tmp_path, [query(1)], filter="answer > 5", verifier="number")[0]
    )


def test_limit_takes_the_first_rows_that_pass(tmp_path: Path) -> None:
    rows = [query(n) for n in range(10)]
    assert [row["answer"] for row in read(tmp_path, rows, filter="answer >= 6", limit=3, verifier="number")] == [
        "6",
        "8",
        "10",
    ]


# --- tasks


def test_a_task_is_a_source_and_its_problems_depend_on_seed_and_name(tmp_path: Path) -> None:
    def keys(name: str = "d", seed: int = 0, spec_seed: int = 0) -> list[str]:
        spec = Spec(task="arithmetic", size=40, seed=spec_seed, options={"steps": [4, 6]})
        return list(load_data(name, spec, base_dir=tmp_path, seed=seed)["key"])

    assert keys() == keys() and len(keys()) == 40
    for other in (keys("e"), keys(seed=1), keys(spec_seed=1)):
        assert not set(other) & set(keys())


def test_a_task_s_rows_are_filtered_and_mapped_too(tmp_path: Path) -> None:
    spec = Spec(task="arithmetic", size=60, filter="difficulty < 3", map={"domain": "{task}-{difficulty}"})
    rows = load_data("d", spec, base_dir=tmp_path, seed=0)
    assert set(rows["domain"]) == {"arithmetic-1", "arithmetic-2"}
    with pytest.raises(PosttrainError, match="no column 'levle'") as error:
        load_data("d", Spec(task="arithmetic", size=6, map={"domain": "levle"}), base_dir=tmp_path, seed=0)
    assert error.value.problems[0].where == "data.d"


def test_wrong_options_of_a_task_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PosttrainError, match="no option is called 'stepz'"):
        load_data("d", Spec(task="arithmetic", size=1, options={"stepz": 1}), base_dir=tmp_path, seed=0)


# --- what datasets makes of it


def test_the_result_can_be_saved_selected_and_mixed(tmp_path: Path) -> None:
    from datasets import concatenate_datasets, load_from_disk

    path = write(tmp_path / "rows.jsonl", [chat(n) for n in range(5)])
    first = load_data("a", Spec(path=str(path)), base_dir=tmp_path, seed=0)
    second = load_data("b", Spec(path=str(path)), base_dir=tmp_path, seed=0)
    concatenate_datasets([first, second]).select([7, 1]).save_to_disk(str(tmp_path / "saved"))
    assert [row["messages"] for row in load_from_disk(str(tmp_path / "saved"))] == [chat(n)["messages"] for n in (2, 1)]


def test_memory_stays_flat(tmp_path: Path) -> None:
    """10 and 120 MB of rows take about the same memory at their peak."""
    script = """
import resource, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[2])))
from test_data_sources import Spec
from posttrain.data.sources import load_data
data = load_data("d", Spec(path=sys.argv[1]), base_dir=Path("."), seed=0, cache_dir=Path(sys.argv[1]).parent / "cache")
print(len(data), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    peaks = []
    for rows in (1_000, 12_000):
        path = tmp_path / f"{rows}.jsonl"
        with path.open("w") as file:
            for n in range(rows):
                file.write(json.dumps(chat(n, f"{n} " + "word " * 2000)) + "\n")
        command = [sys.executable, "-c", script, str(path), str(Path(__file__).parent)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert int(out[0]) == rows
        peaks.append(int(out[1]))
    assert peaks[1] - peaks[0] < 60, peaks  # MB


# --- conversations cannot be set aside for an evaluation


def test_conversations_are_not_reserved(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": turns, "id": str(i)}) + "\n" for i in range(8)))
    spec = DataSpec(path=str(path), reserve=2)
    with pytest.raises(PosttrainError, match="data 'talks' are conversations: they cannot be reserved") as raised:
        prepare_data(Recipe.model_construct(seed=0, data={"talks": spec}), RunDir(tmp_path / "run"), tmp_path)
    assert raised.value.problems[0].where == "data.talks.reserve"
    assert not (tmp_path / "run").exists()  # nothing was begun
    # Where the recipe says what they are, no row has to be read.
    (fault,) = data_faults("talks", spec.model_copy(update={"format": "conversational"}))
    assert fault.loc == ("data", "talks", "reserve")


def test_data_without_a_row_left_to_train_on_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}+1", "answer": str(i + 1)}) + "\n" for i in range(3)))
    data = {"few": DataSpec(path=str(path), verifier="number", reserve=3)}
    trained = ModelSpec(path="owner/model", tokenizer=TrainedTokenizer(train_on=["few"], vocab_size=300))
    recipe = Recipe.model_construct(seed=0, data=data, model=trained, stages={})
    with pytest.raises(PosttrainError, match="no row left to train on: of 3 rows 3 are reserved, and 0 were") as raised:
        prepare_data(recipe, RunDir(tmp_path / "run"), tmp_path)
    assert raised.value.problems[0].where == "data.few.reserve"
    # Rows for evaluation alone may all be reserved.
    alone = recipe.model_copy(update={"model": ModelSpec(path="owner/model")})
    prepare_data(alone, RunDir(tmp_path / "alone"), tmp_path)
    assert RunDir(tmp_path / "alone").reserved("few").exists()
