"""`posttrain serve`: its words before vLLM is asked, and the figures that it puts into answers."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.budget.request import BudgetRequest
from posttrain.budget.rule import BudgetRule
from posttrain.budget.serve import MIDDLEWARE, PROCESSOR, add_arguments, command_line, server_settings
from posttrain.budget.server.usage import Choice, Ledger
from posttrain.budget.state import BudgetState
from posttrain.errors import PosttrainError
from tests.conftest import posttrain

# --- the command line


def options(*words: str) -> tuple[Any, list[str]]:
    import argparse

    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser)
    return parser.parse_known_args(words)


def test_vllms_options_pass_through_in_their_order() -> None:
    arguments, rest = options("m", "--port", "1", "--thinking-budget", "5", "-O3", "--middleware", "a.b", "--seed=3")
    command = command_line(arguments, rest)
    assert command[command.index("serve") + 1] == "m"
    assert command[-6:] == ["--port", "1", "-O3", "--middleware", "a.b", "--seed=3"]
    assert command[command.index("--logits-processors") + 1] == PROCESSOR
    assert command[command.index("--middleware") + 1] == MIDDLEWARE
    assert command[command.index("--reasoning-parser") + 1] == "qwen3"


def test_the_users_processors_stay_beside_ours() -> None:
    arguments, rest = options("m", "--logits-processors", "a:B", PROCESSOR, "c:D", "--logits_processors", "e:F")
    command = command_line(arguments, rest)
    at = command.index("--logits-processors")
    assert command[at + 1 : at + 5] == [PROCESSOR, "a:B", "c:D", "e:F"]
    assert command.count("--logits-processors") == 1


@pytest.mark.parametrize("word", ["--reasoning-parser", "--reasoning_parser"])
def test_the_users_reasoning_parser_wins(word: str, tmp_path: Path) -> None:
    assert "qwen3" not in command_line(*options("m", word, "deepseek_r1"))
    assert "qwen3" not in command_line(*options("m", f"{word}="))
    config = tmp_path / "vllm.yaml"
    config.write_text("port: 3\nreasoning_parser: deepseek_r1\n")
    assert "qwen3" not in command_line(*options("m", "--config", str(config)))


def test_settings_come_from_the_environment_and_the_options_win() -> None:
    arguments, _ = options("m", "--thinking-budget", "5", "--thinking-efforts", "low=1,high=-1")
    before = {"POSTTRAIN_BUDGET": '{"default": 9, "ceiling": 20}'}
    settings = server_settings(arguments, before)
    assert settings == {"default": 5, "ceiling": 20, "efforts": {"low": 1, "high": -1}}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--thinking-budget", "9", "--thinking-ceiling", "3"), "lies above the ceiling"),
        (("--thinking-efforts", "low=5,low=6"), "a second time"),
        (("--thinking-efforts", "=5"), "is not WORD=TOKENS"),
        (("--thinking-stop-text", "Enough.<|im_end|>"), "stop_text may contain </think> once and no other marker"),
        (("--thinking-stop-text", "a</think>b</think>"), "stop_text may contain </think> once and no other marker"),
        (("--thinking-budget", "-7"), "at least -1"),
        (("--thinking-efforts", "low"), "is not WORD=TOKENS"),
        (("--thinking-grace", "-1"), "grace is at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(PosttrainError, match=said):
        server_settings(options("m", *words)[0], {})


def test_a_server_started_by_hand_refuses_a_stop_text_with_markers(monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain.budget import vllm_request

    monkeypatch.setenv("POSTTRAIN_BUDGET", json.dumps({"stop_text": "Enough.<think>"}))
    with pytest.raises(ValueError, match="stop_text may contain </think> once"):
        vllm_request.server_settings()
    monkeypatch.setenv("POSTTRAIN_BUDGET", json.dumps({"stop_text": "Enough.</think>"}))
    assert vllm_request.server_settings().stop_text == "Enough.</think>"


def test_faults_are_told_together_before_vllm_is_imported(tmp_path: Path) -> None:
    config = tmp_path / "vllm.yaml"
    config.write_text("logits-processors: [a:B]\n")
    done = posttrain("serve", "./nowhere", "--grpc", "--thinking-buget", "3", "--config", config)
    assert done.returncode == 2
    for said in ("no model directory", "--grpc", "unknown option --thinking-buget", "logits-processors in the file"):
        assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "the model has to come first" in posttrain("serve", "--port", "80", "m").stderr


def test_without_vllm_there_is_one_clear_error(tmp_path: Path) -> None:
    hide = "import importlib.util as u, sys; f = u.find_spec; u.find_spec = lambda n: None if n == 'vllm' else f(n)"
    run = "from posttrain.cli import main; sys.exit(main(['serve', 'somewhere']))"
    done = subprocess.run([sys.executable, "-c", f"{hide}; {run}"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("1 problem\n")) == (2, 1), done.stderr
    assert "vLLM is not installed" in done.stderr


def test_help_tells_ours_and_where_vllms_are() -> None:
    done = posttrain("serve", "--help")
    assert done.returncode == 0
    assert "--thinking-ceiling" in done.stdout
    assert "vllm serve --help=all" in done.stdout


# --- the figures, from tokens


RULE = BudgetRule(open_ids=(1,), close_ids=(2,), stop_ids=(7, 8, 2, 9), eos_ids=frozenset({0}))


def choice(ids: list[int], budget: int | None, *, steps: int = 1) -> Choice:
    found = Choice(BudgetState(RULE, budget), BudgetRequest(budget))
    for start in range(0, len(ids), steps):
        found.take(ids[start : start + steps], whole=False)
    return found


@pytest.mark.parametrize(
    ("ids", "budget", "tokens", "closed_by", "forced"),
    [
        ([5, 5, 0], 3, 0, None, 0),
        ([1, 5, 2, 6, 0], 3, 1, "natural", 0),
        ([1, 5, 5, 7, 8, 2, 9, 6, 0], 2, 2, "budget", 4),
        ([1, 5, 5], None, 2, "unclosed", 0),
        ([1, 5, 5, 5, 0], 2, 2, "unknown", 0),
        ([1, 7, 8, 2, 9, 6, 0], 0, 0, "budget", 4),
    ],
)
@pytest.mark.parametrize("steps", [1, 2, 100])
def test_what_a_completion_came_to(
    ids: list[int], budget: int | None, tokens: int, closed_by: str | None, forced: int, steps: int
) -> None:
    found = choice(ids, budget, steps=steps)
    assert (found.tokens, found.closed_by, found.forced_tokens) == (tokens, closed_by, forced)
    assert found.obeyed == (closed_by != "unknown")


def watched(*calls: list[list[int]], delta: bool = True, budget: int = 2) -> Ledger:
    """A ledger after some prompts, each with the ids of its completions, delivered one by one."""

    async def outputs(completions: list[list[int]]) -> AsyncIterator[Any]:
        for step in range(max(map(len, completions))):
            yield SimpleNamespace(
                prompt_token_ids=[4] if step == 0 else None,
                outputs=[
                    SimpleNamespace(
                        index=index,
                        token_ids=ids[step : step + 1] if delta else ids[: step + 1],
                        finish_reason="stop" if step == len(ids) - 1 else None,
                    )
                    for index, ids in enumerate(completions)
                    if step < len(ids)
                ],
            )

    done: list[Choice] = []
    ledger = Ledger(done.append)

    async def drain() -> None:
        for completions in calls:
            kind = SimpleNamespace(name="DELTA" if delta else "CUMULATIVE")
            params = SimpleNamespace(n=len(completions), output_kind=kind)
            open_state = lambda params, prompt: (BudgetState(RULE, budget), BudgetRequest(budget))  # noqa: E731
            async for _ in ledger.watch(outputs(completions), params, open_state):  # type: ignore[arg-type]
                pass

    asyncio.run(drain())
    assert len(done) == len(ledger.choices) == sum(map(len, calls))
    return ledger


SPENT, ENDED, PLAIN = [1, 5, 5, 7, 8, 2, 9, 6, 0], [1, 5, 2, 6, 0], [6, 0]


@pytest.mark.parametrize("delta", [True, False])
def test_choices_of_several_prompts_follow_each_other(delta: bool) -> None:
    ledger = watched([SPENT, ENDED], [PLAIN, SPENT], delta=delta)
    assert [ledger.choices[at].closed_by for at in range(4)] == ["budget", "natural", None, "budget"]
    assert ledger.details() == {
        "reasoning_tokens": 5,
        "thinking_closed_by": "mixed",
        "thinking_forced_tokens": 8,
        "thinking_budget": 2,
    }


def test_an_answer_gets_the_figures_and_keeps_the_rest() -> None:
    ledger = watched([SPENT])
    answer = {"id": "x", "choices": [{"index": 0, "finish_reason": "stop"}], "usage": {"completion_tokens": 9}}
    found = json.loads(ledger.complete(json.dumps(answer).encode()))
    assert found["choices"][0]["thinking"] == {"tokens": 2, "closed_by": "budget", "forced_tokens": 4}
    assert found["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2
    assert found["usage"]["completion_tokens"] == 9
    message = json.loads(ledger.complete(b'{"type": "message", "usage": {"output_tokens": 9}}'))
    assert message["usage"]["output_tokens_details"]["thinking_tokens"] == 2
    response = json.loads(ledger.complete(b'{"object": "response", "usage": {"output_tokens_details": {"a": 1}}}'))
    assert response["usage"]["output_tokens_details"] | {"a": 1} == response["usage"]["output_tokens_details"]


@pytest.mark.parametrize("text", [b"", b"[1]", b"not json", b'{"choices": []}', b'{"error": {"message": "usage"}}'])
def test_what_is_no_answer_stays_as_it_is(text: bytes) -> None:
    assert watched([SPENT]).complete(text) == text
    assert Ledger().complete(b'{"choices": [], "usage": {"a": 1}}') == b'{"choices": [], "usage": {"a": 1}}'


def test_events_without_figures_pass_untouched() -> None:
    ledger = watched([SPENT])
    for event in (b"data: [DONE]", b": keep-alive", b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}'):
        assert ledger.complete_event(event) == event
    last = ledger.complete_event(b'event: x\ndata: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}')
    assert last.startswith(b"event: x\ndata: {")
    assert b'"closed_by":"budget"' in last


def test_counters_of_several_processes_add_up(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client", reason="the counters come with vLLM (make setup-vllm)")
    count = (
        "from posttrain.budget.server.metrics import metrics\n"
        "assert metrics() is metrics()\n"
        "metrics().refusal(['unknown', 'unknown', 'invalid'])\n"
    )
    show = (
        "from prometheus_client import CollectorRegistry, generate_latest, multiprocess\n"
        "registry = CollectorRegistry(); multiprocess.MultiProcessCollector(registry)\n"
        "print(generate_latest(registry).decode())"
    )
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for script in (count, count, show):
        done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert 'posttrain:thinking_requests_refused_total{reason="unknown"} 2.0' in done.stdout
