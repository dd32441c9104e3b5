"""What vLLM's worker learns for training: to take over the policy's weights. Loaded by vLLM, in its own process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import vllm.model_executor.layers.utils as layers


def _plain(layer: torch.nn.Module, remove_weight: bool) -> None:
    """Leave a layer's weights as they are."""
    layer.cpu_linear = torch.nn.functional.linear  # type: ignore[assignment]


# On a CPU vLLM packs the weights of linear layers and drops the originals: nothing could be loaded into them again, and
# a head that shares the embedding would keep the packed weights of the start. It is called by this name, at every load.
layers.dispatch_cpu_unquantized_gemm = _plain


class PolicyWorker:
    """Mixed into vLLM's worker class (`worker_extension_cls`)."""

    model_runner: Any

    def load_policy(self, directory: str) -> None:
        """Load the weights that lie in a directory (safetensors, checkpoint names) into the running model."""
        from safetensors.torch import load_file

        for file in sorted(Path(directory).glob("*.safetensors")):
            self.model_runner.model.load_weights(load_file(file).items())
