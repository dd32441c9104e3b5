"""Packing: nothing lost, rows well filled, and packed samples that do not see each other, gradients included."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from posttrain.data import packing
from posttrain.data.packing import best_fit, check_isolation, pack, packing_problems
from posttrain.errors import PosttrainError

VOCABULARY = 40
LENGTHS = st.lists(st.integers(1, 16), min_size=1, max_size=60)


def samples(*lengths: int, seed: int = 0) -> Dataset:
    """Random samples; the last half of each is supervised (at least its last token)."""
    generator = np.random.default_rng(seed)
    ids = [generator.integers(1, VOCABULARY, length).tolist() for length in lengths]
    labels = [[-100] * (len(each) // 2) + each[len(each) // 2 :] for each in ids]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def unpacked(rows: Dataset) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    made = []
    for row in rows:
        ends = np.cumsum(row["seq_lengths"])
        assert ends[-1] == len(row["input_ids"]) == len(row["labels"])
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            made.append((tuple(row["input_ids"][start:end]), tuple(row["labels"][start:end])))
    return made


def as_tuples(data: Dataset) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(tuple(row["input_ids"]), tuple(row["labels"])) for row in data]


# --- best fit --------------------------------------------------------------------------------------------------------


def plain_best_fit(lengths: list[int], max_length: int) -> list[int]:
    """The rows' fill by the definition: longest first, each where it leaves the least room, else a new row."""
    rows: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in range(len(rows)) if rows[row] + length <= max_length]
        if fitting:
            rows[max(fitting, key=lambda row: rows[row])] += length
        else:
            rows.append(length)
    return rows


@settings(max_examples=200)
@given(LENGTHS)
def test_best_fit_is_best_fit(lengths: list[int]) -> None:
    order, sizes = best_fit(np.array(lengths), 16)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    fills = [int(part.sum()) for part in np.split(np.array(lengths)[order], np.cumsum(sizes)[:-1])]
    assert max(fills) <= 16
    assert sorted(fills) == sorted(plain_best_fit(lengths, 16))


@settings(max_examples=30)
@given(LENGTHS, st.integers(1, 4))
def test_every_sample_comes_out_once_and_whole(lengths: list[int], rows_written: int) -> None:
    data = samples(*lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "ROWS_WRITTEN", rows_written)
        done: list[int] = []
        rows = pack(data, 16, progress=done.append)
    assert sorted(unpacked(rows)) == sorted(as_tuples(data))
    assert all(len(row["input_ids"]) <= 16 for row in rows)
    assert sum(done) == len(lengths)


def test_packing_reads_selections_and_chunks_in_place() -> None:
    data = concatenate_datasets([samples(3, 4, seed=1), samples(5, 2, 7, seed=2)])
    assert len(data.data.column("input_ids").chunks) == 2
    assert sorted(unpacked(pack(data, 8))) == sorted(as_tuples(data))
    chosen = data.select([4, 0, 3])
    assert sorted(unpacked(pack(chosen, 8))) == sorted(as_tuples(chosen))
    contiguous = data.select(range(1, 4))
    assert sorted(unpacked(pack(contiguous, 8))) == sorted(as_tuples(contiguous))


def test_the_same_data_gives_the_same_rows() -> None:
    data = samples(*[3, 5, 3, 8, 1] * 5)
    assert pack(data, 16)[:] == pack(data, 16)[:]


def test_what_does_not_fit_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(PosttrainError, match="2 samples do not fit into 8 tokens") as error:
        pack(samples(4, 9, 12), 8, cache_file=tmp_path / "rows.arrow")
    assert "row 1 (9 tokens)" in str(error.value)
    with pytest.raises(PosttrainError, match="1 samples have no tokens"):
        pack(Dataset.from_dict({"input_ids": [[1], []], "labels": [[1], []]}), 8)
    assert list(tmp_path.iterdir()) == []


# --- isolation -------------------------------------------------------------------------------------------------------


@cache
def model(attention: str) -> Any:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, initializer_range=0.5, attn_implementation=attention,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).double()


def collate(rows: list[Any], **options: Any) -> dict[str, Any]:
    return dict(DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True, **options)(rows))


