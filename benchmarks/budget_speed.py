"""What a thinking budget costs: the processor's own step, and decoding with a real engine.

    python benchmarks/budget_speed.py              the step, at batch 256 after 1k, 8k and 32k tokens
    python benchmarks/budget_speed.py --engine     and tokens a second of vLLM, at batch 1, 16, 64 and 256

**The step** is one call of the processor in a decoding step, for 256 rows with a budget and Qwen3's vocabulary, on
the CPU; the completions' tokens are put there, no engine is needed. Unit: microseconds of this thread's CPU time, the
median of `--steps` steps. Steps are told apart: *thinking* (all rows think, none is due), *answering*, *staggered*
(every step some rows are being stopped) and *all at once* (all rows are being stopped in the same step, the worst there
is). Beside it: vLLM's native budget under V1 on the same tokens, and *the floor*: reading each row's latest token and
writing into the ends' scores, which whoever guards an end of turn has to do.

**The engine** decodes the same prompts with a budget on every request that is never reached, without a processor, and
with the native budget, in turns, one engine process each. Unit: output tokens a second. What is compared is the median
of `--turns` runs within one process each.

The last line is JSON: `ours` is the thinking step at 32k tokens under V1, in ms; `theirs` the native one. `met` asks
the step of both runners to stay under 0.1 ms and, with --engine, throughput not to fall under 0.99 at any batch.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "budget_speed.json"
ROWS = 256
LENGTHS = (1000, 8000, 32_000)
TARGET_MS, TARGET_SHARE = 0.1, 0.99


def spent(step: Callable[[], Any], between: Callable[[], Any], steps: int) -> float:
    """Median CPU microseconds of `step`; `between` runs before each, uncounted."""
    figures = []
    warm = 20 if steps >= 100 else 0
    for number in range(warm + steps):
        between()
        began = time.thread_time()
        step()
        if number >= warm:
            figures.append(1e6 * (time.thread_time() - began))
    return round(statistics.median(figures), 1)


def budgets_of(case: str, length: int, stop: int) -> list[int]:
    """A budget for each row, so that the case arises after `length` tokens."""
    if case == "staggered":  # a stop lasts `stop` steps: this spreads them over the steps that are measured
        return [length + 1 + (row * 4 * stop) // ROWS for row in range(ROWS)]
    return [length + 1 if case == "all at once" else 10 * length + 100_000] * ROWS


class Bench:
    """256 completions that grow by a token a step, the forced one where one is due."""

    def __init__(self, case: str, length: int, model: Any, plain: int) -> None:
        from torch import zeros

        self.model, self.plain, self.length = model, plain, length
        self.rule = model.rule(None, answer_follows=True)
        budgets = budgets_of(case, length, len(self.rule.stop_ids))
        prompt = list(self.rule.close_ids if case == "answering" else self.rule.open_ids)
        self.prompt = prompt
        self.params = [
            SimpleNamespace(extra_args={"thinking_budget": budget}, max_tokens=None, temperature=1.0)
            for budget in budgets
        ]
        self.outputs = [[plain] * length for _ in range(ROWS)]
        self.scores = zeros(ROWS, 151_936)
        self.forced: list[int] = []

    def grow(self) -> None:
        """What the engine does between two steps: the sampled token of each row is appended."""
        forced = dict(self.due())
        for row, output in enumerate(self.outputs):
            output.append(forced.get(row, self.plain))

    def due(self) -> list[tuple[int, int]]:
        raise NotImplementedError


class V1Bench(Bench):
    def __init__(self, *arguments: Any) -> None:
        import torch

        from posttrain.budget.vllm_v1 import V1Rows

        super().__init__(*arguments)
        config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=ROWS))
        self.rows = V1Rows(config, self.model, torch.device("cpu"))
        added = [(row, self.params[row], self.prompt, self.outputs[row]) for row in range(ROWS)]
        self.rows.update_state(SimpleNamespace(removed=[], moved=[], added=added))
        self.step()

    def step(self) -> None:
        self.rows.update_state(None)
        self.rows.apply(self.scores)

    def due(self) -> list[tuple[int, int]]:
        return list(zip(self.rows._stopped, self.rows._said or (), strict=True))


class V2Bench(Bench):
    def __init__(self, *arguments: Any) -> None:
        import numpy as np
        import torch

        from posttrain.budget.vllm_v2 import V2Rows

        super().__init__(*arguments)
        longest = self.length + 2000
        self.tokens = torch.zeros(ROWS, longest, dtype=torch.int32)
        self.tokens[:, : len(self.prompt)] = torch.tensor(self.prompt, dtype=torch.int32)
        self.tokens[:, len(self.prompt) : len(self.prompt) + self.length] = self.plain
        lengths = np.full(ROWS, len(self.prompt), dtype=np.int32)
        slots = SimpleNamespace(
            max_num_reqs=ROWS, vocab_size=151_936, device=torch.device("cpu"),
            all_token_ids=SimpleNamespace(gpu=self.tokens), prompt_len=SimpleNamespace(np=lengths),
            prefill_len=SimpleNamespace(np=lengths),
        )  # fmt: skip
        self.rows = V2Rows(SimpleNamespace(speculative_config=None), self.model, slots)
        for row in range(ROWS):
            self.rows.add_request(row, self.params[row])
        self.at = len(self.prompt) + self.length
        self.order = np.arange(ROWS)
        self.mapping = torch.arange(ROWS)
        self.step()

    def step(self) -> None:
        import numpy as np

        context = SimpleNamespace(
            idx_mapping_np=self.order, expanded_idx_mapping=self.mapping,
            seq_lens_upper_bound_np=np.full(ROWS, self.at, dtype=np.int32),
        )  # fmt: skip
        self.rows.apply_staged_writes()
        self.rows.apply(self.scores, context)

    def grow(self) -> None:
        self.tokens[:, self.at] = self.plain
        for row, token in self.due():
            self.tokens[row, self.at] = token
        self.at += 1

    def due(self) -> list[tuple[int, int]]:
        rows = self.rows
        at = [(row, self.at - rows._queue_at[row]) for row in range(ROWS) if rows._stopped[row]]
        return [(row, int(rows._queue[row, column])) for row, column in at]


def native_step(length: int, model: Any, plain: int, steps: int) -> float | None:
    """vLLM's own budget under V1, on the same completions. None without vLLM."""
    try:
        from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder
    except ImportError:
        return None
    import torch

    rule = model.rule(None, answer_follows=True)
    reasoning = SimpleNamespace(
        reasoning_start_token_ids=list(rule.open_ids),
        reasoning_end_token_ids=[*rule.lead_ids, *rule.close_ids],
        natural_reasoning_end_token_ids=list(rule.close_ids),
    )
    holder = ThinkingBudgetStateHolder(reasoning, ROWS, 0, torch.device("cpu"), False)
    outputs = [[plain] * length for _ in range(ROWS)]
    asked = SimpleNamespace(thinking_token_budget=10 * length)
    added = [(row, asked, list(rule.open_ids), outputs[row]) for row in range(ROWS)]
    holder.sync_batch(SimpleNamespace(removed=[], moved=[], added=added))
    scores = torch.zeros(ROWS, 1000)

    def step() -> None:
        holder.update_state(outputs, None)
        holder.apply_to_logits(scores, False, None)

    step()
    return spent(step, lambda: [output.append(plain) for output in outputs], 3)


