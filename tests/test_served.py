"""Answers of a served model: what is asked, how answers are read, and that none that came is ever asked again."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import PosttrainError
from posttrain.model.endpoint import Endpoint
from posttrain.model.generation import Completion, Prompt
from posttrain.model.served import ServedCompletion, ServedGenerator
from posttrain.recipe.endpoint import EndpointSpec
from posttrain.sft import completions as module
from posttrain.sft.completions import Completions, generate_together
from posttrain.sft.sampler import Sampler, StreamingSampler
from posttrain.tasks.registry import get_task
from posttrain.templates.families import get_family
from tests.scripted_server import Scripted, said, scripted

QWEN3 = get_family("qwen3")
QUERIES = list(get_task("arithmetic").queries(12, seed=3))
ASKED = [{"role": "user", "content": "7 c+5 =?"}]


def generator(it: Scripted, family: str = "qwen3", **options: Any) -> ServedGenerator:
    spec = EndpointSpec.model_validate({"endpoint": it.url, "model": "teacher", "patience": 1, "concurrency": 8})
    return ServedGenerator(Endpoint(spec, who="the teacher"), get_family(family), max_new_tokens=64, **options)


def answer_of(it_says: dict[str, Any], prompt: Prompt, family: str = "qwen3") -> Completion:
    with scripted(lambda path, body: it_says) as it:
        (completion,) = generator(it, family)([prompt], seed=0)
    return completion


def test_mode_and_sampling_are_asked_of_the_server() -> None:
    with scripted(lambda path, body: said("4")) as it:
        prompts = [Prompt(ASKED, mode="thinking"), Prompt(ASKED, mode="non_thinking"), Prompt(ASKED)]
        for prompt in prompts:
            generator(it)([prompt], seed=1)
        generator(it, "qwen2_5")([prompts[1]], seed=1)
    thinking, non_thinking, by_flag, other = [body for _, body, _ in it.asked]
    assert thinking["messages"] == ASKED and thinking["model"] == "teacher" and thinking["max_tokens"] == 64
    assert thinking["chat_template_kwargs"] == {"enable_thinking": True}
    assert (thinking["temperature"], thinking["top_p"], thinking["top_k"]) == (0.6, 0.95, 20)
    assert non_thinking["chat_template_kwargs"] == {"enable_thinking": False}
    assert (non_thinking["temperature"], non_thinking["presence_penalty"]) == (0.7, 1.5)
    assert "chat_template_kwargs" not in by_flag and "chat_template_kwargs" not in other


@pytest.mark.parametrize(
    "it_says",
    [
        said("<think>\n7+5=12\n</think>\n\n\\boxed{2}"),
        said("7+5=12\n</think>\n\n\\boxed{2}"),  # the server's template opened the block
        said("\\boxed{2}", reasoning="7+5=12\n"),
        said("\n\n\\boxed{2}", reasoning_content="7+5=12"),
    ],
    ids=["in the text", "opened by the template", "reasoning", "reasoning_content"],
)
def test_thinking_is_found_wherever_the_server_puts_it(it_says: dict[str, Any]) -> None:
    done = answer_of(it_says, Prompt(ASKED, mode="thinking"))
    assert done.message.to_message() == {"role": "assistant", "content": "\\boxed{2}", "reasoning_content": "7+5=12"}
    assert done.message.well_formed and done.closed_by == "natural" and not done.truncated


def test_an_answer_without_thinking_has_the_empty_block_that_the_template_wrote() -> None:
    message = answer_of(said("\\boxed{2}"), Prompt(ASKED, mode="non_thinking")).message
    assert message.mode == "non_thinking" and message.well_formed and message.content == "\\boxed{2}"
    lazy = answer_of(said("\\boxed{2}"), Prompt(ASKED, mode="thinking")).message
    assert lazy.mode == "non_thinking" and not lazy.well_formed  # it was asked to think


def test_what_is_broken_is_noticed() -> None:
    nested = answer_of(said("2", reasoning="a <think> b"), Prompt(ASKED, mode="thinking"))
    assert not nested.message.well_formed
    cut = answer_of(said("", reasoning="7+5", reason="length"), Prompt(ASKED, mode="thinking"))
    assert cut.truncated and not cut.message.closed


def test_the_servers_counts_are_taken() -> None:
    it_says = said("<think>\na b c\n</think>\n\nd")
    it_says["usage"] = {"completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 3}}
    it_says["choices"][0]["token_ids"] = [5, 6, 7]
    done = answer_of(it_says, Prompt(ASKED, mode="thinking"))
    assert (done.tokens, done.thinking_tokens, done.completion_ids) == (9, 3, [5, 6, 7])


@pytest.mark.parametrize("usage", [[1], None, {"completion_tokens": "many"}, {"completion_tokens_details": "x"}])
def test_what_a_server_says_beside_its_answer_costs_no_answer(usage: Any) -> None:
    it_says = said("<think>\na\n</think>\n\nd", tool_calls=[{"function": "add"}])
    it_says["usage"] = usage
    it_says["choices"][0] |= {"token_ids": ["a", None], "thinking": "yes"}
    it_says["choices"] *= 2  # one was asked for
    done = answer_of(it_says, Prompt(ASKED, mode="thinking"))
    assert isinstance(done, ServedCompletion) and (done.message.content, done.tokens) == ("d", 0)
    assert (done.completion_ids, done.thinking_tokens, done.message.tool_calls[0].name) == ([], 0, "")


def test_a_budget_needs_a_server_that_keeps_it() -> None:
    prompt = Prompt(ASKED, mode="thinking", thinking_budget=4)
    kept = said("<think>\na\n</think>\n\nb")
    kept["choices"][0]["thinking"] = {"tokens": 4, "closed_by": "budget", "forced_tokens": 2}
    done = answer_of(kept, prompt)
    assert (done.thinking_tokens, done.closed_by) == (4, "budget")
    with pytest.raises(PosttrainError, match=r"ignores thinking budgets(.|\n)*posttrain serve"):
        answer_of(said("b"), prompt)


def test_a_tool_call_that_the_server_took_out_is_put_back() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 7}'}}
    done = answer_of(said("", reasoning="add", tool_calls=[call], reason="tool_calls"), Prompt(ASKED, mode="thinking"))
    assert done.message.tool_calls[0].arguments == {"a": 7} and not done.truncated


def test_calls_and_results_are_sent_as_servers_demand_them() -> None:
    """Ids, arguments as text, and results with the ids of their calls: vLLM refuses anything else. What is no call is
    text, as it was."""
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    given = {"type": "function", "function": {"name": "add", "arguments": '{"a":  2}'}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": "", "tool_calls": [call, given]},
        *({"role": "tool", "content": text} for text in "12"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "So.", "tool_calls": [{"function": {"name": "", "arguments": "{a"}}]},
        {"role": "user", "content": "What?"},
    ]
    with scripted(lambda path, body: said("Done.")) as server:
        generator(server)([Prompt(messages, mode="non_thinking")], seed=0)
        sent = server.asked[0][1]["messages"]
    calls = [call for message in sent for call in message.get("tool_calls", [])]
    assert [call["id"] for call in calls] == ["call00000", "call00001", "call00002"]
    assert [call["function"]["arguments"] for call in calls] == ['{"a": 1}', '{"a":  2}', '{"a": 1}']
    assert sent[-2] == {
        "role": "assistant",
        "content": 'So.\n<tool_call>\n{"name": "", "arguments": {a}\n</tool_call>',
    }
    results = [message for message in sent if message["role"] == "tool"]
    assert [message["tool_call_id"] for message in results] == [call["id"] for call in calls]
    assert [message["content"] for message in results] == ["1", "2", "3"] and "tool_call_id" not in messages[2]


def test_a_prompt_that_is_too_long_is_one_that_could_not_be_finished() -> None:
    def answer(path: str, body: dict[str, Any]) -> Any:
        reason = "This model's maximum context length is 64 tokens. However, you requested 99."
        return (400, {"error": {"message": reason}}) if len(body["messages"][0]["content"]) > 50 else said("2")

    long = Prompt([{"role": "user", "content": "x" * 60}], mode="non_thinking")
    with scripted(answer) as it:
        done = generator(it)([long, Prompt(ASKED, mode="non_thinking")], seed=0)
    assert [one.truncated for one in done] == [True, False]
    refuse = (400, {"error": {"message": "no tools here"}})
    with scripted(lambda path, body: refuse) as it, pytest.raises(PosttrainError, match=r"refuses .*: no tools here"):
        generator(it)([long], seed=0)


# --- kept while they come --------------------------------------------------------------------------------------------


def solve(path: str, body: dict[str, Any]) -> Any:
    """Right answers, without thinking."""
    row = next(row for row in QUERIES if row["prompt"][0]["content"] == body["messages"][0]["content"])
    return said(row["response"])


def kept(directory: Path, sampler: Callable[[], Sampler], **changed: Any) -> Completions:
    given = {"samples": 3, "seed": 5, "made_with": ["model"], "chunk": 12, "mode": "non_thinking", **changed}
    return Completions(QUERIES, sampler, directory=directory, **given)


def whole(directory: Path) -> Completions:
    with scripted(solve) as it:
        done = kept(directory, lambda: generator(it))
        done.generate()
        assert len(it.asked) == 36 == len(done)
    return done


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_a_served_model_is_asked_chunk_after_chunk_without_a_pause(tmp_path: Path) -> None:
    second = threading.Event()

    def answer(path: str, body: dict[str, Any]) -> Any:
        place = [row["prompt"] for row in QUERIES].index(body["messages"])
        if place >= 4:
            second.set()
        elif place == 0:
            assert second.wait(timeout=20), "the second chunk is not begun before the first one is whole"
        return solve(path, body)

    with scripted(answer) as it:
        done = kept(tmp_path, lambda: generator(it))
        done.generate()
    assert sorted(files(tmp_path)) == ["chunk-00000.jsonl", "chunk-00001.jsonl", "chunk-00002.jsonl"]
    groups = list(done)
    assert [len(group) for group in groups] == [3] * 12
    for number, group in enumerate(groups):
        assert {(one.query, one.content) for one in group} == {(number, QUERIES[number]["response"])}


@pytest.mark.parametrize("answers", [1, 13, 30])
def test_a_server_that_dies_costs_no_answer_that_it_gave(tmp_path: Path, answers: int) -> None:
    given = itertools.count(1)

    def die(path: str, body: dict[str, Any]) -> Any:
        return solve(path, body) if next(given) <= answers else (503, {"error": {"message": "shutting down"}})

    heard: list[int] = []
    with scripted(die) as it, pytest.raises(PosttrainError, match=r"the teacher at .*HTTP 503: shutting down"):
        kept(tmp_path / "broken", lambda: generator(it)).generate(heard.append)
    assert sum(heard) == answers
    with scripted(solve) as it:
        done = kept(tmp_path / "broken", lambda: generator(it))
        done.generate(heard.append)
        assert len(it.asked) == 36 - answers
    assert sum(heard) == answers + 36
    whole(tmp_path / "whole")
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_a_line_that_was_cut_off_is_asked_again(tmp_path: Path) -> None:
    whole(tmp_path / "whole")
    rows = (tmp_path / "whole" / "chunk-00001.jsonl").read_text().split("\n")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "chunk-00001.partial").write_text(f"{rows[0]}\n3\t{rows[4]}\n0\t{rows[1]}\n5\t{rows[6][:20]}")
    (broken / "chunk-00002.partial").write_text(f"{rows[0]}\n1\t{rows[2]}\n")  # of another chunk: made otherwise
    with scripted(solve) as it:
        kept(broken, lambda: generator(it)).generate()
        assert len(it.asked) == 34
    assert files(broken) == files(tmp_path / "whole")


def test_a_full_disk_costs_no_answer_that_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note, written = module.Chunk.note, itertools.count(1)

    def full(self: module.Chunk, place: int, row: str) -> None:
        if next(written) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        note(self, place, row)

    with scripted(solve) as it, monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(module.Chunk, "note", full)
        kept(tmp_path, lambda: generator(it)).generate()
    with scripted(solve) as it:
        kept(tmp_path, lambda: generator(it)).generate()
        assert len(it.asked) == 16


def test_what_is_kept_is_what_came(tmp_path: Path) -> None:
    class Backwards:
        """Hands its answers out in the reverse order."""

        def __call__(self, prompts: Any, *, seed: int, progress: Any = None) -> list[Completion]:
            raise AssertionError("it streams")

        def stream(self, asked: Any) -> Iterator[tuple[int, Completion]]:
            with scripted(lambda path, body: said(body["messages"][0]["content"])) as it:
                done = generator(it)([prompt for prompt, _ in asked], seed=0)
            yield from reversed(list(enumerate(done)))

    assert isinstance(Backwards(), StreamingSampler)
    done = kept(tmp_path, Backwards)
    done.generate()
    for number, group in enumerate(done):
        assert {one.content for one in group} == {QUERIES[number]["prompt"][0]["content"].strip()}
    head = json.loads((tmp_path / "chunk-00000.jsonl").read_text().split("\n")[0])
    assert re.fullmatch(r"[0-9a-f]{8}-\d+", head["made_with"]) and head["completions"] == 12


def test_lists_of_one_server_share_its_requests_in_flight_and_a_death_costs_none_of_their_answers(
    tmp_path: Path,
) -> None:
    def both(url: str, name: str) -> list[Completions]:
        spec = EndpointSpec.model_validate({"endpoint": url, "model": "teacher", "patience": 1, "concurrency": 8})

        def opened(length: int) -> ServedGenerator:
            return ServedGenerator(Endpoint(spec, who="the teacher"), QWEN3, max_new_tokens=length)

        short = kept(tmp_path / name / "short", lambda: opened(16), endpoint=spec)
        return [short, kept(tmp_path / name / "long", lambda: opened(64), endpoint=spec, mode="thinking")]

    def solve_in_mode(path: str, body: dict[str, Any]) -> Any:
        assert body["max_tokens"] == (64 if body["chat_template_kwargs"]["enable_thinking"] else 16)
        return solve(path, body)

    answers, given = 50, itertools.count()  # of 36 + 36
    die = (503, {"error": {"message": "shutting down"}})
    with scripted(lambda path, body: solve_in_mode(path, body) if next(given) < answers else die) as it:
        with pytest.raises(PosttrainError, match=r"the teacher at .*HTTP 503: shutting down"):
            generate_together(both(it.url, "broken"))
        assert all(body["max_tokens"] == 64 for _, body, _ in it.asked[:28])  # eight in flight
    heard: list[int] = []
    with scripted(solve_in_mode) as it:
        generate_together(both(it.url, "broken"), heard.append)
        assert len(it.asked) == 72 - answers and sum(heard) == 72
        generate_together(both(it.url, "broken"), heard.append)
        assert len(it.asked) == 72 - answers and sum(heard) == 144
        apart = both(it.url, "whole")
        for one in apart:
            one.generate()
    for name in ("short", "long"):
        assert files(tmp_path / "broken" / name) == files(tmp_path / "whole" / name)
