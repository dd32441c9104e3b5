"""A stage under `accelerate launch`: as many processes and machines as the recipe says, plain, sharded, or ZeRO.

How the machines of a run find each other stands in `machines.py`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import read_json, write_json
from posttrain.run.lifetime import run_child
from posttrain.run.machines import announce, machine_rank, main_address, require_free_port

if TYPE_CHECKING:
    from posttrain.recipe.schema import EngineSpec
    from posttrain.recipe.stage import StageContext

REFUSALS = "POSTTRAIN_REFUSALS"
"""Names the folder where a launched process leaves what it has to tell the user."""


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
        "fp16": {"enabled": "auto"},
        # The trainer's own AdamW is used as it is, on CPU too.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    merged = {**defaults, **engine.deepspeed}
    merged["zero_optimization"] = {**zero, **engine.deepspeed.get("zero_optimization", {})}
    return merged


def launch_command(engine: EngineSpec, directory: Path, arguments: list[str]) -> list[str]:
    """The `accelerate launch` command line for a stage.

    Args:
        directory: where the configuration files are written that the command names, and the launcher's logs.
        arguments: of the process launched.
    """
    # An explicit file, else accelerate reads the user's own defaults and changes the run by them.
    config = directory / "accelerate.json"
    write_json(config, {"compute_environment": "LOCAL_MACHINE", "distributed_type": "NO", "mixed_precision": "no"})
    command = [sys.executable, "-m", "posttrain.run.launcher", "--config_file", str(config)]
    command += ["--num_processes", str(engine.processes), "--num_machines", str(engine.machines)]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--rdzv_backend", "static"]
    command += ["--num_cpu_threads_per_process", str(threads(engine)), "--log_dir", str(directory)]
    if engine.machines > 1:
        command += ["--machine_rank", str(machine_rank(engine)), "--same_network"]
        command += ["--main_process_ip", main_address(engine), "--main_process_port", str(engine.main_port)]
    else:
        command += ["--machine_rank", "0", "--main_process_ip", "127.0.0.1", "--main_process_port", "0"]  # any free one
    if engine.strategy.startswith("zero"):
        deepspeed = directory / "deepspeed.json"
        write_json(deepspeed, deepspeed_options(engine))
        command += ["--use_deepspeed", "--deepspeed_config_file", str(deepspeed)]
        command += ["--deepspeed_multinode_launcher", "standard"]
    elif engine.strategy == "fsdp2":
        command += ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
        command += ["--fsdp_state_dict_type", "SHARDED_STATE_DICT", "--fsdp_reshard_after_forward", "true"]
        # Else transformers leaves a teacher or reference without weights on all processes but the first.
        command += ["--fsdp_cpu_ram_efficient_loading", "false"]
    elif engine.processes > 1:
        # Also on CPU: accelerate's own multi-CPU launcher needs MPI, and without it runs one process in silence.
        command += ["--multi_gpu"]
    return [*command, "-m", "posttrain.run.train", *arguments]


def threads(engine: EngineSpec) -> int:
    """CPU threads of one process: the recipe's word, the environment's, or this machine's share."""
    if engine.threads is not None:
        return engine.threads
    if "OMP_NUM_THREADS" in os.environ:
        return int(os.environ["OMP_NUM_THREADS"])
    return max(1, (os.cpu_count() or 1) // (engine.processes // engine.machines)) if engine.cpu else 1


def launch_environment(engine: EngineSpec, directory: Path) -> dict[str, str]:
    """The environment of the launched processes."""
    environment = {**os.environ, REFUSALS: str(directory)}
    # What DeepSpeed builds on first use, it builds with the ninja that is installed beside this python.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP's advice on speed, once a process
    environment.setdefault("PYTHONFAULTHANDLER", "1")  # where a process stood that a fault of native code ended
    if engine.cpu:
        # Not $ACCELERATE_USE_CPU: with it, accelerate drops DeepSpeed in silence. The trainer's `use_cpu` is enough.
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return environment


def launch(context: StageContext) -> None:
    """Run a stage's training under `accelerate launch`, and wait for it.

    Raises:
        PosttrainError: what a launched process refused, in its own words; or the launch failed, and its output stands
            above.
    """
    engine = context.recipe.engine
    if engine.machines > 1 and machine_rank(engine) == 0:
        require_free_port(engine)
        announce(context)
    arguments = [str(context.run.path), context.name, *(["--quiet"] if context.quiet else [])]
    with tempfile.TemporaryDirectory(prefix="posttrain-launch-") as folder:
        command = launch_command(engine, Path(folder), arguments)
        code = run_child(command, launch_environment(engine, Path(folder)))
        problems = refusals(Path(folder))
    if problems:
        raise PosttrainError(problems)
    if code != 0:
        raise PosttrainError(
            Problem(
                f"stage {context.name}: the launched processes failed",
                why=f"accelerate launch ended with exit code {code}",
                remedy="read the output above; the same command goes on from the last whole checkpoint",
            )
        )


def refuse(error: PosttrainError) -> bool:
    """In a launched process: leave its problems to the process that launched it. False where none did."""
    folder = os.environ.get(REFUSALS)
    if folder is None:
        return False
    rank = os.environ.get("RANK", "0")
    problems = [dataclasses.asdict(problem) for problem in error.problems]
    write_json(Path(folder) / f"refusal-{rank}.json", {"problems": problems})
    return True


def refusals(folder: Path) -> list[Problem]:
    """What the launched processes refused, each problem once."""
    told = [problem for path in sorted(folder.glob("refusal-*.json")) for problem in read_json(path)["problems"]]
    return [Problem(**json.loads(text)) for text in dict.fromkeys(json.dumps(problem) for problem in told)]
