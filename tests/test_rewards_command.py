"""`posttrain rewards`: what there is, what the probes find, and rows of a file with score, components and reason."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli import main
from posttrain.errors import PosttrainError
from posttrain.rl.rewards import REWARDS, Rollout
from posttrain.rl.rewards.probes import names
from posttrain.rl.rewards.scoring import read_rows
from posttrain.run import rewards as command
from posttrain.tasks.symbols import Symbols
from posttrain.templates.families import get_family

ROOT = Path(__file__).parents[1]
RIGHT = "<think>\nsum\n</think>\n\n4<|im_end|>"
ROW = {"task": "number", "prompt": "2+2?", "answer": "4", "completion": RIGHT, "mode": "thinking"}


def scored(folder: Path, *rows: Any, options: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    path, output = folder / "rows.jsonl", folder / "scored.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert main(["rewards", "score", str(path), "--output", str(output), *options]) == 0
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def test_list_names_every_reward_and_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewards", "list"]) == 0
    said = capsys.readouterr().out
    for name in [*REWARDS, *names(), "reasoning_gym:NAME"]:
        assert re.search(rf"│ {re.escape(name)} +│", said), name


def test_rows_come_back_with_score_components_and_reason(tmp_path: Path) -> None:
    wrong = {**ROW, "completion": RIGHT.replace("4", "5"), "id": "mine"}
    hidden = {**ROW, "completion": "<think>\n4\n</think>\n\n<|im_end|>"}
    cut = {**ROW, "truncated": True}
    out = scored(tmp_path, ROW, wrong, hidden, cut)
    assert [row["score"] for row in out] == [1.0, 0.0, 0.0, 0.0]
    assert {key: out[1][key] for key in wrong} == wrong
    assert out[0]["components"] == {"accuracy": {"score": 1.0, "reason": "'4' for '4'"}}
    assert "'5' for '4'" in out[1]["reason"] and "no answer" in out[2]["reason"] and "cut off" in out[3]["reason"]
    assert scored(tmp_path, *out) == out  # what was scored can be scored again


def test_rewards_are_given_as_in_a_recipe(tmp_path: Path) -> None:
    untagged = {**ROW, "completion": "4<|im_end|>", "tokens": 95, "max_tokens": 100}
    (row,) = scored(tmp_path, untagged, options=("--rewards", "{accuracy: 3, format: 1, length: {weight: 1}}"))
    assert row["score"] == pytest.approx((3 * 1 + 0 + 0.25) / 5)
    assert set(row["components"]) == {"accuracy", "format", "length"}


def test_fields_are_the_verifiers_own(tmp_path: Path) -> None:
    calls = [{"name": "f", "arguments": {"x": 1}}]
    text = f"<tool_call>\n{json.dumps(calls[0])}\n</tool_call><|im_end|>"
    row = {"task": "tool_calls", "prompt": "call f", "fields": {"calls": calls}, "completion": text}
    assert scored(tmp_path, row)[0]["score"] == 1.0


BAD: list[tuple[Any, str]] = [
    ([1], "a row is a JSON object"),
    ({**ROW, "task": "numbr"}, "did you mean number"),
    ({key: value for key, value in ROW.items() if key != "completion"}, "it lacks 'completion'"),
    ({**ROW, "answer": "many"}, "is not one number"),
    ({**ROW, "mode": "loud"}, "the mode 'loud'"),
    ({**ROW, "completon": "x"}, "unknown: 'completon'"),
    ({**ROW, "tokens": "many"}, "`tokens` is int"),
    ({**ROW, "prompt": []}, "`prompt` is text"),
    ({**ROW, "task": "citations", "fields": {}}, "`answers`"),
    ({**ROW, "entry": {}, "fields": {}}, "give one"),
    ({**ROW, "answer": "many", "entry": {"language": "German"}}, "is not one number"),
    ({**ROW, "entry": "[" * 5000}, "`entry` is no JSON"),
    ({**ROW, "task": "json", "answer": "[" * 5000}, "its answer is no JSON"),
    ({**ROW, "task": "tool_calls", "answer": "[" * 5000}, "its answer is no JSON"),
]


def test_every_bad_row_is_named_by_its_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(ROW), *(json.dumps(row) for row, _ in BAD), "{not json"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert main(["rewards", "score", str(path), "--output", str(tmp_path / "out.jsonl")]) == 2
    said = capsys.readouterr().err
    for number, (_, told) in enumerate(BAD, 2):
        assert re.search(rf"rows\.jsonl:{number}: .*{re.escape(told)}", said), (number, told, said)
    assert f"rows.jsonl:{len(BAD) + 2}" in said and "rows.jsonl:1:" not in said
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["rewards", "score", "nowhere.jsonl"], "there is no file"),
        (["rewards", "probe", "jsonn"], "did you mean json"),
        (["rewards", "probe", "judge"], "not probed by itself"),
    ],
)
def test_bad_input_is_told(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[1]", "{accuracy: much}", "{acuracy: 1}", "{a: [}"])
def test_rewards_that_are_none_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW), encoding="utf-8")
    with pytest.raises(PosttrainError):
        command.score_file(path, rewards=text, family="qwen3", output=None)


def test_probe_prints_a_table_and_tells_what_it_finds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rewards", "probe", "symbols:copy", "format"]) == 0
    assert re.search(r"│ symbols:copy +│ content +│ 1 +│ 0 ", capsys.readouterr().out)
    hurried: Callable[..., Any] = lambda self, message, query: (float(query["answer"] in message.content), "")  # noqa: E731
    monkeypatch.setattr(Symbols, "judge", hurried)
    assert main(["rewards", "probe", "symbols:count"]) == 1
    said = capsys.readouterr().out
    assert "'very long digits' scores 1" in said and "a hack earns" in said


def test_rows_are_read_as_rollouts_of_the_family(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**ROW, "prefilled": "<think>\n", "completion": "a\n</think>\n\n4"}))
    (_, query, rollout) = read_rows(path, get_family("qwen3"))[0]
    assert isinstance(rollout, Rollout) and rollout.message.reasoning == "a"
    assert query["prompt"] == [{"role": "user", "content": "2+2?"}]


def test_no_torch_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW), encoding="utf-8")
    code = (
        "import sys; from posttrain.cli import main\n"
        "for words in ('list', 'probe --no-search json', 'score rows.jsonl'):\n"
        "    assert main(['rewards', *words.split()]) == 0\n"
        "print([name for name in ('torch', 'transformers', 'trl', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
