"""The budget in real vLLM engines: V1 as it runs on a CPU, V2 through Triton's interpreter. Judged from ids alone."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (make setup-vllm)"),
]

ROOT = Path(__file__).parents[1]
REQUESTS = ROOT / "benchmarks" / "budget_requests.py"
QUIET = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
INTERPRETED = {
    "TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1", "PYTHONPATH": str(ROOT / "tests" / "interpreted"),
}  # fmt: skip

# One engine for what only a real one shows: its own scheduler, refusals, grammar, and rows that no budget touches.
SCRIPT = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams

def refused(llm, **given):
    try:
        llm.generate([{"prompt_token_ids": [5, 6]}], SamplingParams(max_tokens=2, **given), use_tqdm=False)
    except Exception as error:  # its class differs from version to version; over HTTP it is a 400
        return str(error)

if __name__ == "__main__":
    llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=256, gpu_memory_utilization=0.1,
        logits_processors=["posttrain.budget.vllm:ThinkingBudgetLogitsProcessor"], reasoning_parser="qwen3",
        max_num_seqs=16)
    tokenizer = llm.get_tokenizer()
    def ask(text, **given):
        prompt = {"prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)}
        given = {"max_tokens": 40, "temperature": 0.0, **given}
        done = llm.generate([prompt], SamplingParams(**given), use_tqdm=False)[0]
        return [list(output.token_ids) for output in done.outputs]
    start = "<|im_start|>user\\nhm<|im_end|>\\n<|im_start|>assistant\\n"
    far, close = {"thinking_budget": 10**6}, tokenizer.get_vocab()["</think>"]
    grammar = StructuredOutputsParams(regex="[0-9]{3}")
    print("RESULT" + json.dumps({
        "plain": ask(start), "non_thinking": ask(start + "<think>\\n\\n</think>\\n\\n"),
        "unreached": ask(start, extra_args=far),
        "unreached_non_thinking": ask(start + "<think>\\n\\n</think>\\n\\n", extra_args=far),
        "grammar": [tokenizer.decode(ids) for ids in ask(start + "<think>\\n", structured_outputs=grammar,
            extra_args={"thinking_budget": 4}, temperature=1.0, n=3)],
        "reserve": ask(start + "<think>\\n", extra_args={"thinking_answer_reserve": 15}, ignore_eos=True,
            logit_bias={close: -100.0}),
        "minimum": ask(start + "<think>\\n", extra_args={"thinking_minimum": 6, "thinking_budget": 9},
            logit_bias={close: 100.0}),
        "bad": refused(llm, extra_args={"thinking_budget": "3"}),
        "misspelt": refused(llm, extra_args={"thinking_bugdet": 3}),
        "native": refused(llm, thinking_token_budget=3),
        "marker": refused(llm, extra_args={"thinking_budget": 3, "thinking_stop_text": "<think>"}),
        "ids": {"close": close, "wait": tokenizer.encode("Wait")},
    }))
"""


