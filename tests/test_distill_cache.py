"""Stored log-probabilities: what is read is what was written, and what is wrong with a cache is noticed and mended."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import Qwen3Config, Qwen3ForCausalLM

from posttrain.distill import local_teacher
from posttrain.distill.buckets import TopK
from posttrain.distill.cache import LogprobCache
from posttrain.distill.cache_shards import plan_shards
from posttrain.distill.cache_write import BATCH_TOKENS, fill, spans_of
from posttrain.distill.local_teacher import LocalTeacher, distributions, read_at_once
from posttrain.errors import PosttrainError
from posttrain.model.artifacts import MANIFEST, read_json

ENTRIES, K = 70_000, 8  # more than 16 bits


class Invented:
    """A teacher whose answer follows from the tokens alone, and who counts what it is asked."""

    def __init__(self, fails_after: int | None = None) -> None:
        self.asked, self.fails_after = 0, fails_after

    def __call__(self, sequences: Sequence[Sequence[int]], spans: Sequence[Sequence[tuple[int, int]]]) -> TopK:
        if self.fails_after is not None and self.asked >= self.fails_after:
            raise KeyboardInterrupt
        before = [
            sequence[at - 1]
            for sequence, own in zip(sequences, spans, strict=True)
            for start, end in own
            for at in range(start, end)
        ]
        self.asked += len(before)
        return self.told(before)

    @staticmethod
    def told(before: Sequence[int]) -> TopK:
        ids = (torch.tensor(before)[:, None] * 31 + torch.arange(K) * 9001) % ENTRIES
        log_probs = -0.8 * torch.arange(1, K + 1).float() - torch.tensor(before)[:, None] / 97
        return TopK(ids, log_probs, torch.log1p(-log_probs.exp().sum(1)))


def rows(number: int = 40, packed: bool = False) -> Dataset:
    draw = np.random.default_rng(1)
    made: dict[str, list[Any]] = {"input_ids": [], "labels": []}
    if packed:
        made["seq_lengths"] = []
    for _ in range(number):
        lengths = draw.integers(3, 12, size=3 if packed else 1)
        ids = draw.integers(1, 90, size=int(lengths.sum()))
        supervised = draw.random(len(ids)) < 0.6
        made["input_ids"].append(ids.tolist())
        made["labels"].append(np.where(supervised, ids, -100).tolist())
        if packed:
            made["seq_lengths"].append(lengths.tolist())
    import datasets

    lists = datasets.List(datasets.Value("int32"))
    return Dataset.from_dict(made, features=datasets.Features(dict.fromkeys(made, lists)))


def made(directory: Path, data: Dataset, teacher: Invented, **options: Any) -> int:
    settings: dict[str, Any] = {"k": K, "entries": ENTRIES, "shard_tokens": 40, **options}
    return fill(directory, data, lambda: teacher, {"teacher": "invented", "top_k": K}, **settings)


def supervised_before(data: Dataset, row: int) -> list[int]:
    """The tokens before the supervised ones of a row, as TRL's collator leaves its labels."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free="seq_lengths" in data.column_names)
    batch = collate([data[row]])
    places = (batch["labels"][0, 1:] != -100).nonzero()[:, 0]
    return [int(batch["input_ids"][0, at]) for at in places]


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_read_is_what_the_teacher_told(packed: bool, tmp_path: Path) -> None:
    data, teacher = rows(packed=packed), Invented()
    asked = made(tmp_path, data, teacher)
    cache = LogprobCache(tmp_path)
    order = [39, 0, 17, 17, 3]
    assert len(cache) == 40 and cache.tokens == asked == teacher.asked
    before = [token for row in order for token in supervised_before(data, row)]
    read, told = cache.read(order), Invented.told(before)
    assert torch.equal(read.ids, told.ids)
    torch.testing.assert_close(read.log_probs, told.log_probs, rtol=2**-11, atol=0)  # half a unit of float16
    torch.testing.assert_close(read.tail, told.tail, rtol=2**-11, atol=1e-7)


