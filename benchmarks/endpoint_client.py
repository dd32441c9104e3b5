"""What an answer of a served model costs its client: seconds of a core, beside the client that most people use.

    python benchmarks/endpoint_client.py [--answers 3000]

A server in another process says the same short answer, 0.2 s after it is asked, so that its speed is no part of the
figure. 128 requests in flight, in turns:

    ours      `ServedGenerator`: requests made from prompts, answers read, parsed
    theirs    `openai.AsyncOpenAI`, the answers' objects thrown away; null where it is not installed

Unit: microseconds of this process's CPU time an answer, the median of five turns. The last line is JSON; `met` asks for
half of theirs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

IN_FLIGHT = 128
DELAY = 0.2  # seconds
TARGET = 0.5
TURNS = 5
ANSWER = {
    "id": "chatcmpl-0", "object": "chat.completion", "created": 1, "model": "canned", "prompt_token_ids": [1] * 25,
    "choices": [
        {
            "index": 0, "finish_reason": "stop", "logprobs": None, "token_ids": [2] * 40,
            "message": {"role": "assistant", "content": f"<think>\n{'Let me check. ' * 8}\n</think>\n\nIt is 42."},
        }
    ],
    "usage": {"prompt_tokens": 25, "completion_tokens": 40, "total_tokens": 65},
}  # fmt: skip


class Canned(asyncio.Protocol):
    """Every request is answered alike, after a while."""

    data = json.dumps(ANSWER).encode()
    reply = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data) + data

    def connection_made(self, transport: Any) -> None:
        self.transport, self.got = transport, b""

    def data_received(self, data: bytes) -> None:
        self.got += data
        head, _, body = self.got.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
        if body and len(body) >= length:
            self.got = b""
            asyncio.get_running_loop().call_later(DELAY, self.transport.write, self.reply)


def serve(told: Any) -> None:
    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Canned, "127.0.0.1", 0, backlog=IN_FLIGHT)
        told.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def ours(url: str, count: int) -> None:
    from posttrain.model.endpoint import Endpoint
    from posttrain.model.generation import Prompt
    from posttrain.model.served import ServedGenerator
    from posttrain.recipe.endpoint import EndpointSpec
    from posttrain.templates.families import get_family

    endpoint = Endpoint(EndpointSpec(endpoint=url, model="canned", concurrency=IN_FLIGHT))
    generate = ServedGenerator(endpoint, get_family("qwen3"), max_new_tokens=256)
    asked = [Prompt([{"role": "user", "content": f"{number}?"}], mode="thinking") for number in range(count)]
    if any(answer.tokens != 40 or not answer.message.reasoning for answer in generate(asked, seed=0)):
        raise SystemExit("an answer came without its thinking or its count")


def theirs(url: str, count: int) -> None:
    import openai

    async def run() -> None:
        room = asyncio.Semaphore(IN_FLIGHT)
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

            async def ask(number: int) -> None:
                async with room:
                    messages: Any = [{"role": "user", "content": f"{number}?"}]
                    await client.chat.completions.create(model="canned", messages=messages, max_tokens=256)

            await asyncio.gather(*map(ask, range(count)))

    asyncio.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=3000, help="a turn")
    parser.add_argument("--results", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    hears, tells = multiprocessing.Pipe(duplex=False)
    server = multiprocessing.Process(target=serve, args=(tells,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{hears.recv()}/v1"
    clients = {"ours": ours, "theirs": theirs}
    try:
        import openai  # noqa: F401
    except ImportError:
        del clients["theirs"]
    costs: dict[str, list[float]] = {name: [] for name in clients}
    for ask in clients.values():
        ask(url, IN_FLIGHT)  # imports
    for _ in range(TURNS):
        for name, ask in clients.items():
            began = time.process_time()
            ask(url, arguments.answers)
            costs[name].append(1e6 * (time.process_time() - began) / arguments.answers)
    server.terminate()
    own = statistics.median(costs["ours"])
    other = statistics.median(costs["theirs"]) if "theirs" in costs else None
    line = {
        "name": "endpoint_client", "ours": round(own), "theirs": other and round(other),
        "unit": f"microseconds of CPU an answer, {IN_FLIGHT} requests in flight",
        "ratio": other and round(own / other, 3), "target": TARGET, "met": other is None or own / other <= TARGET,
    }  # fmt: skip
    if arguments.results:
        turns = {name: [round(each) for each in found] for name, found in costs.items()}
        arguments.results.write_text(json.dumps({**line, "turns": turns}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
