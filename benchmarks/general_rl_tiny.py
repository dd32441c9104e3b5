"""General RL over 24 tasks with rules, a served judge and a trained reward model: recipes/general_rl_tiny.yaml, whole.

    python benchmarks/general_rl_tiny.py [--output DIR] [--results docs/results] [--port 8100]

The judge is trained (recipes/judge_tiny.yaml), served by vLLM on this machine, and the recipe is run against it. Then
judge and reward model are searched for what earns without being right (`posttrain rewards probe`). Runs that are
finished under DIR are not run again. A task has collapsed if its 95 % interval after RL lies wholly below the
one before, and improves clearly if it lies wholly above. Ends with one JSON line: `ours` is the gain of the mixture's
mean, `theirs` null, and `met` says that it is above 0.05, that no task has collapsed, that the tasks paid by the judge
and by the reward model improve clearly, and that the recipe took ten minutes at most.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from posttrain.rl.rewards.hacking import LIMIT  # noqa: E402
from tests.served import environment  # noqa: E402

GAIN = 0.05
MINUTES = 10.0
PAID_BY = {"synonym": "judge", "request": "reward model"}
JUDGE = "stages.general_rl.rewards.task.options.tables.synonym.judge.options"


def run(recipe: str, directory: Path, *overrides: str) -> None:
    """Run a recipe to its end, or on from where it was stopped; what a run in one go took lies beside it (s)."""
    spent = directory.with_name(f"{directory.name}_seconds.json")
    anew = not directory.exists()
    command = [sys.executable, "-m", "posttrain", "run", str(ROOT / "recipes" / recipe), "--output", str(directory)]
    command += ["--quiet", *(word for override in overrides for word in ("--set", override))]
    since, cpu = time.monotonic(), cpu_seconds()
    subprocess.run(command, check=True)
    if anew:
        took = {"wall": time.monotonic() - since, "cpu": cpu_seconds() - cpu}
        spent.write_text(json.dumps(took), encoding="utf-8")


def cpu_seconds() -> float:
    """Of the processes that this one has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def minutes(directory: Path) -> dict[str, float] | None:
    """What a run took, if it went through in one go."""
    spent = directory.with_name(f"{directory.name}_seconds.json")
    return {k: v / 60 for k, v in json.loads(spent.read_text(encoding="utf-8")).items()} if spent.exists() else None


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


def probed(endpoint: str, cache: Path, reward_model: Path) -> list[dict[str, Any]]:
    """What the probes found of both models, on the tasks that they pay for; the judge asked as the recipe asks it."""
    import yaml

    from posttrain.rl.rewards.probes import probe_model

    recipe = yaml.safe_load((ROOT / "recipes" / "general_rl_tiny.yaml").read_text(encoding="utf-8"))
    tables = recipe["stages"]["general_rl"]["rewards"]["task"]["options"]["tables"]
    asked = {**tables["synonym"]["judge"]["options"], "endpoint": endpoint, "cache": str(cache)}
    asked["prompt"] = str(ROOT / "recipes" / asked["prompt"])
    found = (
        probe_model("synonym", "judge", asked),
        probe_model("request", "reward_model", {"model": str(reward_model)}),
    )
    return [asdict(one) for one in found]


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
            "improved": spans[1][name][0] > spans[0][name][1],
        }
        for name in tasks
    ]
    return rows, sum(row["before"] for row in rows) / len(rows), sum(row["after"] for row in rows) / len(rows)


def told(took: dict[str, float] | None) -> str:
    return f"{took['wall']:.1f} minutes ({took['cpu']:.1f} of CPU time)" if took else "more than one attempt"


def text_of(
    report: Mapping[str, Any],
    judge: Mapping[str, Any],
    rows: list[dict[str, Any]],
    means: list[float],
    took: list[Any],
    probes: list[dict[str, Any]],
) -> str:
    """The page under docs/results."""
    pairs = stage(report, "preferences")["scores"]["pair_accuracy"]
    graded = stage(judge, "judge")["scores"]["non_thinking"]["accuracy"]
    lines = [
        "# General RL over 24 tasks, by rules, a judge and a reward model\n",
        f"`python benchmarks/general_rl_tiny.py`, seed 0, on {len(os.sched_getaffinity(0))} core(s).\n",
        f"The judge grades {graded:.3f} of its held-out rows rightly, the reward model ranks {pairs:.3f} of its "
        f"held-out pairs rightly. The recipe took {told(took[0])} from its command to its report, the judge's server "
        f"beside it; the judge's own recipe took {told(took[1])} before.\n",
        f"Mean over the tasks: {means[0]:.3f} before RL, {means[1]:.3f} after it; "
        f"{sum(row['improved'] for row in rows)} tasks improve beyond their intervals, "
        f"{sum(row['collapsed'] for row in rows)} fall below theirs.\n",
        "| task | paid by | before RL (95 %) | after (95 %) | change |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        spans = [f"{low:.2f}–{high:.2f}" for low, high, _ in row["spans"]]
        lines.append(
            f"| {row['task']} | {PAID_BY.get(row['task'], 'rules')} | {row['before']:.3f} ({spans[0]}) | "
            f"{row['after']:.3f} ({spans[1]}) | {row['after'] - row['before']:+.3f} |"
        )
    lines += [
        "",
        "What earns without being right, by tricks and a search (means over twelve problems; of tricks the highest):\n",
        "| paid by | gold earns | best of the search | it says | to | tricks that earn |",
        "|---|---|---|---|---|---|",
    ]
    for one in probes:
        tricks = ", ".join(f"{name} {worst:.2f}" for name, worst in one["worst"].items() if worst > LIMIT * one["gold"])
        best = one["found"]
        lines.append(
            f"| {one['by'].replace('_', ' ')} | {one['gold']:.2f} | {best['score']:.2f} of {best['tried']} answers | "
            f"`{best['text']!r}` | `{best['prompt']}` | {tricks or 'none'} |"
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
    kept = output / "probes.json"
    if not kept.exists():
        with served(judge / "stages" / "judge" / "model", arguments.port, output / "server") as endpoint:
            cache = output / "judge.sqlite"  # no replies of another judge
            if not (tiny / "stages" / "general_rl" / "stage.json").exists():
                options = {"endpoint": endpoint, "cache": cache}
                run("general_rl_tiny.yaml", tiny, *(f"{JUDGE}.{name}={value}" for name, value in options.items()))
            found = probed(endpoint, cache, tiny / "stages" / "preferences" / "model")
        kept.write_text(json.dumps(found), encoding="utf-8")
    reports = [json.loads((one / "report.json").read_text(encoding="utf-8")) for one in (tiny, judge)]
    rows, before, after = table(reports[0])
    took = minutes(tiny)
    probes = json.loads(kept.read_text(encoding="utf-8"))
    text = text_of(*reports, rows, [before, after], [took, minutes(judge)], probes)
    print(text)
    if arguments.results:
        arguments.results.mkdir(parents=True, exist_ok=True)
        (arguments.results / "general_rl_tiny.md").write_text(text, encoding="utf-8")
    met = after - before > GAIN and not any(row["collapsed"] for row in rows)
    met = met and all(row["improved"] for row in rows if row["task"] in PAID_BY)
    met = met and took is not None and took["wall"] <= MINUTES
    line = {"name": "general_rl_tiny", "ours": round(after - before, 4), "theirs": None, "unit": "mean accuracy"}
    print(json.dumps({**line, "ratio": None, "target": GAIN, "met": met}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
