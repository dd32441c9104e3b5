"""One stage trained: in this process, or in each of the processes that `accelerate launch` starts (`python -m`)."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import MANIFEST, RunDir, faults_of, is_complete, read_json, seal, write_json
from posttrain.model.policy import (
    adapter_config,
    added_tokens,
    dress_policy,
    load_model,
    load_tokenizer,
    mend_trained_tokens,
)
from posttrain.recipe.teacher import in_words
from posttrain.run.disk import full_disk
from posttrain.run.launch import refuse
from posttrain.run.lifetime import die_with_parent, leave

if TYPE_CHECKING:
    from posttrain.recipe.schema import EngineSpec, ModelSpec
    from posttrain.recipe.stage import StageContext

log = logging.getLogger("posttrain")


def newest_whole_checkpoint(checkpoints: Path) -> Path | None:
    """The newest checkpoint whose files are all there and unchanged; a damaged newer one is named and removed."""
    folders = sorted(checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True)
    for place, folder in enumerate(folders):
        faults = faults_of(folder)
        if not faults:
            return folder
        then = "the one before it is taken" if folders[place + 1 :] else "there is none before it: from the start"
        log.warning("checkpoint %s is damaged or incomplete (%s); %s", folder.name, faults[0], then)
        shutil.rmtree(folder)
    return None


@dataclass(frozen=True)
class Start:
    """What a stage trains: the model, and the adapter to put on it, or None."""

    model: Any
    peft_config: Any | None
    base: Path  # the weights below the adapter


def load_start(context: StageContext, spec: ModelSpec, tokenizer: Any) -> Start:
    """The model a stage starts from, with the adapter of the stage before it taken up where the recipe says so."""
    adapter_dir = context.start.parent / "adapter"
    follows = context.start.name == "model"  # a stage's result; beside a `start` its own adapter may stand
    if spec.adapter is not None and spec.adapter.at_boundary == "continue" and follows and is_complete(adapter_dir):
        from peft import PeftModel

        base = context.run.path / read_json(adapter_dir / MANIFEST)["base"]
        model = PeftModel.from_pretrained(
            load_model(base, dtype=spec.dtype, attention=spec.attention), str(adapter_dir), is_trainable=True
        )
        return Start(model, None, base)
    model = load_model(context.start, dtype=spec.dtype, attention=spec.attention)
    if spec.adapter is None:
        return Start(model, None, context.start)
    return Start(model, adapter_config(spec.adapter, model, tokenizer, added_tokens(context.start)), context.start)


def train_stage(context: StageContext, spec: ModelSpec) -> None:
    """Train one stage from its last whole checkpoint, and write its model.

    Args:
        spec: the model at the root of the stage's chain: its dtype, attention and adapter.
    """
    import torch
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    from posttrain.evaluation.curve import CurveProbe
    from posttrain.run.callbacks import RunRecorder

    stage = context.recipe.stages[context.name]
    if context.recipe.engine.threads:
        torch.set_num_threads(context.recipe.engine.threads)
    tokenizer = load_tokenizer(context.start)
    start = load_start(context, spec, tokenizer)
    trainer = stage.make_trainer(context, start.model, tokenizer, start.peft_config)
    _check_engine(trainer, context.recipe.engine)
    mend_trained_tokens(trainer.model)
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    probe = CurveProbe(context, tokenizer) if stage.evaluate_every else None
    recorder = RunRecorder(context, trainer, probe, stage.evaluate_every)
    trainer.add_callback(recorder)
    checkpoint = newest_whole_checkpoint(context.dir.checkpoints) if trainer.is_world_process_zero() else None
    checkpoint = _agreed(trainer, checkpoint)
    if checkpoint is not None:
        log.info("%s continues from %s", context.name, checkpoint.name)
        recorder.resume(checkpoint)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    _write_model(trainer, context, spec, start, tokenizer)
    if trainer.is_world_process_zero():
        write_json(
            context.dir.path / "training.json",
            {"train_seconds": recorder.now(), "flops": recorder.flops(), "steps": trainer.state.global_step},
        )


def _agreed(trainer: Any, checkpoint: Path | None) -> Path | None:
    """The main process's checkpoint, known to every process."""
    from accelerate.utils import broadcast_object_list

    box = [checkpoint]
    if trainer.accelerator.num_processes > 1:
        broadcast_object_list(box, from_process=0)
    return box[0]


def _check_engine(trainer: Any, engine: EngineSpec) -> None:
    """Refuse to train on other processes, or sharded otherwise, than the recipe says."""
    came = trainer.accelerator.num_processes
    if came != engine.processes:
        raise PosttrainError(
            Problem(
                f"{came} process{'es' * (came > 1)} came up, and engine.processes asks for {engine.processes}",
                why="training would go on at another batch size than the recipe's",
                remedy="start the run with `posttrain run`, on every machine; check the launcher's output above",
            )
        )
    plugin = trainer.accelerator.state.deepspeed_plugin
    strategy = f"zero{plugin.zero_stage}" if plugin is not None else "fsdp2" if trainer.accelerator.is_fsdp2 else "ddp"
    if strategy != engine.strategy:
        raise PosttrainError(
            Problem(
                f"the processes came up with {strategy}, and engine.strategy asks for {engine.strategy}",
                why="each process would need other memory than planned",
                remedy="start the run with `posttrain run`; check that engine.deepspeed asks for the same stage",
            )
        )


