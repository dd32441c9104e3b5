"""`posttrain chat`: commands switch mode and budget, what is none is told, and no line ends the conversation."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from posttrain.run.chat import HELP, chat

from .vllm_model import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("chat") / "model")


def said(model: Path, lines: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What is printed after each prompt, and the prompts."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    capsys.readouterr()
    chat(model, thinking_budget=-1, max_new_tokens=4)
    return capsys.readouterr().out.split("\n[")[1:]


def test_mode_and_budget_are_switched_at_any_turn(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = said(model, b"/budget 2\nhello\n/no_think\nhello\n/budget -1\n/clear\n/quit\n", monkeypatch, capsys)
    prompts = [turn.partition("]")[0] for turn in turns]
    assert prompts == [
        "thinking, budget -1",
        *["thinking, budget 2"] * 2,
        *["non_thinking, budget 2"] * 2,
        *["non_thinking, budget -1"] * 2,
    ]
    assert all("thinking tokens" in turns[at] for at in (1, 3)) and len(turns) == 7


NO_COMMANDS = ["/budget", "/budget many", "/budget --5", "/budget -7", "/budget \u00b2", "/foo", "/clear it"]


@pytest.mark.parametrize("line", NO_COMMANDS)
def test_what_is_no_command_is_told(
    model: Path, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, last = said(model, f"{line}\n".encode(), monkeypatch, capsys)
    assert f"no such command: {line}\n{HELP}" in first and last.startswith("thinking, budget -1]")


def test_bytes_that_are_no_text_and_a_path_are_questions(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = said(model, b"\xff\xfe hello\n/home/me is a path\n", monkeypatch, capsys)
    assert ["thinking tokens" in turn for turn in turns] == [True, True, False]
