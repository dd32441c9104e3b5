"""Does vLLM keep every thinking budget? Random requests through real engines, and through vLLM's native budget.

    python benchmarks/budget_engine.py                                   all settings, 1,000 requests each on V1
    python benchmarks/budget_engine.py --requests 100 --settings v1-plain,v2-ngram --without-native

Every request has a prompt, a budget, a temperature, a stop text, a length and biases of its own, drawn from a seed; one
in ten has no budget. The model is a tiny Qwen3 with random weights (tests/vllm_model.py). Settings:

    plain        up to 32 requests at once
    preemption   so few blocks of cache that requests are thrown out and read again
    chunked      prompts are read 32 tokens at a time
    ngram        n-gram speculation, three drafts (V2; V1 refuses a processor there)

V1 is what a CPU build of vLLM runs. V2, written for GPUs, runs through Triton's interpreter at some ten tokens a
second, so it gets a fifth of the requests (`--interpreted`), and shorter ones: 48 tokens at most, not 120. A violation
is a completion in which `budget_verdict.faults`, which knows the ids and the request alone, finds a fault. The native
budget gets the same requests with the one stop text it can have, and is not asked to close thinking at an end of turn,
which it does not claim to do.

A setting can be run in lots: requests of another `--seed` are added to those before. Results are kept in
docs/results/budget_engine.json, from which docs/make_budget_support.py writes the support table.
The last line is JSON: `ours` and `theirs` are violations.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "budget_engine.json"
SETTINGS = (
    "v1-plain", "v1-preemption", "v1-chunked", "v2-plain", "v2-preemption", "v2-chunked", "v2-ngram",
)  # fmt: skip


def run(setting: str, native: bool, requests: int, seed: int, model: str, python: str) -> dict[str, Any]:
    """One engine in a process of its own."""
    name, scenario = setting.split("-")
    asked = {
        "scenario": scenario, "native": native, "requests": requests, "seed": seed, "model": model,
        "rows": 32 if name == "v1" else 16, "blocks": 24 if name == "v1" else 12,
        "longest": 512 if name == "v1" or scenario == "chunked" else 320, "most_tokens": 120 if name == "v1" else 48,
    }  # fmt: skip
    environment = {
        **os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive",
        "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "3600",  # an interpreted step on a busy machine takes minutes
    }  # fmt: skip
    environment["PYTHONPATH"] = str(ROOT)  # another environment need not have posttrain installed
    if name == "v2":
        environment |= {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}
        environment["PYTHONPATH"] += os.pathsep + str(ROOT / "tests" / "interpreted")
    command = [python, str(ROOT / "benchmarks" / "budget_requests.py"), json.dumps(asked)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    result = [line.removeprefix("RESULT") for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not result:
        said = (done.stdout + done.stderr).splitlines()
        vague = ("Engine core initialization", "EngineDeadError")
        words = [line for line in said if "Error: " in line and not any(each in line for each in vague)]
        values = [line.partition("Value error, ")[2].partition(" [type=")[0] for line in said]
        words = [value for value in values if value] or words
        failed = {"setting": setting, "native": native, "seed": seed, "vllm": version_of(python)}
        return {**failed, "error": (words or [done.stderr[-300:]])[-1][-300:]}
    return {"setting": setting, "native": native, "requests": requests, "seed": seed, **json.loads(result[-1])}


def version_of(python: str) -> str:
    """Of the vLLM in that environment."""
    find = (
        "import importlib.metadata as m; print(next(m.version(d.name) for d in m.distributions() if d.name in NAMES))"
    )
    find = find.replace("NAMES", "('vllm', 'vllm-cpu')")
    return (
        subprocess.run([python, "-c", find], capture_output=True, text=True, check=True)
        .stdout.strip()
        .partition("+")[0]
    )


def keep(result: dict[str, Any]) -> None:
    """Put a result into the file, in the place of an earlier one of the same setting, version and seed."""
    key = ("setting", "native", "vllm", "seed")
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    kept = [each for each in kept if any(each.get(name) != result.get(name) for name in key)]
    kept.append({**result, "date": time.strftime("%Y-%m-%d", time.gmtime())})
    kept.sort(key=lambda each: [str(each.get(name)) for name in key])
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000, help="of each setting under V1")
    parser.add_argument("--interpreted", type=int, help="of each setting under V2; default: a fifth")
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--without-native", action="store_true")
    parser.add_argument("--without-ours", action="store_true")
    parser.add_argument("--python", default=sys.executable, help="of another environment, with another vLLM")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    interpreted = arguments.interpreted or max(1, arguments.requests // 5)
    sys.path.insert(0, str(ROOT / "tests"))
    from vllm_model import write_tiny_model

    totals = {False: 0, True: 0}
    completions, failed = {False: 0, True: 0}, False
    with tempfile.TemporaryDirectory() as scratch:
        model = str(write_tiny_model(Path(scratch) / "model"))
        for setting in arguments.settings.split(","):
            count = interpreted if setting.startswith("v2") else arguments.requests
            for native in (False, True):
                if (native and arguments.without_native) or (not native and arguments.without_ours):
                    continue
                result = run(setting, native, count, arguments.seed, model, arguments.python)
                keep(result)
                if "error" in result:
                    failed |= not native
                    print(
                        f"{setting:14} {'native' if native else 'ours':6} does not start: {result['error']}", flush=True
                    )
                    continue
                totals[native] += result["wrong"]
                completions[native] += result["seen"]["completions"]
                print(
                    f"{setting:14} {'native' if native else 'ours':6} {result['wrong']:5} of "
                    f"{result['seen']['completions']} completions wrong   {json.dumps(result['kinds'])}",
                    flush=True,
                )
    ours, theirs = totals[False], None if arguments.without_native else totals[True]
    print(
        json.dumps(
            {
                "name": "budget_engine",
                "ours": ours,
                "theirs": theirs,
                "unit": f"violations in {completions[False]} and {completions[True]} completions",
                "ratio": None,
                "target": 0,
                "met": ours == 0 and not failed and completions[False] > 0,
            }
        )
    )


if __name__ == "__main__":
    main()
