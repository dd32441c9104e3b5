"""Does preparation keep up? Rendering, tokens, mask and packing against the bare batch tokenization of the same text.

    python benchmarks/preparation.py                          20,000 conversations, beside TRL's own preparation
    python benchmarks/preparation.py --conversations 100000   the stated size
    python benchmarks/preparation.py --memory 1000000         and the memory, at 100,000 and at a million

The tokenizer is Qwen3's own (benchmarks/qwen3_tokenizer.py). The conversations are made of Python's documentation and
sources: one to three turns, every second one with reasoning, lengths log-normal. Unit: CPU seconds of this process, one
tokenizer thread. The three are run in turns, chunk by chunk, so that a noisy machine is noisy for all:

    bare    `tokenizer.backend_tokenizer.encode_batch_fast(texts)` and its ids as lists: the cheapest call there is
            (`tokenizer(texts)`, what one would write, is reported beside it)
    ours    tokenize_conversations + pack, from rows of messages to packed rows on disk
    TRL     SFTTrainer's own preparation of the same rows: assistant_only_loss, packing

The last line is JSON: `ratio` is ours / bare, `theirs` TRL's CPU seconds.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

TARGET = 1.5
CHUNK = 5000  # conversations measured in one turn
MAX_LENGTH = 4096
# What memory may grow by when the data grows tenfold: the lengths and places of the samples are held, nothing else is.
BYTES_A_SAMPLE = 150
SLACK = 32 * 2**20


def conversations(count: int, words: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows of `messages`; `words` is the median length of an answer."""
    from pydoc_data.topics import topics

    rng = random.Random(seed)
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    prose = " ".join(topics[name] for name in sorted(topics)).split(" ")
    code = " ".join(path.read_text(encoding="utf-8") for path in sources[:80]).split(" ")

    def passage(median: float) -> str:
        length = max(3, int(rng.lognormvariate(0, 0.7) * median))
        text = prose if rng.random() < 0.7 else code
        start = rng.randrange(max(1, len(text) - length))
        return " ".join(text[start : start + length])

    for number in range(count):
        messages: list[dict[str, Any]] = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            turn = {"role": "assistant", "content": passage(words)}
            if number % 2:
                turn["reasoning_content"] = passage(2 * words)
            messages += [{"role": "user", "content": passage(words / 3)}, turn]
        yield {"messages": messages}


def write_corpus(path: Path, count: int, words: int) -> Any:
    from datasets import Dataset, Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    text = Value("string")
    features = Features({"messages": List({"role": text, "content": text, "reasoning_content": text})})
    with ArrowWriter(path=str(path), features=features, writer_batch_size=1000) as writer:
        for row in conversations(count, words):
            writer.write({"messages": [{"reasoning_content": None, **message} for message in row["messages"]]})
        writer.finalize()
    return Dataset.from_file(str(path))


def ours(data: Any, tokenizer: Any, directory: Path) -> Any:
    from posttrain.data.packing import pack
    from posttrain.data.tokens import tokenize_conversations
    from posttrain.templates.families import get_family

    samples = tokenize_conversations(
        data, tokenizer, get_family("qwen3"), max_length=MAX_LENGTH, cache_file=directory / "samples.arrow"
    )
    return pack(samples, MAX_LENGTH, cache_file=directory / "rows.arrow")


def rendered(data: Any) -> list[str]:
    from posttrain.templates.families import get_family
    from posttrain.templates.render import render_training

    family = get_family("qwen3")
    return [render_training(row["messages"], family)[0] for row in data]


def trl_preparation(tokenizer: Any, sample: Any, directory: Path) -> Callable[[Any], Any]:
    """SFTTrainer's own preparation, as its constructor calls it; the trainer around it is built beforehand."""
    import trl
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from trl import SFTConfig, SFTTrainer

    template = Path(inspect.getfile(trl)).parent / "chat_templates" / "qwen3.jinja"
    tokenizer.chat_template = template.read_text(
        encoding="utf-8"
    )  # TRL swaps its training variant in for this very text
    model = Qwen3ForCausalLM(
        Qwen3Config(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, head_dim=8)
    )
    config = SFTConfig(
        str(directory / "trl"), assistant_only_loss=True, packing=True, max_length=MAX_LENGTH, use_cpu=True, bf16=False,
        report_to="none", gradient_checkpointing=False,
    )  # fmt: skip
    trainer = SFTTrainer(model=model, args=config, train_dataset=sample, processing_class=tokenizer)
    return lambda data: trainer._prepare_dataset(data, tokenizer, config, config.packing, None, "train")


def cpu_seconds(function: Callable[[], Any]) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