def _write_model(trainer: Any, context: StageContext, spec: ModelSpec, start: Start, tokenizer: Any) -> None:
    """Write the stage's model: weights from the trainer (gathered where they are sharded), all else from us."""
    target = context.dir.model
    partial = target.with_name("model.partial")
    main = trainer.is_world_process_zero()
    if main:
        shutil.rmtree(partial, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    if trainer.is_fsdp_enabled:  # its checkpoints are in shards; a model is whole
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(partial))
    trainer.accelerator.wait_for_everyone()
    if not main:
        return
    if (partial / "adapter_config.json").exists():
        _merge_adapter(partial, context, spec, start, tokenizer)
    (partial / "training_args.bin").unlink(missing_ok=True)
    stage = context.recipe.stages[context.name]
    card = {
        "recipe": context.recipe.name,
        "stage": context.name,
        "kind": stage.kind,
        "started_from": str(context.start),
        **({"teacher": in_words(stage.teacher)} if stage.teacher is not None else {}),
        "seed": context.seed,
        "added_tokens": added_tokens(context.start),
    }
    dress_policy(partial, tokenizer, context.family, card=card)
    seal(partial, stage=context.name)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def _merge_adapter(partial: Path, context: StageContext, spec: ModelSpec, start: Start, tokenizer: Any) -> None:
    """Put the adapter into the weights, check that the two are equal, and keep the adapter where it is continued."""
    import torch
    from peft import PeftModel
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    # The other processes are done: under ZeRO-3 the weights would be cut up once more, and nobody be there to share.
    unset_hf_deepspeed_config()
    adapted = PeftModel.from_pretrained(
        load_model(start.base, dtype=spec.dtype, attention=spec.attention), str(partial)
    ).eval()
    added = tokenizer.convert_tokens_to_ids(added_tokens(context.start))
    probe = torch.tensor([[*range(1, 33), *added]])
    with torch.no_grad():
        before = adapted(probe).logits
        merged = adapted.merge_and_unload()
        after = merged(probe).logits
    # Merging rounds each weight once: the logits agree to the precision of the weights' type.
    tolerance = 1e-3 if spec.dtype == "float32" else 0.05
    worst = ((before - after).abs().max() / before.abs().max().clamp(min=1e-6)).item()
    if worst > tolerance:
        raise PosttrainError(
            Problem(
                f"stage {context.name}: merged weights and adapter differ by {worst:.2g} of the largest logit",
                why="the next stage would start from another model than the one trained",
                remedy="train in float32, or choose `at_boundary: continue`",
            )
        )
    log.info("%s: adapter merged, logits differ by %.1e of the largest at most", context.name, worst)
    if spec.adapter is not None and spec.adapter.at_boundary == "continue":
        adapter = context.dir.path / "adapter"
        shutil.rmtree(adapter, ignore_errors=True)
        adapter.mkdir(parents=True)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy2(partial / name, adapter / name)
        seal(adapter, base=os.path.relpath(start.base, context.run.path))  # a run may be moved
    shutil.rmtree(partial)
    merged.save_pretrained(str(partial))


def main() -> None:
    """Train a stage of a prepared run (started by the engine, once a process)."""
    die_with_parent()
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("stage")
    parser.add_argument("--quiet", action="store_true")
    arguments = parser.parse_args()
    main_process = os.environ.get("RANK", "0") == "0"  # what all would say, one says
    logging.basicConfig(level=logging.WARNING if main_process else logging.ERROR, format="%(message)s")
    if main_process and not arguments.quiet:
        log.setLevel(logging.INFO)
    from posttrain.run.quiet import hush_libraries

    hush_libraries()
    from posttrain.recipe.load import load_recipe
    from posttrain.run.context import context_of, root_spec

    run = RunDir(arguments.run)
    recipe = load_recipe(run.recipe).recipe
    if recipe.engine.cpu and recipe.engine.strategy.startswith("zero"):
        _build_nothing()
    try:
        train_stage(context_of(recipe, run, arguments.stage, quiet=arguments.quiet), root_spec(recipe, arguments.stage))
    except PosttrainError as error:
        _tell(error)
    except Exception as error:
        problem = full_disk(error)
        if problem is None:
            raise
        _tell(PosttrainError(problem))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        leave()


def _build_nothing() -> None:
    """Keep DeepSpeed from compiling an operator for shared memory, at its first use on a CPU, that no training calls.

    It takes a minute and needs a C++ compiler; only tensor-parallel inference reduces through it
    (`deepspeed.comm.torch.TorchBackend.inference_all_reduce`).
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}


def _tell(error: PosttrainError) -> NoReturn:
    """Leave an error to the process that launched this one, or print it; end with its exit code."""
    if not refuse(error):
        print(error, file=sys.stderr)
    raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
