"""Does our client keep a served teacher busy? A real vLLM server, asked by us and by vLLM's own load generator.

    python benchmarks/served_teacher.py [--prompts 600] [--layers 8] [--turns 3]

One `posttrain serve` on this machine with a model whose answers are known (tests/served.py; `--layers` make it as slow
as a model is). The same chat prompts, 128 in flight, temperature 1, in turns:

    ours      `ServedGenerator`, which the off-policy stages ask through: answers whole, parsed, with their token ids
    theirs    `vllm bench serve`: streamed, thrown away

Unit: completion tokens a second of wall time, the median of the turns; both share the machine with the server. The
last line is JSON; `met` asks for 0.95 of theirs. Beside it stands what busy neighbours do not change: the CPU time that
an answer costs the server, and our client (theirs is a program started for every turn, which cannot be told apart).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.served import FAMILY, MODEL, Server, build_thinker, environment, serving

TARGET = 0.95
IN_FLIGHT = 128
LONGEST = 256  # tokens of an answer


def questions(count: int, turn: int) -> list[str]:
    return [f"What is {number} times {turn + 7}?" for number in range(count)]


def ours(server: Server, count: int, turn: int) -> float:
    """Tokens a second."""
    from posttrain.model.endpoint import Endpoint
    from posttrain.model.generation import Prompt
    from posttrain.model.served import ServedGenerator
    from posttrain.recipe.endpoint import EndpointSpec
    from posttrain.templates.families import Sampling, get_family

    family = get_family(FAMILY)
    generate = ServedGenerator(
        Endpoint(EndpointSpec(endpoint=f"{server.url}/v1", model=MODEL, concurrency=IN_FLIGHT)),
        family,
        max_new_tokens=LONGEST,
        sampling=dict.fromkeys(family.modes, Sampling(temperature=1.0)),
    )
    prompts = [Prompt([{"role": "user", "content": text}], mode="thinking") for text in questions(count, turn)]
    began = time.monotonic()
    answers = generate(prompts, seed=turn)
    seconds = time.monotonic() - began
    if not all(answer.message.reasoning and len(answer.completion_ids) == answer.tokens for answer in answers):
        raise SystemExit("an answer came without its thinking or its ids")
    return sum(answer.tokens for answer in answers) / seconds


def theirs(server: Server, count: int, turn: int, scratch: Path) -> float:
    """Tokens a second, as `vllm bench serve` counts them."""
    rows = scratch / "prompts.jsonl"
    rows.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in questions(count, turn)), encoding="utf-8")
    command = [
        sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--backend", "openai-chat",
        "--base-url", server.url, "--endpoint", "/v1/chat/completions", "--model", MODEL,
        "--tokenizer", str(scratch / "model"), "--dataset-name", "custom", "--dataset-path", str(rows),
        "--skip-chat-template", "--custom-output-len", str(LONGEST), "--num-prompts", str(count),
        "--max-concurrency", str(IN_FLIGHT), "--temperature", "1.0", "--disable-tqdm", "--save-result",
        "--result-dir", str(scratch), "--result-filename", "theirs.json",
    ]  # fmt: skip
    done = subprocess.run(command, env=environment(scratch / "site"), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"vllm bench serve failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads((scratch / "theirs.json").read_text(encoding="utf-8"))
    if found["completed"] != count:
        raise SystemExit(f"vllm bench serve had {found['completed']} of {count} answers")
    return float(found["output_throughput"])


def cpu_of(server: Server) -> float:
    """Seconds, of all its processes."""
    main = psutil.Process(server.process.pid)
    return sum(sum(one.cpu_times()[:2]) for one in [main, *main.children(recursive=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=600)
    parser.add_argument("--layers", type=int, default=8, help="of the served model")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--results", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    speeds: dict[str, list[float]] = {"ours": [], "theirs": []}
    cpu: dict[str, list[float]] = {"server, asked by ours": [], "server, asked by theirs": [], "our client": []}
    milliseconds = 1000 / arguments.prompts  # an answer
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        build_thinker(scratch / "model", layers=arguments.layers)
        with serving(scratch, "--max-num-seqs", str(IN_FLIGHT)) as server:
            ours(server, IN_FLIGHT, 0)  # warm
            for turn in range(1, arguments.turns + 1):
                began, client = cpu_of(server), time.process_time()
                speeds["ours"].append(ours(server, arguments.prompts, turn))
                cpu["our client"].append(milliseconds * (time.process_time() - client))
                between = cpu_of(server)
                cpu["server, asked by ours"].append(milliseconds * (between - began))
                speeds["theirs"].append(theirs(server, arguments.prompts, turn, scratch))
                cpu["server, asked by theirs"].append(milliseconds * (cpu_of(server) - between))
                print(
                    f"turn {turn}: {speeds['ours'][-1]:.0f} and {speeds['theirs'][-1]:.0f} tokens a second", flush=True
                )
    own, other = (statistics.median(each) for each in speeds.values())
    line = {
        "name": "served_teacher", "ours": round(own), "theirs": round(other),
        "unit": f"completion tokens a second, {IN_FLIGHT} requests in flight", "ratio": round(own / other, 3),
        "target": TARGET, "met": own / other >= TARGET,
        "cpu_ms_an_answer": {name: round(statistics.median(found), 2) for name, found in cpu.items()},
    }  # fmt: skip
    if arguments.results:
        turns = {name: [round(each) for each in found] for name, found in speeds.items()}
        kept = {**line, "turns": turns, "prompts": arguments.prompts, "layers": arguments.layers}
        kept["cores"] = len(os.sched_getaffinity(0))  # for server and client together
        arguments.results.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