def floor(model: Any, plain: int, steps: int) -> float:
    """Read the latest token of each row, and write into the scores of the ends."""
    import torch

    outputs = [[plain] for _ in range(ROWS)]
    scores = torch.zeros(ROWS, 151_936)
    ids = torch.tensor([sorted(model.ends)] * ROWS)
    marks = model.marks

    def step() -> None:
        marks.isdisjoint([output[-1] for output in outputs])
        scores.scatter_(1, ids, scores.gather(1, ids))

    return spent(step, lambda: None, steps)


def measure_steps(steps: int) -> dict[str, Any]:
    from qwen3_tokenizer import load_qwen3_tokenizer

    from posttrain.budget.vllm_model import ServedModel
    from posttrain.templates.families import get_family

    tokenizer = load_qwen3_tokenizer()
    model = ServedModel(tokenizer, get_family("qwen3"), longest=1 << 30)
    (plain,) = tokenizer.encode(" so", add_special_tokens=False)
    found: dict[str, Any] = {"floor": floor(model, plain, steps)}
    for name, bench in (("v1", V1Bench), ("v2", V2Bench)):
        for case in ("thinking", "answering", "staggered", "all at once"):
            for length in LENGTHS if case == "thinking" else LENGTHS[:1]:
                run = bench(case, length, model, plain)
                within = steps if case in ("thinking", "answering") else len(run.rule.stop_ids) - 2
                found[f"{name} {case} {length}"] = spent(run.step, run.grow, within)
    for length in LENGTHS:
        found[f"native v1 thinking {length}"] = native_step(length, model, plain, steps)
    for key, value in found.items():
        print(f"{key:28} {value} µs", flush=True)
    return found