def loss_and_gradients(net: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Logits, the summed loss (so that samples add up) and the gradients of every parameter."""
    net.zero_grad()
    logits = net(**{key: value for key, value in batch.items() if key != "labels"}, use_cache=False).logits
    targets = batch["labels"][:, 1:].reshape(-1)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=-100, reduction="sum")
    torch.autograd.backward(loss)
    return logits.detach()[0], loss.detach(), [parameter.grad.clone() for parameter in net.parameters()]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("rows_a_batch", "options"), [(1, {}), (3, {}), (2, {"pad_to_multiple_of": 32})])
def test_packed_samples_equal_each_alone(attention: str, rows_a_batch: int, options: dict[str, Any]) -> None:
    """Logits, loss and gradients through TRL's own collator, samples of one token and batches of several rows too."""
    net = model(attention)
    near: dict[str, Any] = (
        {"rtol": 1e-4, "atol": 1e-5} if attention == "eager" else {"rtol": 1e-9, "atol": 1e-9}
    )  # softmax in float32
    rows = pack(samples(7, 5, 1, 12, 2, 9, 1, 16, 3), 16)
    assert max(map(len, rows["seq_lengths"])) > 1
    for first in range(0, len(rows), rows_a_batch):
        batch = [rows[index] for index in range(first, min(first + rows_a_batch, len(rows)))]
        logits, loss, gradients = loss_and_gradients(net, collate(batch, **options))
        at, losses, sums = 0, torch.zeros_like(loss), [torch.zeros_like(each) for each in gradients]
        for ids, labels in unpacked(Dataset.from_list(batch)):
            alone = {"input_ids": torch.tensor([ids]), "labels": torch.tensor([(-100, *labels[1:])])}
            own_logits, own_loss, own_gradients = loss_and_gradients(net, alone)
            torch.testing.assert_close(logits[at : at + len(ids)], own_logits, **near)
            at += len(ids)
            losses += own_loss
            sums = [each + own for each, own in zip(sums, own_gradients, strict=True)]
        torch.testing.assert_close(loss, losses, **near)
        for gradient, expected in zip(gradients, sums, strict=True):
            torch.testing.assert_close(gradient, expected, **near)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_loss_of_one_sample_has_no_gradient_in_another_s_embeddings(attention: str) -> None:
    net = model(attention)
    batch = collate([pack(samples(9, 6), 16)[0]])
    embedded = net.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    logits = net(inputs_embeds=embedded, position_ids=batch["position_ids"], use_cache=False).logits
    torch.autograd.backward(logits[0, 9:].square().sum())
    assert torch.count_nonzero(embedded.grad[0, :9]) == 0
    assert torch.count_nonzero(embedded.grad[0, 9:]) > 0


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("leak", ["attention_mask", "use_cache", "no position_ids"])
def test_samples_leak_where_a_condition_fails(attention: str, leak: str) -> None:
    """Why the module's conditions are conditions: take one away, and the second sample reads the first."""
    net = model(attention)
    (row,) = pack(samples(9, 6), 16)
    moved = []
    for token in (1, 2):
        batch = collate([row | {"input_ids": [token, *row["input_ids"][1:]]}])
        inputs = {
            "input_ids": batch["input_ids"],
            "position_ids": batch["position_ids"],
            "use_cache": leak == "use_cache",
        }
        if leak == "attention_mask":
            inputs["attention_mask"] = torch.ones_like(batch["input_ids"])
        if leak == "no position_ids":
            del inputs["position_ids"]
        with torch.no_grad():
            moved.append(net(**inputs).logits[0, 9:])
    assert (moved[0] - moved[1]).abs().max() > 1e-3


def one_step(data: Dataset, directory: Path, **options: Any) -> list[torch.Tensor]:
    """The weights after one SGD step of TRL's own trainer on the whole data at once."""
    words = {str(number): number for number in range(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="1"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="0", eos_token="2")
    net = Qwen3ForCausalLM(model("sdpa").config)
    net.load_state_dict(model("sdpa").state_dict())
    config = SFTConfig(
        str(directory), max_steps=1, per_device_train_batch_size=len(data), optim="sgd", learning_rate=1.0,
        lr_scheduler_type="constant", max_grad_norm=0.0, bf16=False, gradient_checkpointing=False, use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True, max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True}, **options,
    )  # fmt: skip
    SFTTrainer(model=net, args=config, train_dataset=data, processing_class=tokenizer).train()
    return [parameter.detach().clone() for parameter in net.parameters()]


def test_trl_trains_on_packed_rows_as_on_the_samples(tmp_path: Path) -> None:
    """With the settings of the module's docstring, a step of SFTTrainer moves the weights as one on padded samples."""
    data = samples(7, 5, 2, 12, 9, 16, 3)
    before = [parameter.detach().float() for parameter in model("sdpa").parameters()]
    expected = one_step(data, tmp_path)
    rows = pack(data, 16)
    assert packing_problems({"padding_free": True, "packing": False}, "sdpa") == []
    found = one_step(rows, tmp_path, padding_free=True)
    for each, other in zip(found, expected, strict=True):
        torch.testing.assert_close(each, other, rtol=1e-4, atol=1e-5)
    assert any((each - old).abs().max() > 1e-2 for each, old in zip(found, before, strict=True))
    leaking = one_step(rows, tmp_path)  # without padding_free the collator drops seq_lengths, silently
    assert any((each - other).abs().max() > 1e-2 for each, other in zip(leaking, expected, strict=True))


def test_settings_that_leak_are_named() -> None:
    good = {"padding_free": True, "packing": False, "max_length": None}
    assert packing_problems(good, "sdpa") == []
    assert packing_problems(good, None) == []
    assert [problem.where for problem in packing_problems({}, "sdpa")] == ["padding_free"]
    bad = {"padding_free": True, "packing": True, "use_cache": True}
    assert [problem.where for problem in packing_problems(bad, "paged|sdpa")] == ["packing", "use_cache", "attention"]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_model_itself_is_tried(attention: str) -> None:
    net = model(attention).train()
    check_isolation(net)
    assert net.training

    class Leaky(Qwen3ForCausalLM):  # type: ignore[misc]  # as a model whose code ignores position_ids for its mask
        def forward(self, input_ids: Any, position_ids: Any = None, **rest: Any) -> Any:
            return super().forward(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **rest)

    torch.manual_seed(0)
    with pytest.raises(PosttrainError, match=r"Leaky with .* attention does not keep packed samples apart"):
        check_isolation(Leaky(net.config))
