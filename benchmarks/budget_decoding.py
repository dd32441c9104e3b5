"""What a thinking budget costs a real engine: decoding with one on every request, with none, and with the native one.

    python benchmarks/budget_decoding.py
    python benchmarks/budget_decoding.py --layers 12 --batches 1,16 --lengths 1024 --turns 5 --kinds none,ours

One engine (V1, a tiny fp32 model with random weights) has both budgets, ours and vLLM's own, and serves three kinds of
requests in turns, in another order each time: with no budget, with ours, with the native one. So what else the machine
does falls on all of them alike, and nothing differs between them but the budget. A budget is never reached. Each turn
decodes some tokens after a prompt of the given length that ends inside thinking; the prompt is in the prefix cache.
Both budgets are shown the prompt's tokens as part of the completion, as if all of them had been thought: a budget's
cost may depend on that length, and nobody can wait for 256 times 32,000 tokens to be decoded. Only steps in which every
row decodes one token are counted.

Unit: CPU milliseconds that the worker's thread spends on a step, forward pass, scores and sampling together, the median
over the steps of all turns. (On a machine that others use, wall-clock time says more about them.) Of each cell:

    ms         a step
    budget_ms  the budget's own part of it, measured inside the step: what vLLM calls on the processor, or on its own
               budget. For requests without one that is the floor: a processor that is asked and does nothing
    within     1 less the budget's own part of the step: what it leaves of the throughput
    share      the step without a budget divided by the step with one, of different turns. It holds everything, also
               what vLLM does around a budget, and is worth as much as `noise` says: the same division for the even and
               the odd turns without a budget

The model has one layer, so that a step takes two milliseconds at batch 1; what a budget costs does not depend on the
model, so its part falls as the model grows (`--layers`). The last line is JSON: `ours` is the lowest `within`, `theirs`
the native budget's. Cells are added to docs/results/budget_decoding.json as they are measured, in the place of earlier
ones, so a run can be made in pieces.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "budget_decoding.json"
TARGET = 0.99
PROCESSOR = "posttrain.budget.vllm:ThinkingBudgetLogitsProcessor"
SETTLING = 2  # steps of a turn that are not counted
LEAST = 3  # steps of a turn that are needed
SECONDS = 0.5  # CPU time that a turn of a cell may take, roughly: longer steps are fewer
BUDGET: dict[str, dict[str, Any]] = {
    "none": {}, "ours": {"extra_args": {"thinking_budget": 10**6}}, "native": {"thinking_token_budget": 10**6},
}  # fmt: skip


def watch(worker: Any) -> None:
    """In the worker: note requests, tokens, CPU seconds and those of the budget at each step."""
    runner = getattr(worker, "worker", worker).model_runner
    batch = runner.input_batch
    runner.noted, timed = [], [0.0, 0.0]  # seconds of the step, of the budget
    runner.shown = {}  # a completion, and what a budget sees in its place

    def time_calls(owner: Any, names: Sequence[str], place: int) -> None:
        for name in filter(functools.partial(hasattr, owner), names):
            setattr(owner, name, timed_call(getattr(owner, name), place))

    def timed_call(call: Any, place: int) -> Any:
        def timed_(*arguments: Any) -> Any:
            began = time.thread_time()
            inside = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                # Both hold the CPU time: this clock costs less itself, that one does not run while others have the CPU.
                inside = time.perf_counter() - inside
                timed[place] += min(inside, time.thread_time() - began)

        return timed_

    def lengthen(update: Any) -> Any:
        """A prompt of a think marker and n tokens: those tokens count as completion, too."""
        added = []
        for row, params, prompt, output in update.added if update else ():
            _, longer = runner.shown.setdefault(id(output), (output, prompt[1:]))
            added.append((row, params, prompt[:1], longer))
        return dataclasses.replace(update, added=added) if added else update

    time_calls(runner, ("execute_model", "sample_tokens"), 0)
    ours = [each for each in batch.logitsprocs.all if type(each).__name__ == PROCESSOR.partition(":")[2]]
    holder = batch.thinking_budget_state_holder
    for budget in (*ours, holder):
        time_calls(budget, ("update_state", "sync_batch", "apply", "apply_to_logits"), 1)
    ours_update, native_sync, native_update = ours[0].update_state, holder.sync_batch, holder.update_state
    ours[0].update_state = lambda update: ours_update(lengthen(update))
    holder.sync_batch = lambda update: native_sync(lengthen(update))
    holder.update_state = lambda outputs, *_, **__: native_update([runner.shown[id(each)][1] for each in outputs], None)
    execute, sample = runner.execute_model, runner.sample_tokens

    def execute_model(scheduled: Any, *rest: Any) -> Any:
        counts = scheduled.num_scheduled_tokens
        timed[:] = 0.0, 0.0
        runner.noted.append([len(counts), sum(counts.values())])
        return execute(scheduled, *rest)

    def sample_tokens(*rest: Any) -> Any:
        found = sample(*rest)
        runner.noted[-1] += timed
        for output, longer in runner.shown.values():
            if output:
                longer.append(output[-1])
        return found

    runner.execute_model, runner.sample_tokens = execute_model, sample_tokens


def noted(worker: Any) -> list[list[float]]:
    """In the worker: what was noted, which is forgotten then, as are the completions."""
    runner = getattr(worker, "worker", worker).model_runner
    found, runner.noted[:] = list(runner.noted), []
    runner.shown.clear()
    return found


def engine(model: str, longest: int, rows: int) -> None:
    """The engine in a process of its own: a kind and a cell to decode on each line of input, the CPU seconds back."""
    from vllm import LLM, SamplingParams

    from posttrain.budget.vllm import ThinkingBudgetLogitsProcessor

    # It refuses the other budget: whoever has both of them in one engine means to compare them.
    ThinkingBudgetLogitsProcessor.validate_params = lambda params: None
    llm = LLM(
        model, dtype="float32", enforce_eager=True, max_model_len=longest, gpu_memory_utilization=0.1,
        max_num_seqs=rows, logits_processors=[PROCESSOR],
        reasoning_config={"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"},
    )  # fmt: skip
    llm.collective_rpc(watch)
    names = llm.get_tokenizer().get_vocab()
    plain = next(token for token in range(300, 400) if token not in (names["<think>"], names["</think>"]))
    print("RESULTready", flush=True)
    for line in sys.stdin:
        kind, batch, length, steps = json.loads(line)
        prompt = {"prompt_token_ids": [names["<think>"]] + [plain] * length}
        done: list[list[float]] = []
        more = SETTLING  # tokens, until the last request has come
        while len(done) < min(steps, LEAST) + SETTLING:
            params = SamplingParams(
                max_tokens=steps + more, temperature=1.0, ignore_eos=True, logit_bias={names["</think>"]: -100.0},
                **BUDGET[kind],
            )  # fmt: skip
            llm.generate([prompt] * batch, params, use_tqdm=False)
            seen = llm.collective_rpc(noted)[0]
            done = [step[2:] for step in seen if len(step) == 4 and step[0] == step[1] == batch]
            more *= 3
        print("RESULT" + json.dumps(done[SETTLING : SETTLING + steps]), flush=True)


class Engine:
    """The engine as the measuring process sees it."""

    def __init__(self, model: str, longest: int, rows: int, log: Path) -> None:
        environment = {
            **os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false",
            "VLLM_ALLOW_INSECURE_SERIALIZATION": "1", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        command = [sys.executable, __file__, "--engine", json.dumps([model, longest, rows])]
        self.log = log
        self.process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w")
        )

    def answer(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("RESULT"):
                return line.removeprefix("RESULT").strip()
        raise RuntimeError(self.log.read_text()[-3000:])

    def decode(self, kind: str, batch: int, length: int, steps: int) -> list[tuple[float, float]]:
        """CPU milliseconds of each step, and of the budget in it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([kind, batch, length, steps]) + "\n")
        self.process.stdin.flush()
        return [(1000 * step, 1000 * own) for step, own in json.loads(self.answer())]

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def measure_cell(run: Engine, kinds: list[str], batch: int, length: int, steps: int, turns: int) -> dict[str, Any]:
    """All kinds in turns, in another order each time."""
    found: dict[str, list[list[tuple[float, float]]]] = {kind: [] for kind in kinds}
    within = {}
    for kind in kinds:  # not counted: fills the prefix cache, and tells how long a step takes
        step = statistics.median(step for step, _ in run.decode(kind, batch, length, LEAST)) / 1000
        within[kind] = max(LEAST, min(steps, int(SECONDS / step)))
    for turn in range(turns):
        for kind in kinds[turn % len(kinds) :] + kinds[: turn % len(kinds)]:
            found[kind].append(run.decode(kind, batch, length, within[kind]))

    def median(kind: str, place: int, turns: slice = slice(None)) -> float:
        return statistics.median(step[place] for turn in found[kind][turns] for step in turn)

    budgets = [kind for kind in kinds if kind != "none"]
    cell: dict[str, Any] = {
        "batch": batch,
        "length": length,
        "steps": {kind: sum(map(len, turns)) for kind, turns in found.items()},
        "ms": {kind: round(median(kind, 0), 3) for kind in kinds},
        "budget_ms": {kind: round(median(kind, 1), 4) for kind in kinds},
        "within": {kind: round(1 - median(kind, 1) / median(kind, 0), 4) for kind in budgets},
    }
    if "none" in kinds:
        halves = [median("none", 0, slice(at, None, 2)) for at in (0, 1)]
        cell["share"] = {kind: round(median("none", 0) / median(kind, 0), 3) for kind in budgets}
        cell["noise"] = round(min(halves) / max(halves), 3)
    return cell


