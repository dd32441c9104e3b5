"""A cache of log-probabilities filled by several processes of this machine, each with a teacher of its own.

A stage that trains on several devices has them idle while its data are built. So each of them gets a process
(`python -m`), which loads the teacher there and writes the shards that are its own (`cache_write.fill`).
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING

from posttrain.distill.cache import FINGERPRINT
from posttrain.distill.cache_shards import SHARD_TOKENS, Shard, plan_shards
from posttrain.distill.cache_write import fill
from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import RunDir, read_json

if TYPE_CHECKING:
    from datasets import Dataset

    from posttrain.recipe.stage import StageContext

POLL = 0.5  # seconds between two looks at what was written


def processes_here(context: StageContext) -> int:
    """How many a cache of this stage is filled by: as many as it trains on, where the teacher can be loaded by each."""
    engine = context.recipe.engine
    return max(1, engine.processes // engine.machines) if isinstance(context.teacher, Path) else 1


def fill_by_processes(
    directory: Path,
    dataset: Dataset,
    context: StageContext,
    processes: int,
    *,
    k: int,
    temperature: float,
    shard_tokens: int = SHARD_TOKENS,
    progress: Callable[[int], None] = lambda tokens: None,
) -> int:
    """Write what is missing, as `cache_write.fill` does, by so many processes.

    Args:
        directory: of the cache, with its fingerprint in it.
        dataset: the stage's data, as they lie in its directory.

    Returns:
        Tokens that the teacher was asked about.

    Raises:
        PosttrainError: what one of the processes refused, in its own words; or it failed. What was written stays.
    """
    from posttrain.run.launch import launch_environment, refusals, threads
    from posttrain.run.lifetime import start_child

    missing = [shard for shard in plan_shards(dataset, shard_tokens) if not shard.is_whole(directory)]
    for shard in missing:
        shard.record(directory).unlink(missing_ok=True)  # of a damaged one: it is told of when it is written anew
    given = [str(context.run.path), context.name, str(directory), "--processes", str(processes)]
    given += ["--k", str(k), "--temperature", str(temperature), "--shard-tokens", str(shard_tokens)]
    with tempfile.TemporaryDirectory(prefix="posttrain-fill-") as folder:
        environment = launch_environment(context.recipe.engine, Path(folder))
        environment["OMP_NUM_THREADS"] = str(threads(context.recipe.engine))
        command = [sys.executable, "-m", "posttrain.distill.cache_processes", *given, "--process"]
        needed = sorted({shard.number % processes for shard in missing})
        running = [start_child([*command, str(at)], {**environment, "RANK": str(at)}) for at in needed]
        try:
            _watch(directory, missing, running, progress)
        finally:
            for each in running:
                each.kill()
                each.wait()
        problems = refusals(Path(folder))
    if problems:
        raise PosttrainError(problems)
    if codes := [each.returncode for each in running if each.returncode]:
        what = f"stage {context.name}: a process that stores log-probabilities failed"
        why = f"it ended with exit code {codes[0]}"
        raise PosttrainError(Problem(what, why=why, remedy="read its output above; the same command goes on"))
    return sum(shard.tokens for shard in missing)


def _watch(
    directory: Path, missing: Sequence[Shard], running: Sequence[Popen[bytes]], progress: Callable[[int], None]
) -> None:
    """Tell of shards as they are written, until no process runs any more."""
    waiting, ended = list(missing), False
    while not ended:
        ended = all(each.poll() is not None for each in running)
        written = [shard for shard in waiting if (directory / shard.file).exists() and shard.recorded(directory)]
        for shard in written:
            progress(shard.tokens)
            waiting.remove(shard)
        if not ended:
            time.sleep(POLL)


def _fill_own(arguments: argparse.Namespace) -> None:
    """What one of the processes does."""
    import torch
    from datasets import load_from_disk

    from posttrain.distill.cache_stage import open_teacher
    from posttrain.distill.teacher import entries_of
    from posttrain.model.policy import load_tokenizer
    from posttrain.recipe.load import load_recipe
    from posttrain.run.context import context_of

    run = RunDir(arguments.run)
    context = context_of(load_recipe(run.recipe).recipe, run, arguments.stage, quiet=True)
    if not context.recipe.engine.cpu and torch.accelerator.is_available():
        torch.accelerator.set_device_index(arguments.process % torch.accelerator.device_count())
    tokenizer = load_tokenizer(context.start)
    fill(
        arguments.directory,
        load_from_disk(str(context.dir.data / "train")),
        lambda: open_teacher(context, tokenizer, k=arguments.k, temperature=arguments.temperature),
        read_json(arguments.directory / FINGERPRINT),
        k=arguments.k,
        entries=entries_of(tokenizer),
        process=arguments.process,
        processes=arguments.processes,
        shard_tokens=arguments.shard_tokens,
    )


def main() -> None:
    from posttrain.run.disk import full_disk
    from posttrain.run.launch import refuse
    from posttrain.run.lifetime import die_with_parent
    from posttrain.run.quiet import hush_libraries

    die_with_parent()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    hush_libraries()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("stage")
    parser.add_argument("directory", type=Path)
    for name in ("--process", "--processes", "--k", "--shard-tokens"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--temperature", type=float, required=True)
    arguments = parser.parse_args()
    try:
        _fill_own(arguments)
    except Exception as error:
        told = error if isinstance(error, PosttrainError) else None
        if told is None and (problem := full_disk(error)) is not None:
            told = PosttrainError(problem)
        if told is None:
            raise
        refuse(told)
        raise SystemExit(told.exit_code) from None


if __name__ == "__main__":
    main()