ENGINE = """
import json, statistics, sys, time
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    options = {"ours": {"logits_processors": ["posttrain.budget.vllm:ThinkingBudgetLogitsProcessor"]}, "none": {},
        "native": {"reasoning_config": {"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"}}}
    llm = LLM(asked["model"], dtype="float32", enforce_eager=True, max_model_len=2048, gpu_memory_utilization=0.1,
        max_num_seqs=256, **options[asked["kind"]])
    budget = {"none": {}, "ours": {"extra_args": {"thinking_budget": 10**6}},
        "native": {"thinking_token_budget": 10**6}}
    vocabulary = llm.get_tokenizer().get_vocab()
    prompt = {"prompt_token_ids": [vocabulary["<think>"]]}
    figures = {}
    for batch in asked["batches"]:
        params = SamplingParams(max_tokens=asked["tokens"], temperature=1.0, ignore_eos=True,
            logit_bias={vocabulary["</think>"]: -100.0}, **budget[asked["kind"]])
        speeds = []
        for turn in range(1 + asked["turns"]):
            began = time.monotonic()
            llm.generate([prompt] * batch, params, use_tqdm=False)
            speeds.append(batch * asked["tokens"] / (time.monotonic() - began))
        figures[batch] = round(statistics.median(speeds[1:]), 1)
    print("RESULT" + json.dumps(figures))
"""


def measure_engine(model: str, batches: list[int], tokens: int, turns: int) -> dict[str, dict[str, float]]:
    """Tokens a second by kind (none, ours, native) and batch."""
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
    found = {}
    for kind in ("none", "ours", "native"):
        asked = {"kind": kind, "model": model, "batches": batches, "tokens": tokens, "turns": turns}
        with tempfile.TemporaryDirectory() as scratch:
            script = Path(scratch) / "decode.py"  # a file: vLLM starts its workers from it again
            script.write_text(ENGINE)
            command = [sys.executable, str(script), json.dumps(asked)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        lines = [line.removeprefix("RESULT") for line in done.stdout.splitlines() if line.startswith("RESULT")]
        if not lines:
            raise RuntimeError(done.stderr[-2000:])
        found[kind] = json.loads(lines[-1])
        print(f"{kind:7} tokens a second by batch: {found[kind]}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--engine", action="store_true")
    parser.add_argument("--batches", default="1,16,64,256")
    parser.add_argument("--tokens", type=int, default=200, help="of each completion in the engine")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    random.seed(0)
    result: dict[str, Any] = {"step_us": measure_steps(arguments.steps)}
    steps = result["step_us"]
    slowest = max(steps[f"{name} thinking {length}"] for name in ("v1", "v2") for length in LENGTHS)
    met = slowest <= 1000 * TARGET_MS
    if arguments.engine:
        sys.path.insert(0, str(ROOT / "tests"))
        from vllm_model import write_tiny_model

        with tempfile.TemporaryDirectory() as scratch:
            model = str(write_tiny_model(Path(scratch) / "model"))
            batches = [int(batch) for batch in arguments.batches.split(",")]
            found = measure_engine(model, batches, arguments.tokens, arguments.turns)
        result["tokens_per_second"] = found
        result["share"] = {batch: round(found["ours"][batch] / found["none"][batch], 3) for batch in found["none"]}
        met = met and min(result["share"].values()) >= TARGET_SHARE
    result["date"] = time.strftime("%Y-%m-%d", time.gmtime())
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    ours, theirs = steps["v1 thinking 32000"] / 1000, steps["native v1 thinking 32000"]
    line = {
        "name": "budget_speed", "ours": round(ours, 4), "theirs": theirs and round(theirs / 1000, 2),
        "unit": f"ms of CPU a step at batch {ROWS}, 32k tokens", "ratio": theirs and round(1000 * ours / theirs, 6),
        "target": TARGET_MS, "met": met,
    }  # fmt: skip
    print(json.dumps(line))


if __name__ == "__main__":
    main()
