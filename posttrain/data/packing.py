"""Short samples share a row: best-fit packing, and the proof that they do not see each other.

    tokenized -> pack(dataset, max_length) -> rows with input_ids, labels, seq_lengths
              -> TRL's DataCollatorForLanguageModeling(padding_free=True): one row a batch, position_ids that begin
                 again at 0 with every sample, no attention mask

From such position_ids transformers builds a block-diagonal causal mask for sdpa, eager and flex attention
(`masking_utils.find_packed_sequence_indices`), and FlashAttention takes the borders from the collator's `cu_seq_lens`.
It does so only where (1) no `attention_mask` is given, (2) there is no cache, `use_cache=True` among it, (3) the
attention is one that masks are built for, and (4) position_ids reach the mask. Otherwise samples read each other, and
nothing says so: the loss even looks better. TRL's SFTTrainer has no guard of its own for this; it passes
`use_cache=False` itself. tests/test_packing.py proves isolation for sdpa and eager (logits, losses and gradients as of
each sample alone), shows the leak where a condition fails, and `check_isolation` tries it on the very model.

What a stage has to set, on a packed data set:

    SFTConfig(packing=False,        # the data is packed; packing it again would take a row for one sample
              padding_free=True,    # else the collator drops seq_lengths and pads: samples leak
              max_length=None,      # SFTTrainer refuses it with padding_free; `pack` has kept to it
              dataset_kwargs={"skip_prepare_dataset": True})   # it is prepared

`packing_problems` checks these, `check_isolation(model)` the rest. With padding_free, TRL drops the label at each
sample's first token, which has nothing to be predicted from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.data.arrow import ListColumn, SampleWriter, list_array
from posttrain.errors import PosttrainError, Problem

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

ROWS_WRITTEN = 1000  # packed rows put together at once
ISOLATING = ("sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")


def pack(
    dataset: Dataset,
    max_length: int,
    *,
    cache_file: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Dataset:
    """Put whole samples together into rows of at most `max_length` tokens, best-fit decreasing over the whole data set.

    Every sample stays whole; rows come out longest sample first, so the trainer has to shuffle (it does by default).
    The same data gives the same rows. Memory: about 150 bytes a sample, and one batch of rows.

    Args:
        dataset: `input_ids` and `labels`, as `tokenize_conversations` gives them; other columns are left out.
        cache_file: where the rows are written (Arrow); default: a temporary file that goes with the process.
        progress: called with the number of samples just written.

    Returns:
        Rows of `input_ids`, `labels` (int32, concatenated samples) and `seq_lengths` (the samples' lengths, in order).

    Raises:
        PosttrainError: samples longer than max_length (cut or drop them when tokenizing), or empty ones.
    """
    import datasets
    import numpy as np

    dataset = dataset.select_columns(["input_ids", "labels"])
    if dataset._indices is not None:  # filtered or shuffled: put into order once, on disk
        dataset = dataset.flatten_indices()
    ids, labels = ListColumn(dataset, "input_ids"), ListColumn(dataset, "labels")
    _check_lengths(ids.lengths, max_length)
    order, sizes = best_fit(ids.lengths, max_length)
    lists = datasets.List(datasets.Value("int32"))
    writer = SampleWriter(cache_file, datasets.Features({"input_ids": lists, "labels": lists, "seq_lengths": lists}))
    try:
        ends = np.cumsum(sizes)
        for first in range(0, len(sizes), ROWS_WRITTEN):
            rows = slice(first, first + ROWS_WRITTEN)
            samples = order[ends[first] - sizes[first] : ends[rows][-1]]
            lengths = ids.lengths[samples]
            totals = np.add.reduceat(lengths, np.cumsum(sizes[rows]) - sizes[rows])
            writer.write(
                {
                    "input_ids": list_array(ids.gather(samples), totals),
                    "labels": list_array(labels.gather(samples), totals),
                    "seq_lengths": list_array(lengths, sizes[rows]),
                }
            )
            if progress:
                progress(len(samples))
    except BaseException:
        writer.discard()
        raise
    return writer.finish()


def best_fit(lengths: np.ndarray, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Best-fit decreasing: each sample, longest first, goes where it leaves the least room.

    Args:
        lengths: (N,) all in 1..max_length.

    Returns:
        order (N,): the samples, row after row. sizes (R,): how many samples each of the R rows has.
    """
    import numpy as np

    order = np.argsort(-lengths, kind="stable")
    rows_with: list[list[int]] = [[] for _ in range(max_length + 1)]  # room -> rows that have it
    rooms = 0  # bit r is set where rows_with[r] is not empty: the tightest fit is one shift away
    row_of = np.empty(len(lengths), dtype=np.int64)
    rows = 0
    for position, length in enumerate(lengths[order].tolist()):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = rows_with[room].pop()
            if not rows_with[room]:
                rooms ^= 1 << room
        else:
            row, room, rows = rows, max_length, rows + 1
        row_of[position] = row
        room -= length
        if room:
            rows_with[room].append(row)
            rooms |= 1 << room
    by_row = np.argsort(row_of, kind="stable")
    return order[by_row], np.bincount(row_of, minlength=rows)


def _check_lengths(lengths: np.ndarray, max_length: int) -> None:
    import numpy as np

    problems = []
    if len(too_long := np.flatnonzero(lengths > max_length)):
        first = int(too_long[0])
        problems.append(
            Problem(
                f"{len(too_long)} samples do not fit into {max_length} tokens",
                where=f"row {first} ({int(lengths[first])} tokens)",
                remedy="give tokenize_conversations the same max_length: it drops or cuts them, and counts them",
            )
        )
    if len(empty := np.flatnonzero(lengths == 0)):
        problems.append(Problem(f"{len(empty)} samples have no tokens", where=f"row {int(empty[0])}"))
    if problems:
        raise PosttrainError(problems)


def packing_problems(train: Mapping[str, Any], attention: str | None) -> list[Problem]:
    """What would let packed samples read each other, as far as settings tell. [] when nothing would.

    Args:
        train: options of TRL's SFTConfig as they will be given to it (`vars(config)` too).
        attention: the model's attn_implementation; None where it is not known yet.
    """
    leak = "packed samples would read each other, and nothing would say so"
    problems = []
    if not train.get("padding_free", False):
        problems.append(Problem("packed data without padding_free", "padding_free", leak, "set padding_free: true"))
    if train.get("packing", False):
        problems.append(
            Problem(
                "the data is packed already; packing it again takes a row for one sample",
                "packing",
                leak,
                "set packing: false",
            )
        )
    if train.get("use_cache", False):
        problems.append(
            Problem("a cache turns the masks of packed rows off", "use_cache", leak, "set use_cache: false")
        )
    if attention is not None and attention not in ISOLATING:
        what = f"attention {attention!r} is not known to keep packed samples apart"
        problems.append(Problem(what, "attention", leak, f"use one of {', '.join(ISOLATING)}, or no packing"))
    return problems


def check_isolation(model: Any) -> None:
    """Try on the model itself that packed samples do not read each other: change the first, look at the second.

    Two forward passes over 24 tokens; the model's mode and gradients are left as they were. Call it before the weights
    are sharded (ZeRO-3, FSDP).

    Raises:
        PosttrainError: the second sample's logits moved with the first's tokens.
    """
    import torch

    lengths = (16, 8)
    vocabulary = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (1, sum(lengths)), generator=generator)
    other = ids.clone()
    other[0, : lengths[0]] = torch.randint(vocabulary, (lengths[0],), generator=generator)
    position_ids = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            first, second = (
                model(
                    input_ids=tokens.to(model.device), position_ids=position_ids.to(model.device), use_cache=False
                ).logits
                for tokens in (ids, other)
            )
    finally:
        model.train(was_training)
    moved = (first - second).abs().float()[0]
    own, leaked = moved[: lengths[0]].max().item(), moved[lengths[0] :].max().item()
    if not leaked <= 1e-3 * own:
        name = type(model).__name__
        raise PosttrainError(
            Problem(
                f"{name} with {model.config._attn_implementation} attention does not keep packed samples apart",
                why=f"another first sample moved the second's logits by {leaked:.3g} (its own by {own:.3g})",
                remedy="train without packing, or use sdpa attention",
            )
        )
