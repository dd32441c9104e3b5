"""Whether the files of a local model are whole, weights by their headers: read in milliseconds, without torch.

A safetensors file is 8 bytes with the length of a header, the header (JSON, with the place of every tensor), and the
tensors to the end of the file (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

INDEX = "model.safetensors.index.json"
WEIGHTS = ("*.safetensors", "*.bin")

RECORDS = {"config.json": (), "posttrain.json": ("family",), "tokenizer.json": ()}
"""Files beside the weights that are JSON objects, and keys that they cannot be without."""


def directory_faults(directory: Path) -> Iterator[str]:
    """What is wrong with the files of a model's directory, as far as they are there, each fault with its file."""
    for name, keys in RECORDS.items():
        path = directory / name
        if path.exists() and (fault := _record_fault(path, keys)):
            yield f"{path} is damaged: {fault}"
    yield from weight_faults(directory)


def _record_fault(path: Path, keys: tuple[str, ...]) -> str | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"no JSON ({error})"
    if not isinstance(record, dict):
        return "no JSON object"
    return next((f"it names no {key}" for key in keys if key not in record), None)


def has_weights(directory: Path) -> bool:
    """Whether anything lies there that transformers would load weights from."""
    return any(any(directory.glob(pattern)) for pattern in WEIGHTS)


def weight_faults(directory: Path) -> Iterator[str]:
    """What is wrong with the safetensors files of a model's directory, each fault with its file."""
    index = directory / INDEX
    names = {path.name for path in directory.glob("*.safetensors")}
    if index.is_file():
        try:
            wanted = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            yield f"{index} is damaged: it names no weights"
            return
        yield from (f"{directory / name} is missing: {INDEX} names it" for name in sorted(wanted - names))
    for name in sorted(names):
        if fault := _fault(directory / name):
            yield f"{directory / name} is {fault}"


def _fault(path: Path) -> str | None:
    if not path.is_file():
        return "no file"
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            return f"cut off: {size} bytes do not even hold its header"
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return "damaged: its header cannot be read"
    expected = 8 + length + max(ends, default=0)
    return None if size == expected else f"damaged: {size} bytes, and its header tells {expected}"
