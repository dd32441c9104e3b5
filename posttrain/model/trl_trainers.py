"""TRL's trainers with rollouts, imported without vLLM.

Where vLLM is installed TRL imports it beside these trainers, for rollouts of its own: seconds of every process, and an
error where the two do not fit each other. The rollouts here are ours, on vLLM too (`rl/vllm_rollouts.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module


@contextmanager
def _without_vllm() -> Iterator[None]:
    """TRL does not find vLLM; what it imported on that account is left to these trainers alone."""
    asked = import_module("trl.import_utils")
    told = asked.is_vllm_available
    asked.is_vllm_available = lambda min_version=None: False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        asked.is_vllm_available = told  # type: ignore[attr-defined]
        for name in [name for name in sys.modules if name.startswith("trl.generation")]:
            del sys.modules[name]


with _without_vllm():
    from trl import DistillationTrainer, GRPOTrainer

__all__ = ["DistillationTrainer", "GRPOTrainer"]