def keep(cell: dict[str, Any]) -> None:
    """Put a cell into the file. Where only some kinds were run, what an earlier run said of the others stays."""
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))["cells"] if RESULTS.exists() else []
    place = _place(cell)
    before = next((each for each in kept if _place(each) == place), {})
    both = {
        key: {**before[key], **value} if isinstance(value, dict) and key in before else value
        for key, value in cell.items()
    }
    kept = [each for each in kept if _place(each) != place] + [{**before, **both}]
    kept.sort(key=_place)
    result = {"cells": kept, "date": time.strftime("%Y-%m-%d", time.gmtime())}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _place(cell: dict[str, Any]) -> tuple[int, int, int]:
    return cell["layers"], cell["length"], cell["batch"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="1,16,64,256")
    parser.add_argument("--lengths", default="1024,8192,32768", help="of the prompt; whole blocks of the cache (128)")
    parser.add_argument("--layers", type=int, default=1, help="of the model")
    parser.add_argument("--steps", type=int, default=100, help="of a turn at most")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--kinds", default="none,ours,native", help="of requests; without none: no floor, share, noise")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        engine(*json.loads(arguments.engine))
        return
    sys.path.insert(0, str(ROOT / "tests"))
    from vllm_model import write_tiny_model

    batches, lengths = ([int(each) for each in text.split(",")] for text in (arguments.batches, arguments.lengths))
    longest = max(lengths) + arguments.steps + 256
    kinds = arguments.kinds.split(",")
    cells = []
    with tempfile.TemporaryDirectory() as scratch:
        model = str(write_tiny_model(Path(scratch) / "model", positions=longest, layers=arguments.layers))
        run = Engine(model, longest, max(batches), Path(scratch) / "log")
        try:
            run.answer()
            for length in lengths:
                for batch in batches:
                    cell = measure_cell(run, kinds, batch, length, arguments.steps, arguments.turns)
                    cells.append({"layers": arguments.layers, **cell})
                    keep(cells[-1])
                    print(json.dumps(cells[-1]), flush=True)
        finally:
            run.stop()
    lowest: dict[str, float] = {kind: min(cell["within"][kind] for cell in cells) for kind in kinds if kind != "none"}
    line = {
        "name": "budget_decoding", "ours": lowest.get("ours"), "theirs": lowest.get("native"),
        "unit": "part of the throughput that the budget leaves, at the worst batch and length",
        "ratio": None, "target": TARGET, "met": lowest.get("ours", 0) >= TARGET,
    }  # fmt: skip
    print(json.dumps(line))


if __name__ == "__main__":
    main()
