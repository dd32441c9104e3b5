"""General RL over 24 tasks with rules, a served judge and a trained reward model: recipes/general_rl_tiny.yaml, whole.

    python benchmarks/general_rl_tiny.py [--output DIR] [--results docs/results] [--port 8100]

The judge is trained (recipes/judge_tiny.yaml), served by vLLM on this machine, and the recipe is run against it. Runs
that are finished under DIR are not run again. A task has collapsed if its 95 % interval after RL lies wholly below the
one before. Ends with one JSON line: `ours` is the gain of the mixture's mean, `theirs` null, and `met` says that it is
above 0.05 and that no task has collapsed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tests.served import environment  # noqa: E402

GAIN = 0.05
PAID_BY = {"synonym": "judge", "request": "reward model"}
ENDPOINT = "stages.general_rl.rewards.task.options.tables.synonym.judge.options.endpoint"


def run(recipe: str, directory: Path, *overrides: str) -> None:
    """Run a recipe to its end, or on from where it was stopped."""
    command = [sys.executable, "-m", "posttrain", "run", str(ROOT / "recipes" / recipe), "--output", str(directory)]
    command += ["--quiet", *(word for override in overrides for word in ("--set", override))]
    subprocess.run(command, check=True)


@contextlib.contextmanager
def served(model: Path, port: int, folder: Path) -> Iterator[str]:
    """vLLM serving the judge, until the block ends; its address."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model), "--served-model-name", "judge"),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"),
        *("--max-model-len", "512", "--gpu-memory-utilization", "0.1"),
    ]
    with (folder / "server.log").open("wb") as out:
        process = subprocess.Popen(command, env=environment(folder), stdout=out, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            while process.poll() is None:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{url}/health", timeout=5)
                    break
                time.sleep(1)
            if process.poll() is not None:
                raise SystemExit(f"the judge's server ended: see {folder / 'server.log'}")
            yield f"{url}/v1"
        finally:
            process.terminate()
            process.wait()


def stage(report: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(one for one in report["stages"] if one["name"] == name)
    return found


def table(report: Mapping[str, Any]) -> tuple[list[dict[str, Any]], float, float]:
    """A row a task, and the mixture's mean before and after RL."""
    sides = [stage(report, name) for name in ("demonstrations", "general_rl")]
    before, after = (side["scores"]["non_thinking"] for side in sides)
    spans = [side["intervals"]["non_thinking"] for side in sides]
    tasks = [name for name in before if name.startswith("data/")]
    rows = [
        {
            "task": name.removeprefix("data/"),
            "before": before[name],
            "after": after[name],
            "spans": [span[name] for span in spans],
            "collapsed": spans[1][name][1] < spans[0][name][0],
        }
        for name in tasks
    ]
    return rows, sum(row["before"] for row in rows) / len(rows), sum(row["after"] for row in rows) / len(rows)


def text_of(report: Mapping[str, Any], judge: Mapping[str, Any], rows: list[dict[str, Any]], means: list[float]) -> str:
    """The page under docs/results."""
    pairs = stage(report, "preferences")["scores"]["pair_accuracy"]
    graded = stage(judge, "judge")["scores"]["non_thinking"]["accuracy"]
    seconds = sum(one["train_seconds"] + one["evaluation_seconds"] for one in report["stages"])
    lines = [
        "# General RL over 24 tasks, by rules, a judge and a reward model\n",
        f"`python benchmarks/general_rl_tiny.py`, seed 0, on {os.cpu_count()} cores.\n",
        f"The judge grades {graded:.3f} of its held-out rows rightly, the reward model ranks {pairs:.3f} of its "
        f"held-out pairs rightly. Training and evaluation took {seconds / 60:.1f} minutes of wall time, the judge's "
        "own and its server left out.\n",
        f"Mean over the tasks: {means[0]:.3f} before RL, {means[1]:.3f} after it.\n",
        "| task | paid by | before RL (95 %) | after (95 %) | change |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        spans = [f"{low:.2f}–{high:.2f}" for low, high, _ in row["spans"]]
        lines.append(
            f"| {row['task']} | {PAID_BY.get(row['task'], 'rules')} | {row['before']:.3f} ({spans[0]}) | "
            f"{row['after']:.3f} ({spans[1]}) | {row['after'] - row['before']:+.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "general_rl")
    parser.add_argument("--results", type=Path, help="write general_rl_tiny.md there")
    parser.add_argument("--port", type=int, default=8100)
    arguments = parser.parse_args()
    output: Path = arguments.output
    judge, tiny = output / "judge", output / "tiny"
    run("judge_tiny.yaml", judge)
    if not (tiny / "stages" / "general_rl" / "stage.json").exists():
        with served(judge / "stages" / "judge" / "model", arguments.port, output / "server") as endpoint:
            run("general_rl_tiny.yaml", tiny, *([f"{ENDPOINT}={endpoint}"] if arguments.port != 8100 else []))
    reports = [json.loads((one / "report.json").read_text(encoding="utf-8")) for one in (tiny, judge)]
    rows, before, after = table(reports[0])
    text = text_of(*reports, rows, [before, after])
    print(text)
    if arguments.results:
        (arguments.results / "general_rl_tiny.md").write_text(text, encoding="utf-8")
    met = after - before > GAIN and not any(row["collapsed"] for row in rows)
    line = {"name": "general_rl_tiny", "ours": round(after - before, 4), "theirs": None, "unit": "mean accuracy"}
    print(json.dumps({**line, "ratio": None, "target": GAIN, "met": met}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
