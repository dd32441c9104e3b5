"""Training in several processes: the same losses and artefacts as in one, sharded or not; nothing left behind."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from posttrain.distill.cache import FINGERPRINT, LogprobCache, check_fingerprint
from posttrain.distill.cache_processes import fill_by_processes, processes_here
from posttrain.distill.cache_stage import open_teacher
from posttrain.distill.cache_write import fill
from posttrain.errors import PosttrainError
from posttrain.model.artifacts import RunDir, faults_of, read_json, write_json, write_text
from posttrain.model.policy import load_tokenizer
from posttrain.recipe.fingerprint import dump_resolved
from posttrain.recipe.load import load_recipe
from posttrain.recipe.schema import EngineSpec
from posttrain.recipe.stage import StageContext
from posttrain.run import engine
from posttrain.run.context import context_of
from posttrain.run.launch import deepspeed_options, launch, launch_command, threads

from .conftest import CHAIN, posttrain

RECIPE = CHAIN.with_name("engine.yaml")
ROOT = CHAIN.parents[2]

# Several processes on a shared machine.
launched = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of tests/recipes/engine.yaml in one process. Do not change it: copy it."""
    directory = tmp_path_factory.mktemp("engine") / "run"
    done = posttrain("run", RECIPE, "--output", directory, "--quiet")
    assert done.returncode == 0, done.stderr
    return directory


def engine_of(strategy: str, **options: Any) -> dict[str, Any]:
    return {
        **{"launcher": "accelerate", "processes": 2, "strategy": strategy, "cpu": True, "threads": 1},
        **options,
    }


def prepared(one_process: Path, directory: Path, stage: str, engine: dict[str, Any]) -> StageContext:
    """The run up to the training of a stage, its data built; batches divided by the processes."""
    shutil.copytree(one_process, directory)
    here = directory / "stages" / stage
    for path in here.iterdir():
        if path.name not in ("data", "start", "started.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    recipe = yaml.safe_load((directory / "recipe.yaml").read_text())
    recipe["engine"] = engine
    for options in recipe["stages"].values():
        options["train"]["per_device_train_batch_size"] //= engine["processes"]
    write_text(directory / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
    return context_of(load_recipe(directory / "recipe.yaml").recipe, RunDir(directory), stage, quiet=True)


def rows(run: Path, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "stages" / stage / "metrics.jsonl").read_text().splitlines()]


def series(run: Path, stage: str, key: str) -> list[float]:
    return [row[key] for row in rows(run, stage) if key in row]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    state: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(directory).state_dict()
    return state


def assert_same_training(ours: Path, theirs: Path, *, tolerance: float = 2e-3) -> None:
    """The SFT stage of both runs: losses, gradients, weights, files."""
    for key in ("loss", "grad_norm", "learning_rate"):
        assert series(ours, "sft", key) == pytest.approx(series(theirs, "sft", key), rel=tolerance, abs=tolerance), key
    assert len(series(ours, "sft", "loss")) == 40
    ours, theirs = ours / "stages/sft/model", theirs / "stages/sft/model"
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
    assert faults_of(ours) == []
    mine, other = weights(ours), weights(theirs)
    assert mine.keys() == other.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], other[name], rtol=0.02, atol=5e-3)
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


@launched
def test_zero2_trains_as_one_process(one_process: Path, tmp_path: Path) -> None:
    context = prepared(one_process, tmp_path / "run", "sft", engine_of("zero2"))
    launch(context)
    assert_same_training(context.run.path, one_process)
    # Tokens of all processes. (TRL counts them anew after a resume.)
    assert series(context.run.path, "sft", "num_tokens") == series(one_process, "sft", "num_tokens")


