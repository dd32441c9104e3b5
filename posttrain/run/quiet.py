"""Keeps the libraries' own bars and notices out of a run's output: progress is shown in one place (`progress.py`)."""

from __future__ import annotations

import logging
import os
import warnings


def hush_libraries() -> None:
    """Leave transformers, datasets, trl and peft their errors only. Call it before they are imported."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if not os.path.exists("/dev/nvidiactl") and not os.path.exists("/dev/kfd"):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns that it found no accelerator, used or not
    # TRL names the vLLM versions it was tested with whenever any vLLM is installed, used or not.
    warnings.filterwarnings("ignore", message="TRL currently supports vLLM versions")
    warnings.filterwarnings("ignore", category=FutureWarning, module="trl|transformers|torch")
    for library in ("accelerate", "vllm", "DeepSpeed"):
        logging.getLogger(library).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
