"""A teacher's stored log-probabilities: speed against the disk's, memory flat in its size.

    python benchmarks/teacher_cache.py                 a million tokens, top 64 of 151,936 entries

**Speed**: the cache of `--tokens` tokens written and read through `posttrain`'s own code, beside a plain file of the
same bytes written and read in turns on the same disk, in blocks of 8 MiB. Writing ends with an fsync of what was
written; before reading, both are dropped from the page cache. What is written is made beforehand (a teacher's part is
not counted). Unit: MiB a second of wall time, the median of `--turns`; and MiB a second of the processor's time, which
is what a busy machine leaves alone.

**Memory**: the anonymous memory (RssAnon) that a process reading shuffled batches grows by, for a quarter of the cache
and for all of it. Files are mapped: their pages (RssFile) are the kernel's to take back, and are told apart.

The last line is JSON: `ours` is the reading speed by wall time, `theirs` the plain file's; `met` asks for half the
disk's speed in both directions, and that memory does not grow with the cache.
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

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "teacher_cache.json"
VOCABULARY, K, ROW = 151_936, 64, 512
BLOCK = 8 << 20


def rows_of(tokens: int) -> Any:
    import datasets
    import numpy as np

    number = tokens // ROW
    ids = np.random.default_rng(0).integers(0, VOCABULARY, size=(number, ROW + 1), dtype=np.int32)
    labels = ids.copy()
    labels[:, 0] = -100
    features = datasets.Features(dict.fromkeys(("input_ids", "labels"), datasets.List(datasets.Value("int32"))))
    return datasets.Dataset.from_dict({"input_ids": list(ids), "labels": list(labels)}, features=features)


class Ready:
    """A teacher whose answer stands already."""

    def __init__(self) -> None:
        import torch

        from posttrain.distill.buckets import TopK

        draw = torch.Generator().manual_seed(0)
        positions = 2 * 8192
        ids = torch.randint(VOCABULARY, (positions, K), generator=draw)
        log_probs = torch.randn(positions, K, generator=draw).log_softmax(1) - 0.05
        self._top = TopK(ids, log_probs, torch.full((positions,), -3.0))

    def __call__(self, sequences: Any, spans: Any) -> Any:
        return self._top[: sum(end - start for own in spans for start, end in own)]


def drop(paths: list[Path]) -> None:
    """Have the kernel forget what it holds of these files."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(began: tuple[float, float]) -> tuple[float, float]:
    """Seconds of wall time and of the processor's."""
    wall, processor = now()
    return wall - began[0], processor - began[1]


def shards(directory: Path) -> list[Path]:
    return sorted(directory.glob("shard-*.arrow"))


def write_cache(directory: Path, rows: Any, teacher: Any) -> tuple[float, float]:
    from posttrain.distill.cache_write import fill

    began = now()
    fill(directory, rows, lambda: teacher, {"made": "here"}, k=K, entries=VOCABULARY)
    for path in shards(directory):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return since(began)


def read_cache(directory: Path, batch: int = 16) -> tuple[float, float]:
    import random

    from posttrain.distill.cache import LogprobCache

    began = now()
    cache = LogprobCache(directory)
    order = list(range(len(cache)))
    random.Random(0).shuffle(order)
    for at in range(0, len(order), batch):
        cache.read(order[at : at + batch])
    return since(began)


def write_plain(path: Path, size: int) -> tuple[float, float]:
    block = os.urandom(BLOCK)
    began = now()
    with path.open("wb", buffering=0) as file:
        for _ in range(size // BLOCK):
            file.write(block)
        os.fsync(file.fileno())
    return since(began)


def read_plain(path: Path) -> tuple[float, float]:
    began = now()
    with path.open("rb", buffering=0) as file:
        while file.read(BLOCK):
            pass
    return since(began)


def resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def memory_of_reading(directory: Path, share: float) -> dict[str, float]:
    """In a process of its own: MiB of anonymous memory before and at most, looked at after every tenth batch."""
    import random

    from posttrain.distill.cache import LogprobCache

    cache = LogprobCache(directory)
    cache.read([0])
    before = resident("RssAnon")
    order = list(range(int(len(cache) * share)))
    random.Random(0).shuffle(order)
    most = before
    for number, at in enumerate(range(0, len(order), 16)):
        cache.read(order[at : at + 16])
        if number % 10 == 0:
            most = max(most, resident("RssAnon"))
    return {"grown_mib": round(most - before, 1), "mapped_mib": round(resident("RssFile"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; default: a temporary one")
    parser.add_argument("--reading", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.reading:
        print(json.dumps(memory_of_reading(Path(given.reading[0]), float(given.reading[1]))))
        return
    rows, teacher = rows_of(given.tokens), Ready()
    times: dict[str, list[tuple[float, float]]] = {"write": [], "write_plain": [], "read": [], "read_plain": []}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for turn in range(given.turns):
            directory, plain = Path(folder) / f"cache-{turn}", Path(folder) / f"plain-{turn}"
            times["write"].append(write_cache(directory, rows, teacher))
            size = sum(path.stat().st_size for path in shards(directory))
            times["write_plain"].append(write_plain(plain, size))
            drop([*shards(directory), plain])
            times["read"].append(read_cache(directory))
            times["read_plain"].append(read_plain(plain))
            plain.unlink()
        memory = {}
        for share in ("0.25", "1.0"):
            command = [sys.executable, __file__, "--reading", str(directory), share]
            done = subprocess.run(
                command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
            )
            memory[share] = json.loads(done.stdout.splitlines()[-1])
    speed, by_processor = (
        {name: round(size / 2**20 / statistics.median(one[which] for one in all)) for name, all in times.items()}
        for which in (0, 1)
    )
    tokens = len(rows) * ROW
    result = {
        "command": "python benchmarks/teacher_cache.py",
        "tokens": tokens,
        "bytes_a_token": round(size / tokens, 1),
        "mib_a_second": speed,
        "mib_a_processor_second": by_processor,
        "memory_by_share_read": memory,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    flat = memory["1.0"]["grown_mib"] <= memory["0.25"]["grown_mib"] + 16
    met = flat and all(speed[one] >= speed[f"{one}_plain"] / 2 for one in ("read", "write"))
    line = {"name": "teacher_cache", "ours": speed["read"], "theirs": speed["read_plain"], "unit": "MiB/s read"}
    ratio = round(speed["read"] / speed["read_plain"], 2)
    target = "half the disk's speed, read and written; memory flat in the cache's size"
    print(json.dumps({**line, "ratio": ratio, "target": target, "met": met}))


if __name__ == "__main__":
    main()