@launched
def test_zero2_does_rl_on_rollouts_of_its_own_on_each_rank(one_process: Path, tmp_path: Path) -> None:
    context = prepared(one_process, tmp_path / "run", "grpo", engine_of("zero2"))
    launch(context)
    # The last checkpoint lies within a generation that serves two steps: the rollouts in use are in it.
    states = [torch.load(context.dir.checkpoints / "checkpoint-3" / f"rollouts_{rank}.pt") for rank in (0, 1)]
    buffers = [state["buffer"] for state in states]
    assert buffers[0] is not None and buffers[1] is not None
    drawn = [[batch["completion_ids"].tolist() for batch in buffer] for buffer in buffers]
    assert drawn[0] != drawn[1]
    assert states[0]["counters"] == states[1]["counters"]
    assert faults_of(context.dir.checkpoints / "checkpoint-3") == []
    ours, theirs = rows(context.run.path, "grpo"), rows(one_process, "grpo")
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    assert [set(row) for row in ours] == [set(row) for row in theirs]
    assert any(value != 0 for value in series(context.run.path, "grpo", "grad_norm"))
    curves = [(run / "stages/grpo/curve.jsonl").read_text().splitlines() for run in (context.run.path, one_process)]
    assert [json.loads(line)["step"] for line in curves[0]] == [json.loads(line)["step"] for line in curves[1]]
    assert faults_of(context.dir.model) == []
    before, after = weights(one_process / "stages/sft/model"), weights(context.dir.model)
    assert any(not torch.equal(before[name], after[name]) for name in before)


@launched
def test_zero3_distils_on_policy(one_process: Path, tmp_path: Path) -> None:
    context = prepared(one_process, tmp_path / "run", "student", engine_of("zero3"))
    launch(context)
    ours, theirs = rows(context.run.path, "student"), rows(one_process, "student")
    assert [set(row) for row in ours] == [set(row) for row in theirs]
    size = theirs[-1]["flops"] / theirs[-1]["tokens/train"]
    for row in ours:  # every parameter is counted, wherever it lies; each token was sampled and trained on once
        assert row["flops"] / row["tokens/train"] == pytest.approx(size, rel=1e-6)
    assert faults_of(context.dir.model) == [] and weights(context.dir.model)
    assert [json.loads(line)["step"] for line in context.dir.curve.read_text().splitlines()] == [0, 2, 3]


