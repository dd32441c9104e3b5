"""A stage under `accelerate launch`: as many processes and machines as the recipe says, plain, sharded, or ZeRO.

Every machine runs the same command on the same recipe and a shared run directory; `engine.machine_rank` (or
$POSTTRAIN_MACHINE_RANK) tells them apart. Machine 0 builds the data and evaluates; the others wait for the data, train,
and go on to the next stage when its record is there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import write_text

if TYPE_CHECKING:
    from posttrain.recipe.schema import EngineSpec
    from posttrain.recipe.stage import StageContext


def machine_rank(engine: EngineSpec) -> int:
    """Which machine this is: the recipe's word, the environment's, or the only one."""
    return (
        engine.machine_rank if engine.machine_rank is not None else int(os.environ.get("POSTTRAIN_MACHINE_RANK", "0"))
    )


def deepspeed_options(engine: EngineSpec) -> dict[str, Any]:
    """DeepSpeed's configuration: our defaults for the stage of ZeRO asked for, the recipe's own over them.

    Batch size, accumulation and clipping are `auto`: transformers fills them in from the trainer's arguments
    (https://huggingface.co/docs/transformers/deepspeed).
    """
    stage = int(engine.strategy.removeprefix("zero"))
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    defaults = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_optimization": zero,
        # The trainer's own AdamW is used as it is, on CPU too.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    merged = {**defaults, **engine.deepspeed}
    merged["zero_optimization"] = {**zero, **engine.deepspeed.get("zero_optimization", {})}
    return merged


def launch_command(engine: EngineSpec, directory: Path, arguments: list[str]) -> list[str]:
    """The `accelerate launch` command line for a stage."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--num_processes", str(engine.processes), "--num_machines", str(engine.machines)]
    command += ["--machine_rank", str(machine_rank(engine)), "--mixed_precision", "no", "--dynamo_backend", "no"]
    address = engine.main_address or os.environ.get("POSTTRAIN_MAIN_ADDRESS", "127.0.0.1")
    command += ["--main_process_ip", address, "--main_process_port", str(engine.main_port)]
    if engine.machines > 1:
        command += ["--rdzv_backend", "static", "--same_network"]
    if engine.strategy.startswith("zero"):
        config = directory / "deepspeed.json"
        write_text(config, json.dumps(deepspeed_options(engine), indent=2) + "\n")
        command += ["--use_deepspeed", "--deepspeed_config_file", str(config)]
        if engine.machines > 1:
            command += ["--deepspeed_multinode_launcher", "standard"]
    elif engine.strategy == "fsdp2":
        command += ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
        command += ["--fsdp_state_dict_type", "FULL_STATE_DICT", "--fsdp_reshard_after_forward", "true"]
    elif engine.processes > 1:
        # Also on CPU: accelerate's own multi-CPU launcher needs MPI, and without it runs one process in silence.
        command += ["--multi_gpu"]
    return [*command, "-m", "posttrain.run.train", *arguments]


def launch(context: StageContext) -> None:
    """Run a stage's training under `accelerate launch`, and wait for it.

    Raises:
        PosttrainError: the launch failed; its own output stands above.
    """
    engine = context.recipe.engine
    arguments = [str(context.run.path), context.name, *(["--quiet"] if context.quiet else [])]
    command = launch_command(engine, context.dir.path, arguments)
    environment = dict(os.environ)
    if engine.cpu:
        environment |= {"ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    if engine.threads:
        environment["OMP_NUM_THREADS"] = str(engine.threads)
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode == 2:
        raise PosttrainError(Problem(f"stage {context.name}: the launched processes refused to start (see above)"))
    if done.returncode != 0:
        raise PosttrainError(
            Problem(
                f"stage {context.name}: accelerate launch ended with exit code {done.returncode}",
                where=" ".join(command[2:]),
                remedy="read the output above; the same command goes on from the last whole checkpoint",
            )
        )