def test_datasets_reads_a_shard(tmp_path: Path) -> None:
    data = rows()
    made(tmp_path, data, Invented())
    shard = read_json(tmp_path / MANIFEST)["shards"][1]
    opened = Dataset.from_file(str(tmp_path / shard["file"]))
    cache = LogprobCache(tmp_path)
    assert len(opened) == shard["rows"]
    for place in (0, shard["rows"] - 1):
        row, read = opened[place], cache.read([shard["first"] + place])
        ids = np.array(row["ids_low"], dtype=np.int64) + 65_536 * np.array(row["ids_high"], dtype=np.int64)
        assert np.array_equal(ids, read.ids.numpy())
        assert np.array_equal(np.array(row["log_probs"], dtype=np.float32), read.log_probs.numpy())
        assert np.array_equal(np.array(row["tail"], dtype=np.float32), read.tail.numpy())


def test_a_small_vocabulary_takes_two_bytes_an_id(tmp_path: Path) -> None:
    data = rows()
    fill(tmp_path, data, lambda: _Fitting(), {"teacher": "fitting"}, k=K, entries=60_000)
    opened = Dataset.from_file(str(tmp_path / "shard-00000.arrow"))
    assert opened.column_names == ["log_probs", "tail", "ids_low"]
    assert LogprobCache(tmp_path).read([0]).ids.max() < 60_000


class _Fitting(Invented):
    @staticmethod
    def told(before: Sequence[int]) -> TopK:
        top = Invented.told(before)
        return TopK(top.ids % 60_000, top.log_probs, top.tail)


def test_a_second_reader_costs_no_teacher(tmp_path: Path) -> None:
    data = rows()
    made(tmp_path, data, Invented())

    def never() -> Invented:
        raise AssertionError("the teacher was opened")

    again = fill(tmp_path, data, never, {"teacher": "invented", "top_k": K}, k=K, entries=ENTRIES, shard_tokens=40)
    assert again == 0


def test_another_fingerprint_is_refused_with_the_difference(tmp_path: Path) -> None:
    made(tmp_path, rows(), Invented())
    with pytest.raises(PosttrainError, match=r"teacher: invented -> another; top_k: 8 -> 4"):
        fill(tmp_path, rows(), Invented, {"teacher": "another", "top_k": 4}, k=4, entries=ENTRIES)


def test_an_interrupted_cache_goes_on_after_its_last_whole_shard(tmp_path: Path) -> None:
    data = rows()
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    total = made(whole, data, Invented())
    shards = plan_shards(data, 40)
    assert len(shards) == 4
    stopped = Invented(fails_after=sum(shard.tokens for shard in shards[:3]))
    with pytest.raises(KeyboardInterrupt):
        made(interrupted, data, stopped)
    with pytest.raises(PosttrainError, match="not whole"):
        LogprobCache(interrupted)
    going_on = Invented()
    made(interrupted, data, going_on)
    assert going_on.asked == total - stopped.asked
    assert {file.name: file.read_bytes() for file in interrupted.iterdir()} == {
        file.name: file.read_bytes() for file in whole.iterdir()
    }


@pytest.mark.parametrize("fault", ["a byte", "a cut", "gone", "a record cut", "a record of nothing"])
def test_a_corrupt_shard_is_found_and_made_anew_alone(fault: str, tmp_path: Path) -> None:
    data = rows()
    made(tmp_path, data, Invented())
    shard = read_json(tmp_path / MANIFEST)["shards"][2]
    path = tmp_path / shard["file"]
    good = path.read_bytes()
    record = path.with_suffix(".json")
    if fault == "gone":
        path.unlink()
    elif fault.startswith("a record"):  # as a machine that goes down leaves them
        record.write_text(record.read_text()[:9] if fault == "a record cut" else "[]")
    else:
        path.write_bytes(good[:-7] if fault == "a cut" else good[:-900] + bytes([good[-900] ^ 1]) + good[-899:])
    teacher = Invented()
    assert made(tmp_path, data, teacher) == teacher.asked == shard["tokens"]
    assert path.read_bytes() == good
    LogprobCache(tmp_path)


def test_what_is_whole_is_only_read(tmp_path: Path) -> None:
    """A folder that several read may be one that they cannot write to."""
    made(tmp_path, rows(), Invented())
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    made(tmp_path, rows(), Invented())
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_teacher_that_tells_no_numbers_is_not_stored(tmp_path: Path) -> None:
    class Broken(Invented):
        @staticmethod
        def told(before: Sequence[int]) -> TopK:
            top = Invented.told(before)
            return TopK(top.ids, top.log_probs.where(top.log_probs > -5, math.nan), top.tail)

    with pytest.raises(PosttrainError, match=r"no numbers \(NaN\)"):
        made(tmp_path, rows(), Broken())
    assert not list(tmp_path.glob("*.arrow")) and not (tmp_path / MANIFEST).exists()


