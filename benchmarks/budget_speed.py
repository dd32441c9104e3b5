"""What a thinking budget costs beside the model: one call of the processor in a decoding step.

    python benchmarks/budget_speed.py

256 rows with a budget and Qwen3's vocabulary, on the CPU, after 1k, 8k and 32k tokens. The completions' tokens are put
there; no engine is needed (`budget_decoding.py` has one). Unit: microseconds of this thread's CPU time, the median of
`--steps` steps. Cases:

    thinking      all rows think, none is due
    answering     all rows answer
    steady        each row is stopped once in some 1,000 tokens, one after another
    staggered     each row is stopped once in some 100 tokens: a quarter of the rows are being stopped at any time
    all at once   all rows are being stopped in the same step

Beside them: vLLM's native budget under V1 on the same tokens, *the floor* (reading each row's latest token and writing
into the ends' scores, which whoever guards an end of turn has to do), and *empty*, a processor that does nothing.

The last line is JSON: `ours` is the thinking step at 32k tokens under V1, in ms; `theirs` the native one. `met` asks
for less than 0.1 ms in every case but `staggered`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "budget_speed.json"
ROWS = 256
CYCLES = {"staggered": 4, "steady": 42}  # over how many times the length of a stop text the rows' stops are spread
LENGTHS = (1000, 8000, 32_000)
TARGET_MS = 0.1


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
    if case in CYCLES:  # a stop lasts `stop` steps
        return [length + 1 + (row * CYCLES[case] * stop) // ROWS for row in range(ROWS)]
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
    found: dict[str, Any] = {"empty": spent(lambda: None, lambda: None, steps), "floor": floor(model, plain, steps)}
    for name, bench in (("v1", V1Bench), ("v2", V2Bench)):
        for case in ("thinking", "answering", "steady", "staggered", "all at once"):
            for length in LENGTHS if case == "thinking" else LENGTHS[:1]:
                run = bench(case, length, model, plain)
                stop = len(run.rule.stop_ids)
                within = {"all at once": stop - 2, "staggered": 4 * stop - 2}.get(case, steps)
                found[f"{name} {case} {length}"] = spent(run.step, run.grow, within)
    for length in LENGTHS:
        found[f"native v1 thinking {length}"] = native_step(length, model, plain, steps)
    for key, value in found.items():
        print(f"{key:28} {value} µs", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    random.seed(0)
    steps = measure_steps(arguments.steps)
    slowest = max(value for name, value in steps.items() if name[:2] in ("v1", "v2") and "staggered" not in name)
    result = {"step_us": steps, "date": time.strftime("%Y-%m-%d", time.gmtime())}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    ours, theirs = steps["v1 thinking 32000"] / 1000, steps["native v1 thinking 32000"]
    line = {
        "name": "budget_speed", "ours": round(ours, 4), "theirs": theirs and round(theirs / 1000, 2),
        "unit": f"ms of CPU a step at batch {ROWS}, 32k tokens", "ratio": theirs and round(1000 * ours / theirs, 6),
        "target": TARGET_MS, "met": slowest <= 1000 * TARGET_MS,
    }  # fmt: skip
    print(json.dumps(line))


if __name__ == "__main__":
    main()
