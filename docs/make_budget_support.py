"""Writes docs/budget_support.md from docs/results/budget_engine.json and budget_speed.json.

python docs/make_budget_support.py           write it
python docs/make_budget_support.py --check   fail if it is not what the results give
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
PAGE = DOCS / "budget_support.md"
GPU_STEP_MS = 10  # of a decoding step of a real model on a GPU, roughly
WHAT = {
    "plain": "up to 32 requests at once (16 under V2)",
    "preemption": "requests thrown out and read again",
    "chunked": "prompts read in chunks",
    "ngram": "n-gram speculation, three drafts",
}


def results(name: str) -> Any:
    path = DOCS / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def runs() -> Iterator[dict[str, Any]]:
    """The results of the engine stress, those of several seeds as one."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for each in results("budget_engine") or []:
        before = found.setdefault((each["setting"], each["native"], each.get("vllm")), each)
        if before is not each and "error" not in before and "error" not in each:
            for key in ("kinds", "seen"):
                before[key] = dict(Counter(before[key]) + Counter(each[key]))
            before["wrong"] += each["wrong"]
            before["date"] = max(before["date"], each["date"])
    yield from found.values()


def engine_rows() -> Iterator[str]:
    for each in runs():
        runner, scenario = each["setting"].split("-")
        whose = "native" if each["native"] else "ours"
        start = f"| {each.get('vllm', '?')} | {runner.upper()} | {WHAT[scenario]} | {whose} |"
        if "error" in each:
            yield f"{start} | | does not start: {each['error']} | {each['date']} |"
            continue
        seen = each["seen"]
        facts = [f"{seen[key]} {key}" for key in ("preemptions", "drafts accepted") if seen.get(key)]
        kinds = "; ".join(f"{count} {kind}" for kind, count in sorted(each["kinds"].items()))
        tried = ", ".join([f"{seen['completions']} completions", f"{seen['struck']} stopped", *facts])
        wrong = f"**{each['wrong']}**" + (f": {kinds}" if kinds else "")
        yield f"{start} {tried} | {wrong} | {each['date']} |"


def speed_rows(found: dict[str, Any]) -> Iterator[str]:
    yield from (f"| {name} | {value} |" for name, value in found["step_us"].items())


def engines() -> list[str]:
    return [
        "## Engines",
        "",
        "`python benchmarks/budget_engine.py`: random requests through real engines (vLLM's CPU build; V2 through",
        "Triton's interpreter). A violation is a completion that broke its budget, judged from its ids alone. The",
        "native budget gets the same requests with the one stop text it can have, and is not asked to close thinking",
        "at an end of turn. Another vLLM: `make test-vllm VLLM=0.27.0`, in an environment of its own.",
        "",
        "0.27.0 is the oldest that could be installed: older CPU builds ask for a CPU build of torch 2.11, of which no",
        "wheel was found. 0.32.0 is the newest there is. The V2 runner takes a processor from 0.31 on.",
        "",
        "| vLLM | runner | setting | budget | tried | violations | date |",
        "|---|---|---|---|---|---|---|",
        *engine_rows(),
        "",
    ]


def own_step(speed: dict[str, Any]) -> list[str]:
    return [
        "## The processor's own step",
        "",
        "`python benchmarks/budget_speed.py`: 256 rows, a vocabulary of 151,936, microseconds of CPU time a step",
        f"(median), on {speed['date']}. A line ends with the length of each completion in tokens.",
        "",
        "| step | µs |",
        "|---|---|",
        *speed_rows(speed),
        "",
    ]


def decoding(found: dict[str, Any]) -> list[str]:
    columns = ("none", "ours", "native")
    rows = []
    for cell in found["cells"]:
        ms, own, left, share = (cell.get(key, {}) for key in ("ms", "budget_ms", "within", "share"))
        figures = [*(ms.get(kind, "") for kind in columns), *(own.get(kind, "") for kind in columns)]
        figures += [left.get("ours", ""), left.get("native", ""), share.get("ours", ""), share.get("native", "")]
        figures += [cell.get("noise", ""), f"{100 * own['ours'] / GPU_STEP_MS:.1f} %" if "ours" in own else ""]
        cells = ["", str(cell["layers"]), str(cell["batch"]), str(cell["length"]), *map(str, figures), ""]
        rows.append(" | ".join(cells).strip())
    return [
        "## Decoding",
        "",
        "`python benchmarks/budget_decoding.py`: CPU milliseconds of a decoding step of vLLM 0.32.0 (V1, a tiny",
        "model), medians: without a budget, with ours, with the native one, served in turns by one engine. *Own* is",
        "the budget's own part of the step, measured inside it; *floor* is that part where no request has a budget: a",
        "processor that is asked and does nothing. *Left* is 1 less the own part. *Share* is the step without a budget",
        "divided by the step with one, of different turns; noise is the same division for two halves of the turns",
        f"without one. On {found['date']}: one layer at 1,024 and 8,192 tokens, and 32,768 with 256 requests (with",
        "64 too, of twelve layers), on two idle cores; the others on one core that much else used, so that each step",
        "finds its caches cold. With twelve layers and up to 8,192 tokens the native budget ran afterwards",
        "(`--kinds native`), so it has no share there.",
        "",
        f"The last column is computed, not measured: our own part against a step of {GPU_STEP_MS:.0f} ms, which is",
        "about what a real model takes on a GPU. There it would also run while the GPU computes; no GPU has run it.",
        "",
        "| layers | batch | tokens before | none | ours | native | floor | own, ours | own, native "
        "| left, ours | left, native | share, ours | share, native | noise | ours of 10 ms, computed |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        *absent(found["cells"]),
    ]


def absent(cells: list[dict[str, Any]]) -> list[str]:
    """What of layers, lengths and batches was not measured."""
    had = {(each["layers"], each["length"], each["batch"]): set(each["ms"]) for each in cells}
    batches: dict[tuple[int, int, str], list[str]] = {}
    for layers, length, batch in itertools.product((1, 12), (1024, 8192, 32768), (1, 16, 64, 256)):
        if kinds := {"none", "ours", "native"} - had.get((layers, length, batch), set()):
            batches.setdefault((layers, length, ", ".join(sorted(kinds))), []).append(str(batch))
    if not batches:
        return []
    named = [
        f"- layers {layers}, {length} tokens, batch {', '.join(those)}: {kinds}"
        for (layers, length, kinds), those in batches.items()
    ]
    return ["Not run, for want of time:", "", *named, ""]


def page() -> str:
    lines = [
        "# Where the thinking budget was tried",
        "",
        "Written by `docs/make_budget_support.py` from the results under `docs/results`; not by hand.",
        "",
        *engines(),
    ]
    if speed := results("budget_speed"):
        lines += own_step(speed)
    if found := results("budget_decoding"):
        lines += decoding(found)
    return "\n".join(lines)


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
            sys.exit(f"{PAGE} is not what the results give: run python {Path(__file__).name}")
    else:
        PAGE.write_text(page(), encoding="utf-8")