def adapted(one_process: Path, directory: Path, engine: dict[str, Any]) -> StageContext:
    """A stage of off-policy distillation that puts an adapter on the model of stage sft, up to its training.

    What the teacher answered is what stage sft was trained on: the files are of the same form.
    """
    shutil.copytree(one_process, directory)
    shutil.copytree(directory / "stages/sft/data", directory / "stages/taught/data")
    recipe = yaml.safe_load((directory / "recipe.yaml").read_text())
    lora = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    recipe["model"]["adapter"] = {"lora": lora, "at_boundary": "continue"}
    recipe["engine"] = engine
    train = {"max_steps": 4, "learning_rate": 1e-2, "logging_steps": 1, "save_steps": 2}
    recipe["stages"]["taught"] = {
        **{"kind": "off_policy_distillation", "start_from": "sft", "teacher": "sft", "queries": {"from": "problems"}},
        "train": {**train, "per_device_train_batch_size": 8 // engine.get("processes", 1)},
    }
    write_text(directory / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
    return context_of(load_recipe(directory / "recipe.yaml").recipe, RunDir(directory), "taught", quiet=True)


@pytest.fixture(scope="module")
def adapted_alone(one_process: Path, tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    alone = adapted(one_process, tmp_path_factory.mktemp("adapted") / "run", {"cpu": True, "threads": 1})
    engine.train(alone, alone.recipe.model)
    return alone


@launched
@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
def test_an_adapter_is_trained_sharded_as_by_one_process(
    one_process: Path, adapted_alone: StageContext, tmp_path: Path, strategy: str
) -> None:
    context = adapted(one_process, tmp_path / "run", engine_of(strategy))
    launch(context)
    if strategy == "fsdp2":  # as if it had been killed before its last checkpoint: each process reads its own shards
        whole = weights(context.dir.model)
        for path in (context.dir.model, context.dir.path / "adapter", context.dir.checkpoints / "checkpoint-4"):
            shutil.rmtree(path)
        launch(context)
        again = weights(context.dir.model)
        assert all(torch.equal(again[name], whole[name]) for name in whole)
    for key in ("loss", "grad_norm"):
        ours, theirs = (series(run.run.path, "taught", key) for run in (context, adapted_alone))
        assert len(ours) == 4 and ours == pytest.approx(theirs, rel=5e-3, abs=5e-3), key
    # Merged into the weights, and kept for the next stage: the gathered one, equal to that of one process.
    assert faults_of(context.dir.model) == [] and faults_of(context.dir.path / "adapter") == []
    mine, other = weights(context.dir.model), weights(adapted_alone.dir.model)
    start = weights(one_process / "stages/sft/model")
    assert any(not torch.equal(mine[name], start[name]) for name in start)
    for name in start:
        torch.testing.assert_close(mine[name], other[name], rtol=0.02, atol=5e-3)


def remembered(one_process: Path, directory: Path, engine: dict[str, Any]) -> StageContext:
    """A stage that learns from stage sft's stored log-probabilities on what that was trained on, up to its training."""
    from datasets import load_from_disk

    from posttrain.distill.cache_stage import PLACE
    from posttrain.distill.cache_write import fill
    from posttrain.distill.local_teacher import LocalTeacher
    from posttrain.model.artifacts import write_json
    from posttrain.model.policy import load_model, load_tokenizer

    shutil.copytree(one_process, directory)
    data = directory / "stages/taught/data"
    shutil.copytree(directory / "stages/sft/data", data)
    teacher = directory / "stages/sft/model"
    entries = len(load_tokenizer(teacher))
    local = LocalTeacher(load_model(teacher), entries=entries, k=8)
    fill(directory / "teacher", load_from_disk(str(data / "train")), lambda: local, {"of": "sft"}, k=8, entries=entries)
    write_json(data / PLACE, {"directory": "../../../teacher"})
    recipe = yaml.safe_load((directory / "recipe.yaml").read_text())
    recipe["engine"] = engine
    train = {"max_steps": 4, "learning_rate": 1e-2, "logging_steps": 1, "save_steps": 2}
    recipe["stages"]["taught"] = {
        **{"kind": "off_policy_distillation", "start_from": "base", "teacher": "sft", "queries": {"from": "problems"}},
        "logits": {"top_k": 8, "cross_entropy": 0.1},
        "train": {**train, "per_device_train_batch_size": 8 // engine.get("processes", 1)},
    }
    write_text(directory / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
    return context_of(load_recipe(directory / "recipe.yaml").recipe, RunDir(directory), "taught", quiet=True)


@launched
def test_stored_log_probabilities_teach_two_processes_as_one(one_process: Path, tmp_path: Path) -> None:
    alone = remembered(one_process, tmp_path / "alone", {"cpu": True, "threads": 1})
    engine.train(alone, alone.recipe.model)
    context = remembered(one_process, tmp_path / "run", engine_of("zero3"))
    launch(context)
    for key in ("loss", "grad_norm", "divergence", "cross_entropy", "num_tokens"):
        ours, theirs = (series(run.run.path, "taught", key) for run in (context, alone))
        assert len(ours) == 4 and ours == pytest.approx(theirs, rel=5e-3, abs=5e-3), key
    mine, other = weights(context.dir.model), weights(alone.dir.model)
    for name in mine:
        torch.testing.assert_close(mine[name], other[name], rtol=0.02, atol=5e-3)


@launched
def test_two_processes_store_what_one_does(one_process: Path, tmp_path: Path) -> None:
    from datasets import load_from_disk

    context = remembered(one_process, tmp_path / "run", engine_of("ddp"))
    rows = load_from_disk(str(context.dir.data / "train"))
    assert isinstance(context.teacher, Path) and processes_here(context) == 2
    alone, both = tmp_path / "alone", tmp_path / "both"
    told: list[int] = []

    def fill_both() -> int:
        return fill_by_processes(both, rows, context, 2, k=8, temperature=1.0, shard_tokens=100, progress=told.append)

    for directory in (alone, both):
        assert not check_fingerprint(directory, {"of": "sft"})
        write_json(directory / FINGERPRINT, {"of": "sft"})
    tokenizer = load_tokenizer(context.start)
    teacher = open_teacher(context, tokenizer, k=8, temperature=1.0)
    asked = fill(alone, rows, lambda: teacher, {"of": "sft"}, k=8, entries=len(tokenizer), shard_tokens=100)
    shards = [f"shard-{number:05d}.arrow" for number in (0, 1)]
    assert fill_both() == asked == sum(told) and len(told) > 2
    for name in shards:
        assert (both / name).read_bytes() == (alone / name).read_bytes()
    assert LogprobCache(both).tokens == LogprobCache(alone).tokens == asked
    (both / shards[1]).write_bytes(b"damaged")
    told.clear()
    assert 0 < fill_both() == sum(told) < asked and len(told) == 1
    assert (both / shards[1]).read_bytes() == (alone / shards[1]).read_bytes()
    (both / shards[0]).unlink()
    (context.teacher / "model.safetensors").unlink()
    with pytest.raises(PosttrainError, match="sft"):
        fill_both()
    assert (both / shards[1]).exists()


@launched
def test_killed_while_sharded_leaves_nothing_behind_and_goes_on(one_process: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    context = prepared(one_process, directory, "sft", engine_of("fsdp2"))
    script = (
        "import sys; from pathlib import Path; from posttrain.run.context import context_of;"
        "from posttrain.recipe.load import load_recipe; from posttrain.model.artifacts import RunDir;"
        "from posttrain.run.launch import launch; run = RunDir(Path(sys.argv[1]));"
        "launch(context_of(load_recipe(run.recipe).recipe, run, 'sft', quiet=True))"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(directory)], cwd=ROOT)
    sealed = context.dir.checkpoints / "checkpoint-20" / "manifest.json"
    while not sealed.exists():
        assert process.poll() is None, "the training ended before its second checkpoint"
        time.sleep(0.01)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3  # the launcher and two workers
    process.kill()  # -9, and only the process above the launcher
    process.wait()
    assert gone(children)
    # Whole, with every process's share in it.
    assert faults_of(sealed.parent) == []
    assert {f"rng_state_{rank}.pth" for rank in (0, 1)} <= {path.name for path in sealed.parent.iterdir()}
    launch(context)
    assert_same_training(directory, one_process)


def gone(processes: list[psutil.Process], seconds: float = 20.0) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@launched
def test_another_number_of_processes_is_refused_in_words(one_process: Path, tmp_path: Path) -> None:
    context = prepared(one_process, tmp_path / "run", "sft", engine_of("ddp"))
    alone = context.recipe.engine.model_copy(update={"processes": 1})  # what comes up; recipe.yaml still says 2
    with pytest.raises(PosttrainError) as raised:
        launch(dataclasses.replace(context, recipe=context.recipe.model_copy(update={"engine": alone})))
    assert raised.value.exit_code == 2
    assert [problem.what for problem in raised.value.problems] == ["1 process came up, and engine.processes asks for 2"]
    assert not context.dir.model.exists()


PARENT = """
import sys
from posttrain.run.lifetime import run_child
try:
    run_child([sys.executable, "-c", sys.argv[1]], {**__import__("os").environ})
except KeyboardInterrupt:
    sys.exit(130)
"""
CHILD = """
import subprocess, sys, time
from posttrain.run.lifetime import die_with_parent
die_with_parent()
worker = "from posttrain.run.lifetime import die_with_parent; die_with_parent();" \\
    "import os, time; os.write(1, b'up' + bytes([10])); time.sleep(600)"
workers = [subprocess.Popen([sys.executable, "-c", worker], start_new_session=True) for _ in range(2)]
time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_its_run(how: signal.Signals) -> None:
    # A shell's background job ignores SIGINT, and so would all that it starts.
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD], cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=heard
    )
    assert parent.stdout is not None
    assert [parent.stdout.readline() for _ in range(2)] == ["up\n", "up\n"]
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) == 3
    parent.send_signal(how)
    assert parent.wait(20) == (130 if how == signal.SIGINT else -how)
    assert gone(children)


WORKERS = """
import atexit, os, sys
import torch
import torch.distributed as dist
from posttrain.run.lifetime import leave
torch.set_num_threads(1)
child = os.fork()
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=int(child == 0), world_size=2)
atexit.register(os.write, 1, b"registered ")  # print() may write the text and its end apart, and two processes do
given, taken = torch.ones(1 << 20), [torch.empty(1 << 20) for _ in range(2)]
for _ in range(20):  # under way still when the process ends: gloo's threads hold tensors that Python knows
    work = dist.group.WORLD.allgather([taken], [given.clone()])
del given, taken, work
os.write(1, b"done ")
if child:
    assert os.waitpid(child, 0)[1] == 0
leave()
"""


def test_workers_that_are_done_end_without_a_crash(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKERS, str(tmp_path / "store")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "terminate" not in done.stderr, done.stderr
    assert sorted(done.stdout.split()) == ["done", "done", "registered", "registered"]


def test_exit_codes_of_a_child_are_passed_on() -> None:
    from posttrain.run.lifetime import run_child

    assert run_child([sys.executable, "-c", "raise SystemExit(3)"], os.environ) == 3


def test_launch_command(tmp_path: Path) -> None:
    command = launch_command(EngineSpec.model_validate(engine_of("ddp", main_port=1)), tmp_path, ["RUN", "STAGE"])
    assert command[-4:] == ["-m", "posttrain.run.train", "RUN", "STAGE"]
    assert value(command, "--main_process_port") == "0"  # on one machine any free port, whatever is taken
    assert "--multi_gpu" in command
    options = engine_of("zero3", machines=2, processes=4, machine_rank=1, main_address="10.0.0.1", main_port=29700)
    command = launch_command(EngineSpec.model_validate(options), tmp_path, [])
    assert value(command, "--machine_rank") == "1" and value(command, "--num_processes") == "4"
    assert value(command, "--main_process_ip") == "10.0.0.1" and value(command, "--main_process_port") == "29700"
    written = read_json(Path(value(command, "--deepspeed_config_file")))
    assert written["zero_optimization"]["stage"] == 3


def value(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


def test_deepspeed_options_of_the_recipe_win() -> None:
    own = {"zero_optimization": {"overlap_comm": True}, "gradient_clipping": 0.5}
    options = deepspeed_options(EngineSpec.model_validate(engine_of("zero2", deepspeed=own)))
    assert options["zero_optimization"] == {"stage": 2, "overlap_comm": True}
    assert options["gradient_clipping"] == 0.5 and options["train_batch_size"] == "auto"


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = EngineSpec.model_validate({"launcher": "accelerate", "processes": 4, "machines": 2, "cpu": True})
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert threads(spec) == 6  # two processes share this machine
    assert threads(spec.model_copy(update={"threads": 3})) == 3
    assert threads(spec.model_copy(update={"cpu": False})) == 1


def test_muon_is_refused_where_matrices_are_cut_flat() -> None:
    muon = "stages.sft.optimizer={name: muon, learning_rate: 0.02}"
    engine = [f"engine.{key}={json.dumps(entry)}" for key, entry in engine_of("zero2").items()]
    with pytest.raises(PosttrainError, match="Muon needs whole matrices"):
        load_recipe(RECIPE, [muon, *engine])
    dump_resolved(load_recipe(RECIPE, [muon, *[line.replace("zero2", "fsdp2") for line in engine]]).recipe)