def measure_speed(count: int, words: int, with_trl: bool, directory: Path) -> dict[str, float]:
    import datasets
    from qwen3_tokenizer import load_qwen3_tokenizer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    tokenizer = load_qwen3_tokenizer()
    backend = tokenizer.backend_tokenizer
    data = write_corpus(directory / "corpus.arrow", count, words)
    prepare = trl_preparation(tokenizer, data.select(range(2)), directory) if with_trl else None
    spent = {"bare": 0.0, "call": 0.0, "ours": 0.0, "trl": 0.0, "tokens": 0.0}
    batches = [slice(first, first + 1000) for first in range(0, CHUNK, 1000)]
    for turn, first in enumerate(range(0, count, CHUNK)):
        chunk = data.select(range(first, min(first + CHUNK, count)))
        texts = rendered(chunk)

        def bare(texts: list[str] = texts) -> None:
            for batch in batches:
                ids = [each.ids for each in backend.encode_batch_fast(texts[batch], add_special_tokens=False)]
                spent["tokens"] += sum(map(len, ids))

        jobs: list[tuple[str, Callable[[], Any]]] = [
            ("bare", bare),
            ("call", lambda texts=texts: [tokenizer(texts[batch]) for batch in batches if texts[batch]]),
            ("ours", lambda chunk=chunk: ours(chunk, tokenizer, directory)),
        ]
        if prepare:
            jobs.append(("trl", lambda chunk=chunk: prepare(chunk)))
        for name, job in jobs if turn % 2 else reversed(jobs):
            spent[name] += cpu_seconds(job)
    return spent


def measure_memory(count: int, words: int, directory: Path) -> dict[str, float]:
    """Peak anonymous memory (what cannot be dropped) and peak resident memory (with the mapped files' cached pages)."""
    from qwen3_tokenizer import load_qwen3_tokenizer

    tokenizer = load_qwen3_tokenizer()
    data = write_corpus(directory / "corpus.arrow", count, words)
    ours(data.select(range(1000)), tokenizer, directory)  # everything is loaded and warm before the count begins
    peak, done = {"anonymous": 0, "resident": 0}, threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            for name, key in (("anonymous", "RssAnon"), ("resident", "VmRSS")):
                peak[name] = max(peak[name], 1024 * int(status[key].split()[0]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    rows = ours(data, tokenizer, directory)
    done.set()
    watcher.join()
    return {**peak, "conversations": count, "rows": len(rows)}


def memory_at(count: int, words: int) -> dict[str, float]:
    """`measure_memory` in a fresh process."""
    command = [sys.executable, __file__, "--memory-of", str(count), "--words", str(words)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    print(
        f"memory at {count:>9,} conversations: {found['anonymous'] / 2**20:,.0f} MiB anonymous, "
        f"{found['resident'] / 2**20:,.0f} MiB with the mapped files' cached pages"
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=20_000)
    parser.add_argument("--words", type=int, default=30, help="median length of an answer (its reasoning: twice that)")
    parser.add_argument("--without-trl", action="store_true")
    parser.add_argument("--memory", type=int, default=0, help="also the memory at this many short conversations")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.memory_of:
            print(json.dumps(measure_memory(arguments.memory_of, arguments.words, Path(scratch))))
            return
        spent = measure_speed(arguments.conversations, arguments.words, not arguments.without_trl, Path(scratch))
    bare = spent["bare"]
    each = spent["tokens"] / arguments.conversations
    print(f"{arguments.conversations:,} conversations of {each:.0f} tokens; CPU seconds:")
    for name, label in (("bare", "bare"), ("call", "tokenizer(texts)"), ("ours", "ours"), ("trl", "TRL")):
        print(f"  {label:17} {spent[name]:8.1f}   {spent[name] / bare:.2f}x")
    ratio = spent["ours"] / bare
    result = {
        "name": "preparation",
        "ours": round(spent["ours"], 1),
        "theirs": round(spent["trl"], 1) or None,
        "bare": round(bare, 1),
        "unit": f"CPU s for {arguments.conversations} conversations",
        "ratio": round(ratio, 2),
        "target": TARGET,
        "met": ratio <= TARGET,
    }
    if arguments.memory:
        small, large = memory_at(arguments.memory // 10, 12), memory_at(arguments.memory, 12)
        bound = small["anonymous"] + SLACK + BYTES_A_SAMPLE * (large["conversations"] - small["conversations"])
        result["memory_mib"] = round(large["anonymous"] / 2**20)
        result["memory_bound_mib"] = round(bound / 2**20)
        result["met"] = result["met"] and large["anonymous"] <= bound
    print(json.dumps(result))


if __name__ == "__main__":
    main()
