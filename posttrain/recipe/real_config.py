"""What a trainer's own config class, and what its options make, refuse: tried before a run, by making them.

Slower than reading the class's source (`trainer_options.py`): the trainer's library is imported.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

from posttrain.recipe.stage import Fault, Stage
from posttrain.recipe.words import Loc

OF_THE_MACHINE = ("tf32",)  # refused by a class where there is no such GPU: a recipe is checked anywhere
PLAIN_OPTIMIZERS = ("adamw_torch", "adafactor", "sgd", "adagrad", "rmsprop")  # no library or device of their own


def real_config_faults(stage: Stage, processes: int, loc: Loc) -> list[Fault]:
    """What the trainer's own config class refuses, told at the option it names. Imports the trainer's library.

    Args:
        processes: how many processes the engine starts: batch sizes are counted over all of them.
        loc: the place of the stage's `train:`.
    """
    if not stage.trainer_config:
        return []
    module, _, name = stage.trainer_config.partition(":")
    cls = getattr(importlib.import_module(module), name)
    # The class counts processes by asking torch.distributed; a check runs in one process for all of them.
    counted = type(name, (cls,), {"world_size": property(lambda self: processes)})
    quiet = contextlib.redirect_stderr(io.StringIO())
    judged = {option: value for option, value in stage.train.items() if option not in OF_THE_MACHINE}
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings(), quiet, _environment_kept():
        warnings.simplefilter("ignore")
        try:
            made = counted(**{**judged, "output_dir": directory, "use_cpu": True, "report_to": "none"})
            _try_scheduler(made)
            _try_optimizer(made)
            _try_loader(made)
        except Exception as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            named = [option for option in stage.train if option in said]
            place = (*loc, named[0]) if named else loc
            return [Fault(place, f"{name} refuses these options: {said}")]
    return []


@contextlib.contextmanager
def _environment_kept() -> Iterator[None]:
    """transformers leaves `torch_compile` and others in the environment, where every later trainer would find them."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _try_scheduler(config: Any) -> None:
    """Make the schedule of the learning rate: which options one takes, and needs, only its function knows."""
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    options = config.lr_scheduler_kwargs
    get_scheduler(config.lr_scheduler_type, optimizer, 1, 1_000_000, scheduler_specific_kwargs=options)


def _try_optimizer(config: Any) -> None:
    """Make the optimizer, where its library is here: the range of what it takes, only its class knows."""
    import torch
    from transformers import Trainer

    if config.optim.startswith(PLAIN_OPTIMIZERS):
        made, options = Trainer.get_optimizer_cls_and_kwargs(config)
        made([torch.zeros(1, requires_grad=True)], **options)


def _try_loader(config: Any) -> None:
    """Make the loader of batches; it starts no worker before it is read."""
    from torch.utils.data import DataLoader

    DataLoader(
        [0],  # type: ignore[arg-type]
        num_workers=config.dataloader_num_workers,
        prefetch_factor=config.dataloader_prefetch_factor,
        persistent_workers=config.dataloader_persistent_workers,
    )