def _one_of(directory: Path, process: int, processes: int) -> None:
    made(directory, rows(), Invented(), process=process, processes=processes)


def test_several_processes_write_and_several_read(tmp_path: Path) -> None:
    together, alone = tmp_path / "together", tmp_path / "alone"
    spawn = multiprocessing.get_context("fork")
    workers = [spawn.Process(target=_one_of, args=(together, number, 3)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    made(alone, rows(), Invented())
    assert (together / MANIFEST).read_bytes() == (alone / MANIFEST).read_bytes()
    # A reader goes to a data loader's worker by pickling: it opens its files there.
    import pickle

    cache = LogprobCache(together)
    cache.read([0])
    assert torch.equal(pickle.loads(pickle.dumps(cache)).read([5]).ids, cache.read([5]).ids)


class _Interrupted(Invented):
    """While it answers for the first time, another run fills the same cache from beginning to end."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory: Path | None = directory

    def __call__(self, sequences: Sequence[Sequence[int]], spans: Sequence[Sequence[tuple[int, int]]]) -> TopK:
        directory, self._directory = self._directory, None
        if directory is not None:
            other = multiprocessing.get_context("fork").Process(target=_one_of, args=(directory, 0, 1))
            other.start()
            other.join()
            assert other.exitcode == 0
        return super().__call__(sequences, spans)


def test_two_runs_may_fill_one_cache_at_a_time(tmp_path: Path) -> None:
    made(tmp_path / "alone", rows(), Invented())
    made(tmp_path / "shared", rows(), _Interrupted(tmp_path / "shared"))
    for file in sorted((tmp_path / "alone").iterdir()):
        assert (tmp_path / "shared" / file.name).read_bytes() == file.read_bytes()


def test_spans() -> None:
    assert spans_of([5, 5, -100, -100, 7, 8]) == [(1, 2), (4, 6)]
    assert spans_of([5, -100]) == []
    assert spans_of([-100, 5]) == [(1, 2)]


def test_a_model_in_half_precision_agrees_with_itself() -> None:
    """Logits of half precision have many equals: which is the most probable would be a matter of their order."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=2000, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, intermediate_size=48, initializer_range=0.6,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).to(torch.bfloat16).eval()
    ids = torch.randint(5, 1990, (300,)).tolist()
    told = LocalTeacher(model, entries=1990, k=20)([ids], [[(1, 300)]])
    logs = torch.cat([piece for _, piece in distributions(model, ids, range(1, 300), 1990)])
    assert torch.equal(logs.argmax(1), told.ids[:, 0])
    torch.testing.assert_close(logs.gather(1, told.ids), told.log_probs, atol=1e-4, rtol=1e-4)


def test_a_long_sequence_does_not_stretch_the_short_ones_beside_it() -> None:
    lengths = [100] * 80 + [8000] + [90] * 30 + [9000]  # without thinking, and with
    pieces = [lengths[some] for some in read_at_once([[0] * length for length in lengths])]
    assert [length for piece in pieces for length in piece] == lengths and len(pieces) == 4
    assert all(len(piece) == 1 or len(piece) * max(piece) <= BATCH_TOKENS for piece in pieces)


@pytest.mark.parametrize("at_once", [6, BATCH_TOKENS])
def test_a_local_teacher_tells_its_own_distribution(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_teacher, "BATCH_TOKENS", at_once)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, intermediate_size=48, initializer_range=0.5,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    sequences = [[5, 6, 7, 8, 9, 10], [11, 12, 13]]
    spans = [[(1, 3), (5, 6)], [(2, 3)]]
    told = LocalTeacher(model, entries=90, k=4, temperature=1.5)(sequences, spans)
    expected = []
    for sequence, own in zip(sequences, spans, strict=True):  # each by itself, unpadded
        with torch.no_grad():
            logs = (model(torch.tensor([sequence])).logits[0, :, :90] / 1.5).log_softmax(-1)
        expected += [logs[at - 1] for start, end in own for at in range(start, end)]
    logs = torch.stack(expected)
    torch.testing.assert_close(told.log_probs, logs.topk(4).values, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logs.gather(1, told.ids), told.log_probs, atol=1e-5, rtol=1e-4)
    rest = logs.scatter(1, told.ids, -math.inf).logsumexp(1)
    torch.testing.assert_close(told.tail, rest, atol=1e-5, rtol=1e-4)
