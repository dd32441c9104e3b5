"""Does the server hold? Many streams at once, one in five requests malformed, round after round.

    python benchmarks/budget_server.py                         200 streams at once, 8 rounds, a server of its own
    python benchmarks/budget_server.py --streams 50 --rounds 3
    python benchmarks/budget_server.py --results docs/results/budget_server.json

`posttrain serve` is started on this machine with a tiny model whose answers are known (tests/served.py), so vLLM has to
be installed. Requests go to all four APIs, all streamed, each with a budget of its own. Every fifth has a field
misspelled, two that contradict each other, a value of the wrong type, or is no JSON. Some clients hang up midway.

    right   the answer is the model's, its thinking has exactly the budget's tokens, and the figures say so
    wrong   anything else: another status, another count, a missing figure, a refusal without its reason

Memory is the unique set size (what would be freed if they ended) of the process with the HTTP server, and of those of
the engine, after each round; growth is that of the last round over the middle one. An engine grows for a while by
itself, so `vllm serve` as it is answers as many tokens in the same way, and its growth stands beside ours.

The last line is JSON: `ours` is how many requests were answered wrongly. `met` asks for none of them, a live server,
and less than SLACK_MIB of growth in the HTTP server, and in all processes together over vLLM's own. There is no other
server whose answers could be compared: vLLM's own ignores these fields.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.served import ANSWER, MODEL, PATHS, Server, serving

MALFORMED = 5  # one request in so many
STOP_TOKENS = 117  # of the markers, the stop text (in bytes, for this model) and the answer
HANGS_UP = 25  # and one in so many is left by its client
SLACK_MIB = 16
# Small enough that all of it was written to once before the memory is compared: 40 MiB for the model of the tests.
CACHE = ("--num-gpu-blocks-override", "1280")

FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"thinking_buget": 5}, "did you mean thinking_budget"),
    ({"enableThinking": False}, "did you mean enable_thinking"),
    ({"thinking_budget": "5"}, "whole number"),
    ({"thinking_budget": 5, "thinking_token_budget": 6}, "contradicts"),
    ({"enable_thinking": False, "thinking_budget": 5}, "switched off"),
    ({"reasoning_effort": "huge"}, "one of"),
    ({"thinking": {"type": "perhaps"}}, "enabled, disabled or adaptive"),
    ({"thinking_minimum": 50, "thinking_budget": 5}, "lies above"),
]


@dataclass
class Request:
    """One request and what has to come back."""

    api: str
    body: dict[str, Any] | bytes
    budget: int = 0
    reason: str | None = None  # of the refusal
    hangs_up: bool = False

    @classmethod
    def drawn(cls, number: int, draw: random.Random, plain: bool) -> Request:
        """The request of that number. `plain`: for vLLM as it is, as many tokens without a budget."""
        api = draw.choice(list(PATHS))
        body: dict[str, Any] = {"model": MODEL, "temperature": 0.0, "stream": True}
        if api == "responses":
            body |= {"input": "hi", "max_output_tokens": 400}
        elif api == "completions":
            body |= {"prompt": "hi\n", "max_tokens": 400}
        else:
            body |= {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 400}
        if api in ("chat", "completions"):
            body["stream_options"] = {"include_usage": True}
        budget = draw.randrange(0, 60)
        if plain:
            length = "max_output_tokens" if api == "responses" else "max_tokens"
            return cls(api, {**body, length: budget + STOP_TOKENS}, hangs_up=number % HANGS_UP == 1)
        if number % MALFORMED == 0:
            fault, reason = draw.choice(FAULTS)
            if draw.random() < 0.1:
                return cls(api, b'{"model": ', reason="")
            return cls(api, {**body, **fault}, reason=reason)
        return cls(api, {**body, "thinking_budget": budget}, budget, hangs_up=number % HANGS_UP == 1)


@dataclass
class Round:
    """What came back in one round."""

    right: int = 0
    refused: int = 0
    left: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0


async def ask(url: str, request: Request, found: Round, plain: bool) -> None:
    """One connection, one request. What is wrong with the answer goes into `found.wrong`."""
    host, _, port = url.removeprefix("http://").partition(":")
    data = request.body if isinstance(request.body, bytes) else json.dumps(request.body).encode()
    reader, writer = await asyncio.open_connection(host, int(port), limit=2**20)
    try:
        head = f"POST {PATHS[request.api]} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n"
        writer.write(f"{head}content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()
        status = int((await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1])
        if request.hangs_up:
            await reader.read(50)
            found.left += 1
            return
        text = (await reader.read()).decode()
    finally:
        writer.close()
    if request.reason is not None:
        fault = _refusal_fault(request, status, text)
    elif plain:
        fault = "" if status == 200 else "no answer"
    else:
        fault = _answer_fault(request, status, text, found)
    if fault:
        found.wrong.append(f"{request.api}: {fault}: {data[:200]!r} -> {status} {text[-300:]!r}")
    elif request.reason is not None:
        found.refused += 1
    else:
        found.right += 1


def _refusal_fault(request: Request, status: int, text: str) -> str:
    if status != 400:
        return "not refused"
    return "" if (request.reason or "") in text else f"refused without {request.reason!r}"


def _answer_fault(request: Request, status: int, text: str, found: Round) -> str:
    if status != 200:
        return "no answer"
    lines = [line.strip().removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    events = [json.loads(line) for line in lines if line != "[DONE]"]
    said, details = READ[request.api](events)
    thought = details.get("reasoning_tokens", details.get("thinking_tokens"))
    found.tokens += request.budget
    if "".join(ANSWER) not in said:
        return f"the answer is {said[-60:]!r}"
    if (thought, details.get("thinking_closed_by")) != (request.budget, "budget"):
        return f"{thought} thinking tokens, closed by {details.get('thinking_closed_by')}, budget {request.budget}"
    return ""


def _chat(events: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    deltas = [
        choice.get("delta", {}).get("content") or choice.get("text") or ""
        for event in events
        for choice in event["choices"]
    ]
    usage = [event["usage"] for event in events if event.get("usage")]
    return "".join(deltas), usage[-1]["completion_tokens_details"] if usage else {}


def _messages(events: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    said = "".join(event.get("delta", {}).get("text") or "" for event in events)
    last = [event for event in events if event["type"] == "message_delta"]
    return said, last[-1]["usage"]["output_tokens_details"] if last else {}


def _responses(events: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    said = "".join(event.get("delta") or "" for event in events if event["type"] == "response.output_text.delta")
    done = [event["response"] for event in events if event["type"] == "response.completed"]
    return said, done[-1]["usage"]["output_tokens_details"] if done else {}


READ: dict[str, Callable[[list[dict[str, Any]]], tuple[str, dict[str, Any]]]] = {
    "chat": _chat, "completions": _chat, "messages": _messages, "responses": _responses,
}  # fmt: skip


async def one_round(url: str, count: int, draw: random.Random, plain: bool) -> Round:
    """So many requests, all at once."""
    found, began = Round(), time.monotonic()
    jobs = [ask(url, Request.drawn(number, draw, plain), found, plain) for number in range(count)]
    for outcome in await asyncio.gather(*jobs, return_exceptions=True):
        if isinstance(outcome, BaseException):
            found.wrong.append(f"no whole answer: {outcome!r}")
    found.seconds = time.monotonic() - began
    return found


def memory(server: Server) -> tuple[float, float]:
    """MiB that the process with the HTTP server, and all others together, have for themselves."""
    root = psutil.Process(server.process.pid)
    rest = sum(each.memory_full_info().uss for each in root.children(recursive=True))
    return root.memory_full_info().uss / 2**20, rest / 2**20


def alive(server: Server) -> bool:
    """Whether the server still runs, answers, and counted no budget that was not kept."""
    status, _ = server.post(
        PATHS["chat"], {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    )
    unenforced = [
        line
        for line in server.get("/metrics").splitlines()
        if line.startswith("posttrain:thinking_budget_unenforced_total")
    ]
    return server.process.poll() is None and status == 200 and [line.split()[-1] for line in unenforced] == ["0.0"]


@dataclass
class Run:
    """One server under load: its rounds, the memory after each (HTTP server, engine), and whether it lived on."""

    rounds: list[Round] = field(default_factory=list)
    mib: list[tuple[float, float]] = field(default_factory=list)
    lives: bool = True

    def growth(self, side: int) -> float:
        return self.mib[-1][side] - self.mib[len(self.mib) // 2 - 1][side]


def load(streams: int, rounds: int, seed: int, plain: bool) -> Run:
    """A server of its own, asked round after round."""
    draw, run = random.Random(seed), Run()
    options = ("--max-num-seqs", "256", *CACHE)
    with tempfile.TemporaryDirectory() as scratch, serving(Path(scratch), *options, plain=plain) as server:
        for number in range(rounds):
            run.rounds.append(asyncio.run(one_round(server.url, streams, draw, plain)))
            time.sleep(1)
            run.mib.append(memory(server))
            last, mib = run.rounds[-1], run.mib[-1]
            print(
                f"{'vLLM as it is' if plain else 'ours'}, round {number + 1}: {last.right} right, "
                f"{last.refused} refused, {last.left} left, {len(last.wrong)} wrong in {last.seconds:.1f} s; "
                f"{mib[0]:.1f} + {mib[1]:.1f} MiB",
                flush=True,
            )
            for wrong in last.wrong[:3]:
                print(f"    {wrong}")
        run.lives = plain or alive(server)
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=200, help="requests at once")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    ours = load(arguments.streams, arguments.rounds, arguments.seed, plain=False)
    theirs = load(arguments.streams, arguments.rounds, arguments.seed, plain=True)
    wrong = sum(len(each.wrong) for each in ours.rounds)
    more = sum(ours.growth(side) - theirs.growth(side) for side in (0, 1))
    result = {
        "name": "budget_server",
        "ours": wrong,
        "theirs": None,
        "unit": f"wrong answers of {arguments.streams * arguments.rounds} requests, {arguments.streams} at once",
        "ratio": None,
        "target": 0,
        "met": wrong == 0 and ours.lives and ours.growth(0) < SLACK_MIB and more < SLACK_MIB,
        "right": sum(each.right for each in ours.rounds),
        "refused": sum(each.refused for each in ours.rounds),
        "left_by_client": sum(each.left for each in ours.rounds),
        "alive": ours.lives,
        "growth_mib": [round(ours.growth(side), 1) for side in (0, 1)],
        "growth_mib_of_vllm": [round(theirs.growth(side), 1) for side in (0, 1)],
        "mib": [[round(part, 1) for part in each] for each in ours.mib],
        "mib_of_vllm": [[round(part, 1) for part in each] for each in theirs.mib],
        "seconds": [round(each.seconds, 1) for each in ours.rounds],
        "cores": os.cpu_count(),
        "seed": arguments.seed,
    }
    if arguments.results:
        arguments.results.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
