"""Data sets from real files: where they lie, what becomes of their rows, and every fault named by file and line."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from posttrain.data.locations import looks_local, resolve
from posttrain.data.prepare import prepare_data
from posttrain.data.readers import rows_in
from posttrain.data.rows import CONVERSATION_COLUMNS
from posttrain.data.sources import load_data
from posttrain.errors import PosttrainError
from posttrain.model.artifacts import RunDir
from posttrain.recipe.data_faults import data_faults
from posttrain.recipe.schema import DataSpec, ModelSpec, Recipe, TrainedTokenizer
from posttrain.tasks.task import QUERY_COLUMNS, text_key
from tests.data_rows import Spec, chat, faults, query, read, write

logging.getLogger("posttrain").setLevel(logging.INFO)


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
        ({"messages": [{"role": "assistant", "tool_calls": [{"arguments": {}}]}]}, "has no 'name'"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": 5}}]}]}, "has no 'name'"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}]},
            "'f' are an object or",
        ),
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
from data_rows import Spec
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
from data_rows import Spec
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


def test_reading_and_comparing_say_how_far_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "rows.jsonl", [chat(n) for n in range(5)])
    sums = DataSpec(task="arithmetic", size=40, reserve=4, decontaminate="key")
    recipe = Recipe.model_construct(
        seed=0, data={"talks": DataSpec(path=str(tmp_path / "rows.jsonl"), decontaminate="key"), "sums": sums},
        stages={}, model=ModelSpec(path="owner/name"),
    )  # fmt: skip
    with caplog.at_level("INFO"):
        prepare_data(recipe, RunDir(tmp_path / "run"), tmp_path, quiet=False)
    told = [message.split(",")[0] for message in caplog.messages]
    assert "reading data talks: 5 of 5" in told and "reading data sums: 40 of 40" in told
    assert "comparing data talks with reserved rows: 5 of 5" in told


def test_rows_are_counted_without_reading_them(tmp_path: Path) -> None:
    files = {"a.jsonl": b"{}\n{}\n", "b.json": b"{}\n"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    Dataset.from_dict({"a": [1, 2, 3]}).to_parquet(tmp_path / "c.parquet")
    assert rows_in([tmp_path / name for name in (*files, "c.parquet")]) == 6
    (tmp_path / "b.json").write_bytes(b"[{}]")
    (tmp_path / "d.parquet").write_bytes(b"rubbish")
    assert rows_in([tmp_path / "b.json"]) is None and rows_in([tmp_path / "d.parquet"]) is None
