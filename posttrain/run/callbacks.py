"""What a trainer tells the run while it trains: figures, whole checkpoints, progress, and the accuracy curve."""

from __future__ import annotations

import json
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from posttrain.model.artifacts import read_json, read_rows, seal, write_json, write_text
from posttrain.model.inference import decoding_mode, lockstep
from posttrain.progress import progress

if TYPE_CHECKING:
    from posttrain.evaluation.curve import CurveProbe
    from posttrain.recipe.stage import StageContext

CLOCK = "train_seconds.json"
COUNTED = "_total_train_tokens"
"""TRL's count of the tokens it has read, which its checkpoints leave out."""


def keep_lines_up_to(path: Path, step: int) -> None:
    """Drop the lines of a JSONL file that a killed run wrote after the checkpoint it is resumed from."""
    if path.exists():
        write_text(path, "".join(json.dumps(row) + "\n" for row in read_rows(path) if row["step"] <= step))


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a JSONL file; figures that JSON cannot hold become null."""
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(clean) + "\n")


class RunRecorder(TrainerCallback):  # type: ignore[misc]
    """Counts training seconds (evaluation left out), writes metrics.jsonl and curve.jsonl, seals checkpoints.

    One callback, because the order matters: the clock is written into a checkpoint before the checkpoint is sealed.
    """

    def __init__(self, context: StageContext, trainer: Any, probe: CurveProbe | None, every: int) -> None:
        self.context, self.trainer, self.probe, self.every = context, trainer, probe, every
        self.main = trainer.is_world_process_zero()
        self.seconds = 0.0
        self._began = time.monotonic()

    def now(self) -> float:
        """Seconds of training so far, those before a resume included, evaluation excluded."""
        return self.seconds + time.monotonic() - self._began

    def resume(self, checkpoint: Path) -> None:
        """Take up the clock and the figures of a checkpoint."""
        clock = read_json(checkpoint / CLOCK) or {}
        self.seconds = float(clock.get("seconds", 0.0))
        if hasattr(self.trainer, COUNTED):  # TRL begins anew
            setattr(self.trainer, COUNTED, int(clock.get("tokens", 0)))
        step = int(checkpoint.name.rsplit("-", 1)[1])
        if self.main:
            for path in (self.context.dir.metrics, self.context.dir.curve):
                keep_lines_up_to(path, step)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.monotonic()
        self._bar = progress(
            f"training {self.context.name}",
            state.max_steps,
            quiet=self.context.quiet or not self.main,
            start=state.global_step,
        )
        self._advance = self._bar.__enter__()
        if state.global_step == 0:
            if self.main:
                for path in (self.context.dir.metrics, self.context.dir.curve):
                    path.unlink(missing_ok=True)
            self._probe(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._advance(1)
        if self.every and (state.global_step % self.every == 0 or state.global_step == state.max_steps):
            self._probe(state.global_step)

    def _probe(self, step: int) -> None:
        if self.probe is None:
            return
        at = self.now()
        paused = time.monotonic()
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        # Sharded weights are gathered from all processes at each forward: all go along while the main one generates.
        sharded = self.context.recipe.engine.strategy in ("zero3", "fsdp2")
        with decoding_mode(model), lockstep(model) if sharded else nullcontext():
            point = self.probe(model) if self.main else {}
        self._began += time.monotonic() - paused
        if self.main:
            append_line(self.context.dir.curve, {"step": step, "train_seconds": at, "flops": self.flops(), **point})

    def flops(self) -> float:
        """Floating-point operations so far: 6 N a trained token, 2 N a sampled one (Kaplan et al. 2020)."""
        counted = getattr(self.trainer, "flops", None)
        return float(counted() if callable(counted) else self.trainer.state.total_flos)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.main and logs:
            row = {"step": state.global_step, "train_seconds": self.now(), "flops": self.flops(), **logs}
            append_line(self.context.dir.metrics, row)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Every process writes its own random state into the folder: all must be done before it is declared whole.
        self.trainer.accelerator.wait_for_everyone()
        if self.main:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_json(folder / CLOCK, {"seconds": self.now(), "tokens": getattr(self.trainer, COUNTED, 0)})
            seal(folder, step=state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds, self._began = self.now(), time.monotonic()
        self._bar.__exit__(None, None, None)