def python(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **QUIET, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    lines = [line.removeprefix("RESULT") for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(lines[-1])
    return result


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.spec_from_file_location("vllm_model", ROOT / "tests" / "vllm_model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written: Path = module.write_tiny_model(tmp_path_factory.mktemp("vllm") / "model")
    return written


def stress(model: Path, **setting: Any) -> dict[str, Any]:
    asked = {"native": False, "rows": 32, "blocks": 24, "longest": 512, "seed": 7, "model": str(model), **setting}
    interpreted = INTERPRETED if asked.pop("interpreted", False) else {}
    return result_of(python([str(REQUESTS), json.dumps(asked)], **interpreted))


@pytest.mark.timeout(600)
def test_v1_keeps_every_budget_while_requests_are_preempted(model: Path) -> None:
    result = stress(model, scenario="preemption", requests=100)
    assert result["seen"]["preemptions"] > 20 and result["seen"]["struck"] > 50
    assert (result["wrong"], result["kinds"]) == (0, {})


@pytest.mark.timeout(900)
def test_v2_keeps_every_budget_with_drafts(model: Path) -> None:
    result = stress(model, scenario="ngram", requests=6, rows=6, longest=320, interpreted=True)
    assert result["seen"]["drafts accepted"] > 0
    assert (result["wrong"], result["kinds"]) == (0, {})


@pytest.fixture(scope="session")
def answers(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    script = tmp_path_factory.mktemp("script") / "ask.py"
    script.write_text(SCRIPT)
    return result_of(python([str(script), str(model)]))


@pytest.mark.timeout(600)
def test_a_budget_that_is_not_reached_changes_no_answer(answers: dict[str, Any]) -> None:
    close = answers["ids"]["close"]
    assert answers["unreached_non_thinking"] == answers["non_thinking"]
    plain, limited = answers["plain"][0], answers["unreached"][0]
    same = next((at for at, (one, other) in enumerate(zip(plain, limited, strict=False)) if one != other), len(plain))
    assert same == len(plain) or limited[same] == close  # an end inside thinking became a close


def test_a_grammar_begins_right_after_the_forced_close(answers: dict[str, Any]) -> None:
    for text in answers["grammar"]:
        after = text.rpartition("</think>")[2].partition("<|")[0]  # without the end of turn
        assert "</think>" in text and len(after) == 3 and after.isdecimal(), text


def test_the_reserve_is_left_for_the_answer(answers: dict[str, Any]) -> None:
    (ids,) = answers["reserve"]
    assert len(ids) == 40 and len(ids) - 1 - ids.index(answers["ids"]["close"]) >= 15


def test_an_end_below_the_minimum_becomes_the_continuation(answers: dict[str, Any]) -> None:
    (ids,) = answers["minimum"]
    wait = answers["ids"]["wait"]
    thought = ids[: ids.index(answers["ids"]["close"])]
    assert thought[: 7 - len(wait)] == wait[:1] * (7 - len(wait)) and 6 <= len(thought) <= 9 + len(wait)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("bad", "thinking_budget is a whole number of tokens"),
        ("misspelt", "did you mean thinking_budget"),
        ("native", "thinking_token_budget"),
        ("marker", "thinking_stop_text may contain </think> once"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(answers: dict[str, Any], asked: str, words: str) -> None:
    assert words in answers[asked]


def test_nothing_of_ours_is_loaded_by_a_vllm_that_does_not_ask() -> None:
    groups = {point.group for point in importlib.metadata.distribution("posttrain").entry_points}
    assert not {group for group in groups if group.startswith("vllm")}


def test_one_class_is_a_processor_of_both_runners() -> None:
    from vllm.v1.sample.logits_processor import LogitsProcessor as V1
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2

    from posttrain.budget.vllm import ThinkingBudgetLogitsProcessor

    assert issubclass(ThinkingBudgetLogitsProcessor, V1) and issubclass(ThinkingBudgetLogitsProcessor, V2)
    assert ThinkingBudgetLogitsProcessor.__abstractmethods__ == frozenset()


@pytest.mark.parametrize(
    ("settings", "runner", "words"),
    [
        ({"speculative_config": object()}, ("device", False), "speculative decoding under the V1 model runner"),
        ({"async_scheduling": True}, ("device", False), "asynchronous scheduling under the V1 model runner"),
        ({"enable_prompt_embeds": True}, ("device", False), "--enable-prompt-embeds"),
        ({"skip_tokenizer_init": True}, ("states",), "--skip-tokenizer-init"),
        ({"enable_in_reasoning": True}, ("states",), "structured outputs inside the reasoning"),
        ({"enable_trace_replay": True}, ("states",), "trace replay"),
        ({"rejection_sample_method": "synthetic"}, ("states",), "synthetic acceptance"),
        ({"is_diffusion": True}, ("states",), "a diffusion model"),
    ],
)
def test_what_cannot_be_enforced_is_refused_at_the_start(
    settings: dict[str, Any], runner: tuple[Any, ...], words: str
) -> None:
    from types import SimpleNamespace

    from posttrain.budget.vllm import ThinkingBudgetLogitsProcessor

    def part(**defaults: Any) -> SimpleNamespace:
        return SimpleNamespace(**{name: settings.get(name, value) for name, value in defaults.items()})

    speculation = part(rejection_sample_method=None) if "rejection_sample_method" in settings else None
    config = SimpleNamespace(
        model_config=part(
            skip_tokenizer_init=False, enable_prompt_embeds=False, is_diffusion=False, enable_trace_replay=False,
            logits_processors=None,
        ),
        structured_outputs_config=part(enable_in_reasoning=False, reasoning_parser=""),
        scheduler_config=part(async_scheduling=False, max_num_seqs=4),
        speculative_config=settings.get("speculative_config", speculation),
    )  # fmt: skip
    with pytest.raises(ValueError, match=words):
        ThinkingBudgetLogitsProcessor(config, *runner)
