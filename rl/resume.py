"""What TRL forgets at a checkpoint, kept: without it a resumed run is another run.

TRL 1.16's GRPO and distillation trainers hold state of their own beside model, optimizer, scheduler and RNG, and save
none of it: the count of micro-steps (`_step`: where in the generation buffer the trainer is), the buffer itself
(`_buffered_inputs`: rollouts reused over `steps_per_generation` and `num_iterations`), and figures not yet logged
(`_metrics`). Its `RepeatSampler` draws each epoch's order from a generator that a fresh process starts anew, so that a
run resumed in its second epoch sees the first epoch's order again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from trl.trainer.utils import RepeatSampler

from posttrain.errors import PosttrainError, Problem

EPOCH_STRIDE = 1_000_003
"""Between the seeds of two epochs' orders; the first epoch's order is stock TRL's."""


class EpochOrder(RepeatSampler):  # type: ignore[misc]
    """A `RepeatSampler` whose order depends on (seed, epoch) alone, not on how often it was iterated."""

    def __init__(self, sampler: RepeatSampler, epoch: Callable[[], int]) -> None:
        self.__dict__.update(sampler.__dict__)
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed + EPOCH_STRIDE * self._epoch())
        return iter(super().__iter__())


class ResumableRollouts:
    """Mixin for TRL's `GRPOTrainer` and `DistillationTrainer`: a resumed run goes on as if it had not been stopped.

    Every process writes `rollouts_RANK.pt` into the checkpoint before the rest of it is written.
    """

    counters: dict[str, int]
    """Further integers to keep over a resume."""

    # The trainer's own.
    _step: int
    _buffered_inputs: Any
    _metrics: dict[str, dict[str, list[float]]]

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(dataset)  # type: ignore[misc]
        return EpochOrder(sampler, lambda: int(self.state.epoch or 0))  # type: ignore[attr-defined]

    def _generate_every(self) -> int:
        """Micro-steps that one generation serves."""
        args = self.args  # type: ignore[attr-defined]
        per_generation = getattr(args, "steps_per_generation", None) or args.gradient_accumulation_steps
        return int(per_generation * getattr(args, "num_iterations", 1))

    def _state_path(self, checkpoint: Path) -> Path:
        return checkpoint / f"rollouts_{self.accelerator.process_index}.pt"  # type: ignore[attr-defined]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Before the rest: transformers removes older checkpoints at the end of its own part.
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"  # type: ignore[attr-defined]
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self._rollout_state(), self._state_path(folder))
        super()._save_checkpoint(model, trial)  # type: ignore[misc]

    def _rollout_state(self) -> dict[str, Any]:
        # A buffer that is used up is not read again: the next micro-step generates.
        used_up = self._step % self._generate_every() == 0
        return {
            "step": self._step,
            "buffer": None if used_up else self._buffered_inputs,
            "metrics": {key: list(values) for key, values in self._metrics["train"].items()},
            "counters": dict(self.counters),
        }

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is None:
            return
        path = self._state_path(Path(checkpoint))
        if not path.exists():
            raise PosttrainError(
                Problem(
                    f"{path} is missing: the checkpoint cannot be resumed by this process",
                    why="the rollouts in use and the place among them would be lost, and another run would follow",
                    remedy="resume with as many processes as wrote it, or remove it and go on from an older one",
                )
            )
        self._restore_rollouts(torch.load(path, map_location="cpu", weights_only=True))

    def _restore_rollouts(self, state: dict[str, Any]) -> None:
        """Take over what `_rollout_state` gave."""
        self._step = state["step"]
        self._buffered_inputs = send_to_device(state["buffer"], self.accelerator.device)  # type: ignore[attr-defined]
        self._metrics["train"] = defaultdict(list, state["metrics"])
        self.counters.update(state["counters"])
