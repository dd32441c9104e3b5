"""Lets vLLM's V2 model runner, whose kernels are written in Triton, run on a CPU through Triton's interpreter.

Python imports this by itself when the folder is on PYTHONPATH; it acts where TRITON_INTERPRET=1. vLLM's CPU build uses
Triton only where a backend called "cpu" is registered, so one is: it has no compiler, because nothing is compiled. And
the interpreter takes masks of booleans, where vLLM's kernels give integers.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any


class Driver:
    """What is asked of a Triton driver when kernels are interpreted."""

    utils = SimpleNamespace(
        get_device_properties=lambda device=0: {
            "max_shared_mem": 2**20,
            "multiprocessor_count": 1,
            "warpSize": 32,
            "max_num_regs": 2**16,
        }
    )

    @staticmethod
    def is_active() -> bool:
        return True

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: Any = None) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cpu", 0, 1)

    def get_active_torch_device(self) -> Any:
        import torch

        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        import torch

        return torch.cpu


def with_boolean_masks(method: Any, place: int) -> Any:
    """A builder's method whose argument at `place`, a mask, is made boolean first."""

    def call(builder: Any, *arguments: Any) -> Any:
        mask = arguments[place]
        if getattr(mask, "data", None) is not None:
            mask.data = mask.data.astype(bool)
        return method(builder, *arguments)

    return call


if os.environ.get("TRITON_INTERPRET") == "1":
    from triton.backends import backends
    from triton.runtime.interpreter import InterpreterBuilder

    for name in list(backends):
        del backends[name]
    backends["cpu"] = SimpleNamespace(driver=Driver, compiler=None)
    InterpreterBuilder.create_masked_load = with_boolean_masks(InterpreterBuilder.create_masked_load, 1)
    InterpreterBuilder.create_masked_store = with_boolean_masks(InterpreterBuilder.create_masked_store, 2)
