"""A real vLLM server as a teacher (its answers, its log-probabilities), as a judge, and its death in the middle."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from posttrain.distill.served_teacher import ServedTeacher
from posttrain.errors import PosttrainError
from posttrain.model.endpoint import Endpoint
from posttrain.model.generation import Prompt
from posttrain.model.policy import load_model, load_tokenizer
from posttrain.model.served import ServedGenerator
from posttrain.recipe.endpoint import EndpointSpec
from posttrain.rl.rewards.judge import Judge
from posttrain.rl.rewards.probes import probe_model
from posttrain.sft.completions import Completions
from posttrain.tasks.registry import get_task
from posttrain.templates.families import get_family
from tests import test_rewards_judge as judging
from tests.scripted_server import said, scripted
from tests.served import MODEL, Server, serving

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (make setup-vllm)"),
]

QWEN3 = get_family("qwen3")
QUERIES = list(get_task("arithmetic").queries(60, seed=3))
TOP = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("teacher")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder, "--max-logprobs", str(TOP), plain=True) as it:
        yield it


def spec(url: str, **options: Any) -> EndpointSpec:
    return EndpointSpec.model_validate({"endpoint": url, "model": MODEL, "patience": 2, **options})


def generator(url: str) -> ServedGenerator:
    return ServedGenerator(Endpoint(spec(url, concurrency=16), who="the teacher"), QWEN3, max_new_tokens=64)


def test_it_answers_in_both_modes(server: Server) -> None:
    Endpoint(spec(server.url)).check()
    with pytest.raises(PosttrainError, match=f"has no model `other`\n.*`{MODEL}`"):
        Endpoint(spec(server.url, model="other")).check()
    prompts = [Prompt([{"role": "user", "content": "hi"}], mode=mode) for mode in QWEN3.modes for _ in range(8)]
    for prompt, done in zip(prompts, generator(server.url)(prompts, seed=0), strict=True):
        assert done.tokens == len(done.completion_ids) > 0
        if done.truncated:
            assert done.tokens == 64 and prompt.mode == "thinking"
            continue
        assert done.message.well_formed and done.message.mode == prompt.mode
        assert done.message.content == "The answer is 42!"
    (long,) = generator(server.url)([Prompt([{"role": "user", "content": "hi " * 3000}], mode="thinking")], seed=0)
    assert long.truncated and long.tokens == 0  # the server refuses it: it does not fit


def test_it_tells_the_distribution_that_the_model_has(server: Server, folder: Path) -> None:
    tokenizer, model = load_tokenizer(folder / "model"), load_model(folder / "model")
    teacher = ServedTeacher(spec(server.url), entries=len(tokenizer), top_k=TOP)
    teacher.check(tokenizer)
    texts = ("<think> Let me check", " that again.</think>\n\nThe answer is 42!")
    sequences = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    spans = [[(1, 3), (4, len(sequences[0]))], [(2, len(sequences[1]))]]
    top = teacher(sequences, spans)
    at = 0
    for ids, own in zip(sequences, spans, strict=True):
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0, :, : len(tokenizer)].log_softmax(-1)
        for place in (place for start, end in own for place in range(start, end)):
            expected = logs[place - 1, top.ids[at]]
            assert (top.log_probs[at] - expected).abs().max() < 0.02 and top.log_probs[at, 0] >= expected.max() - 0.02
            assert top.buckets(torch.float64)[at].exp().sum() == pytest.approx(1.0)
            at += 1
    assert at == len(top)
    greedy = ServedTeacher(spec(server.url), entries=len(tokenizer), top_k=TOP + 1)
    with pytest.raises(PosttrainError, match=f"--max-logprobs {TOP + 1}"):
        greedy.check(tokenizer)


def test_as_a_judge_it_keeps_replies_to_the_schema_and_answers_to_their_turn(server: Server) -> None:
    options: dict[str, Any] = {"endpoint": f"{server.url}/v1", "model": MODEL, "cache": "off"}
    words: dict[str, Any] = {**options, "verdicts": {"yes": 1.0, "no": 0.0}, "max_tokens": 40}
    asked = Judge(**words)
    contents = ["Oslo", "Bergen", *judging.BREAKOUTS, *judging.FORGERIES[:5]]
    scores = asked.batch([judging.QUERY] * len(contents), judging.answers(*contents))
    assert all(score.value in (0.0, 1.0) and not score.fault for score in scores)
    counted = Judge(**options, max_tokens=900)(judging.QUERY, judging.answers("Oslo")[0])
    assert counted.value is not None and not counted.fault

    def tokens(**text: Any) -> list[int]:
        return list(server.post("/tokenize", {"model": MODEL, **text})[1]["tokens"])

    opening = tokens(prompt="<|im_start|>")[0]
    counts = {tokens(messages=asked.body(judging.QUERY, one)[0]["messages"]).count(opening) for one in contents}
    assert counts == {2}  # the question's turn and the reply's, whatever the answer holds
    raw = tokens(messages=[{"role": "user", "content": judging.BREAKOUTS[1]}])
    assert raw.count(opening) > 2  # the same text as it is does open turns
    # This one says the same whatever it reads, and is told as no judge; what it cannot read, it refuses.
    found = probe_model("exact", "judge", words, answers=30)
    assert found.found is not None and found.found.score == found.gold in (0.0, 1.0) and found.problems
    assert "maximum context length is 4096" in found.note


def test_killed_in_the_middle_it_costs_no_answer_that_it_gave(server: Server, tmp_path: Path) -> None:
    """The last test: it ends the server."""
    given = itertools.count()

    def kill(done: int) -> None:  # a chunk that begins tells of the answers it found: none
        if done and next(given) == 19:
            for process in [*psutil.Process(server.process.pid).children(recursive=True), server.process]:
                process.kill()

    def completions(url: str) -> Completions:
        wanted: dict[str, Any] = {"samples": 2, "seed": 5, "made_with": ["model"], "chunk": 40, "mode": "non_thinking"}
        return Completions(QUERIES, lambda: generator(url), directory=tmp_path, **wanted)

    with pytest.raises(
        PosttrainError, match=r"the teacher at .* is not reachable: .*\(tried for 2 s\)\n.*start it"
    ) as it:
        completions(server.url).generate(kill)
    assert len(it.value.problems) == 1
    answered = sum(len(path.read_text().splitlines()) - 1 for path in tmp_path.iterdir())
    assert 20 <= answered < 120
    with scripted(lambda path, body: said("The answer is 42!")) as other:
        other.models = [MODEL]
        done = completions(other.url)  # the same model on another port
        done.generate()
        assert len(other.asked) == 120 - answered
    assert {one.content for group in done for one in group} == {"The answer is 42!"}
