"""A stage's model in a real vLLM, as it lies on disk."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (make setup-vllm)"),
]

SCRIPT = """
import json, sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=128, gpu_memory_utilization=0.1)
    chats = [[{"role": "user", "content": f"{n} a+5 =?"}] for n in range(4)]
    plain = dict(chat_template_kwargs={"enable_thinking": False}, use_tqdm=False)
    greedy = llm.chat(chats, SamplingParams(temperature=0.0, max_tokens=12), **plain)
    default = llm.get_default_sampling_params()
    figures = {
        "prompts": [out.prompt for out in greedy],
        "ids": [list(out.outputs[0].token_ids) for out in greedy],
        "sampling": [default.temperature, default.top_p, default.top_k],
    }
    print("RESULT" + json.dumps(figures))
"""


@pytest.mark.timeout(280)
def test_vllm_loads_a_stage_as_it_is_and_agrees_with_transformers(finished_run: Path, tmp_path: Path) -> None:
    directory = finished_run / "stages/fusion/model"
    script = tmp_path / "serve.py"
    script.write_text(SCRIPT)
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(
        [sys.executable, script, directory], env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    served = json.loads(line.removeprefix("RESULT"))
    assert served["sampling"] == [0.6, 0.95, 20]  # the report's, for thinking, from generation_config.json

    from posttrain.model.generation import Generator, Prompt
    from posttrain.model.policy import load_model, load_tokenizer
    from posttrain.templates.families import FAMILIES, Sampling

    generate = Generator(
        load_model(directory),
        load_tokenizer(directory),
        FAMILIES["qwen3"],
        max_new_tokens=12,
        sampling={"non_thinking": Sampling(temperature=0.0)},
    )
    prompts = [Prompt([{"role": "user", "content": f"{n} a+5 =?"}], mode="non_thinking") for n in range(4)]
    ours = generate(prompts, seed=0)
    assert [completion.completion_ids for completion in ours] == served["ids"]
    assert all(text.endswith("assistant\n<think>\n\n</think>\n\n") for text in served["prompts"])
