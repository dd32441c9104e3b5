"""A disk that fills up: one clear error, nothing finished lost, and the same command goes on when there is room."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from posttrain.run.disk import full_disk

from .conftest import posttrain

RECIPE = """\
name: full_disk
model:
  architecture: Qwen3ForCausalLM
  config: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 1, num_key_value_heads: 1, head_dim: 32,
    intermediate_size: 64, max_position_embeddings: 128, tie_word_embeddings: true}
  tokenizer: {train_on: [problems], vocab_size: 300}
data:
  problems: {task: arithmetic, size: 80, options: {steps: [1, 1]}, reserve: 4, decontaminate: key}
evaluation: {data: [problems], max_new_tokens: 4, think_follow: {dialogues: 0}}
engine: {cpu: true, threads: 1}
stages:
  first: {kind: sft, samples: [{data: problems}], train: {max_steps: 4, save_steps: 2}}
"""
LIMIT = 120_000  # bytes a file: the model (90 kB) fits, the optimizer's state (180 kB) does not


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


def test_a_run_says_that_the_disk_is_full_and_goes_on_when_it_is_not(tmp_path: Path) -> None:
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(RECIPE)
    command = [sys.executable, "-m", "posttrain", "run", str(recipe), "--output", str(run), "--quiet"]
    full = subprocess.run(command, preexec_fn=limited, capture_output=True, text=True, check=False)
    assert full.returncode == 2, full.stderr
    assert "Traceback" not in full.stderr
    assert "posttrain: 1 problem\n" in full.stderr and "a file could not be written whole" in full.stderr
    assert "the disk is full, or a quota or limit" in full.stderr
    finished = run / "base" / "manifest.json"
    before = finished.stat().st_mtime_ns  # the model to start from was whole, and stays
    assert not (run / "stages/first/model").exists()
    done = posttrain("run", recipe, "--output", run, "--quiet")
    assert done.returncode == 0, done.stderr
    assert finished.stat().st_mtime_ns == before
    assert (run / "stages/first/model/manifest.json").exists() and (run / "report.html").exists()


def test_every_way_in_which_a_full_disk_is_told(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(LIMIT)}
    ways: dict[str, Callable[[], object]] = {
        "text": lambda: (tmp_path / "a.txt").write_text("x" * 2 * LIMIT),
        "safetensors": lambda: save_file(tensors, tmp_path / "a.safetensors"),
        "torch": lambda: torch.save(tensors, tmp_path / "a.pt"),
    }
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name, write in ways.items():
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
        try:
            with pytest.raises(Exception) as raised:
                write()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        problem = full_disk(raised.value)
        assert problem is not None and "could not be written whole" in problem.what, name


def test_what_it_was_raised_from_counts_and_other_errors_do_not() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/runs/x/model.safetensors")
        except OSError as error:
            raise RuntimeError("saving failed") from error
    except RuntimeError as error:
        problem = full_disk(error)
    assert problem is not None and problem.where == "/runs/x/model.safetensors"
    for other in (OSError(errno.EACCES, "Permission denied"), ValueError("x"), KeyError("text")):
        assert full_disk(other) is None
