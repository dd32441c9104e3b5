"""What distillation costs, beside TRL's trainers: speed and peak memory of steps on a vocabulary of 151,936 entries.

    python benchmarks/distillation.py                  students of hidden size 128, a teacher of 256
    python benchmarks/distillation.py --size 0.6b      student and teacher of Qwen3-0.6B's shape, in bfloat16, two steps

Four trainings, in turns, each in a process of its own; the same student, teacher and number of tokens a step
(16 completions of 64 tokens behind prompts; `0.6b`: 4), random weights, full fine-tuning by AdamW (`0.6b`: SGD):

- `on_policy`: posttrain's on-policy stage; `trl_distillation`: TRL's `DistillationTrainer`. Reverse KL; the student
  samples at temperature 1, the teacher reads.
- `from_cache`: posttrain's off-policy stage on stored top-64 log-probabilities; `trl_gkd`: TRL's `GKDTrainer`
  off-policy (`lmbda` 0). Forward KL on the same rows of given tokens: GKD's teacher reads at every step, the cache's
  has read once, which is told beside it.

Speed: completion tokens a CPU-second of one thread, the median over the steps after the first. Memory: the peak of the
process's resident set over what it had before training, when both models stood in memory (from cache: the student), so
gradients and the optimizer's state are in it. The last line is JSON: `ours` is from_cache's speed, `theirs` trl_gkd's;
`met` asks for 4 times that speed with an eighth of its memory, and on-policy for 1.5 times TRL's with less memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "distillation.json"
VARIANTS = ("on_policy", "trl_distillation", "from_cache", "trl_gkd")
ROWS, PROMPT, COMPLETION, K = 151_936, 24, 64, 64
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
QWEN3_0_6B = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
SHAPES: dict[str, dict[str, dict[str, int]]] = {
    "tiny": {
        "student": {"hidden_size": 128, "intermediate_size": 384, **SMALL},
        "teacher": {"hidden_size": 256, "intermediate_size": 768, **SMALL},
    },
    "0.6b": {"student": QWEN3_0_6B, "teacher": QWEN3_0_6B},
}
BATCH = {"tiny": 16, "0.6b": 4}


def model_of(size: str, who: str) -> Any:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(("student", "teacher").index(who))
    config = Qwen3Config(vocab_size=ROWS, tie_word_embeddings=True, initializer_range=0.1, **SHAPES[size][who])
    if size == "tiny":
        return Qwen3ForCausalLM(config)
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    model.init_weights()
    model.tie_weights()
    return model


def arguments(config: type, size: str, steps: int, folder: str, **options: Any) -> Any:
    return config(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=BATCH[size],
        learning_rate=1e-4,
        optim="adamw_torch" if size == "tiny" else "sgd",
        logging_steps=1,
        logging_first_step=True,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        **options,
    )


def given_rows(number: int) -> Any:
    """Rows of given tokens, their completions supervised."""
    import numpy as np
    from datasets import Dataset

    ids = np.random.default_rng(0).integers(0, 151_643, size=(number, PROMPT + COMPLETION))
    labels = ids.copy()
    labels[:, :PROMPT] = -100
    lists = {"input_ids": ids.astype(np.int32).tolist(), "labels": labels.astype(np.int32).tolist()}
    import datasets

    features = datasets.Features(dict.fromkeys(lists, datasets.List(datasets.Value("int32"))))
    return Dataset.from_dict(lists, features=features)


def asked_rows(number: int) -> Any:
    from datasets import Dataset

    row = {"mode": "thinking", "switch": "template", "thinking_budget": -1}
    return Dataset.from_list(
        [{"prompt": [{"role": "user", "content": f"What is {n} + {n}?"}], **row} for n in range(100, 100 + number)]
    )


def trainer_of(variant: str, size: str, steps: int, tokenizer: Any, folder: str) -> tuple[Any, dict[str, float]]:
    """A trainer ready to train, and what was spent before."""
    from trl import DistillationConfig, DistillationTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    if variant == "from_cache":
        return from_cache(size, steps, tokenizer, folder)
    student = model_of(size, "student")
    number = BATCH[size] * steps
    common = {"model": student, "processing_class": tokenizer}
    if variant in ("on_policy", "trl_distillation"):
        from posttrain.distill.trainer import StudentTrainer
        from posttrain.rl.health import Health
        from posttrain.templates.families import get_family

        args = arguments(DistillationConfig, size, steps, folder, beta=1.0, max_completion_length=COMPLETION)
        kind = StudentTrainer if variant == "on_policy" else DistillationTrainer
        trainer = kind(
            **common, args=args, teacher_model=model_of(size, "teacher").eval(), train_dataset=asked_rows(number)
        )
        if variant == "on_policy":
            trainer.set_rollouts(get_family("qwen3"), seed=0)
            trainer.watch(Health(), entries=len(tokenizer))
        return trainer, {}
    rows = given_rows(number)
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    args = arguments(GKDConfig, size, steps, folder, lmbda=0.0, beta=0.0, temperature=1.0)
    collator = DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)
    teacher = model_of(size, "teacher").eval()
    return GKDTrainer(**common, args=args, teacher_model=teacher, train_dataset=rows, data_collator=collator), {}


def fill_cache(directory: Path, rows: Any, size: str, entries: int) -> float:
    """Store the teacher's log-probabilities; return CPU seconds. In a process of its own: its memory goes with it."""
    import multiprocessing

    from posttrain.distill.cache_write import fill
    from posttrain.distill.local_teacher import LocalTeacher

    def work() -> None:
        began = time.process_time()
        fill(
            directory,
            rows,
            lambda: LocalTeacher(model_of(size, "teacher"), entries=entries, k=K),
            {"made": "here"},
            k=K,
            entries=entries,
        )
        (directory / "seconds").write_text(str(time.process_time() - began))

    worker = multiprocessing.get_context("fork").Process(target=work)
    worker.start()
    worker.join()
    return float((directory / "seconds").read_text())


def from_cache(size: str, steps: int, tokenizer: Any, folder: str) -> tuple[Any, dict[str, float]]:
    import numpy as np
    from trl import SFTConfig

    from posttrain.distill.cache import LogprobCache
    from posttrain.distill.cached_trainer import CachedTeacherTrainer

    rows, directory, entries = given_rows(BATCH[size] * steps), Path(folder) / "cache", len(tokenizer)
    filled = fill_cache(directory, rows, size, entries)
    rows = rows.add_column("row", np.arange(len(rows)))
    prepared = {"skip_prepare_dataset": True}
    args = arguments(
        SFTConfig, size, steps, folder, max_length=None, dataset_kwargs=prepared, remove_unused_columns=False
    )
    trainer = CachedTeacherTrainer(
        model=model_of(size, "student"), processing_class=tokenizer, args=args, train_dataset=rows
    )
    trainer.teach(LogprobCache(directory), entries=entries, beta=0.0, temperature=1.0, cross_entropy=0.0)
    return trainer, {"filling_cpu_seconds": filled, "filled_tokens": float(len(rows) * COMPLETION)}


def memory(name: str) -> float:
    """`VmHWM` (the peak) or `VmRSS` of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def measure(variant: str, size: str, steps: int) -> dict[str, Any]:
    """Train, and say what it took. In a process of its own."""
    import torch
    from transformers import TrainerCallback

    sys.path.insert(0, str(ROOT / "benchmarks"))
    from qwen3_tokenizer import load_qwen3_tokenizer  # type: ignore[import-not-found]

    from posttrain.templates.families import get_family
    from posttrain.templates.render import template_text

    torch.set_num_threads(1)
    tokenizer = load_qwen3_tokenizer()
    tokenizer.chat_template = template_text(get_family("qwen3"))
    tokenizer.padding_side = "left"

    class Clock(TrainerCallback):  # type: ignore[misc]
        times: list[float] = []  # noqa: RUF012

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder:
        trainer, spent = trainer_of(variant, size, steps, tokenizer, folder)
        clock = Clock()
        trainer.add_callback(clock)
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what comes from here on
        began = time.process_time()
        trainer.train()
    each = [later - earlier for earlier, later in zip([began, *clock.times], clock.times, strict=False)]
    seconds = statistics.median(each[1:] or each)
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "cpu_seconds_a_step": round(seconds, 2),
        "tokens_a_cpu_second": round(BATCH[size] * COMPLETION / seconds, 1),
        "peak_mib": round(memory("VmHWM") - before),
        "losses": [round(float(loss), 4) for loss in history],
        **{name: round(value, 2) for name, value in spent.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=sorted(SHAPES), default="tiny")
    parser.add_argument("--steps", type=int, default=None, help="of each training; the first is not counted")
    parser.add_argument("--batch", type=int, default=None, help="completions a step; trl_gkd takes 7 GB at 16")
    parser.add_argument("--turns", type=int, default=1, help="times that each training is measured")
    parser.add_argument("--only", choices=VARIANTS, nargs="*", default=VARIANTS)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    steps = given.steps or (4 if given.size == "tiny" else 2)
    BATCH[given.size] = given.batch or BATCH[given.size]
    if given.variant:
        print(json.dumps(measure(given.variant, given.size, steps)))
        return
    turns: dict[str, list[dict[str, Any]]] = {variant: [] for variant in given.only}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(ROOT)}
    for _ in range(given.turns):
        for variant in given.only:
            command = [sys.executable, __file__, "--variant", variant, "--size", given.size, "--steps", str(steps)]
            command += ["--batch", str(BATCH[given.size])]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            turns[variant].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{variant}: {turns[variant][-1]}", flush=True)
    tell(given.size, turns)


def tell(size: str, turns: dict[str, list[dict[str, Any]]]) -> None:
    """Keep the result, beside what an earlier run measured of other variants, and print what it comes to."""
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    key = f"{size}, {BATCH[size]} completions of {COMPLETION} tokens a step"
    turns = {**result.get(key, {}).get("turns", {}), **turns}
    speed = {name: statistics.median(one["tokens_a_cpu_second"] for one in all) for name, all in turns.items()}
    peak = {name: statistics.median(one["peak_mib"] for one in all) for name, all in turns.items()}
    ratios = {}
    for ours, theirs in (("on_policy", "trl_distillation"), ("from_cache", "trl_gkd")):
        if ours in speed and theirs in speed:
            ratios[ours] = {
                "speed": round(speed[ours] / speed[theirs], 2),
                "memory": round(peak[ours] / peak[theirs], 3),
            }
    command = f"python benchmarks/distillation.py --size {size} --batch {BATCH[size]}"
    result[key] = {"turns": turns, "ratios": ratios, "command": command}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    cached, on_policy = ratios.get("from_cache"), ratios.get("on_policy")
    met = bool(
        cached
        and on_policy
        and cached["speed"] >= 4
        and cached["memory"] <= 1 / 8
        and on_policy["speed"] >= 1.5
        and on_policy["memory"] < 1
    )
    line = {"ours": speed.get("from_cache"), "theirs": speed.get("trl_gkd"), "unit": "completion tokens a CPU-second"}
    ratio = cached["speed"] if cached else None
    target = "from cache 4x GKD's speed at 1/8 of its memory; on-policy 1.5x DistillationTrainer's with less memory"
    print(
        json.dumps(
            {"name": f"distillation_{size}", **line, "ratio": ratio, "ratios": ratios, "target": target, "met": met}
        )
    )


if __name__ == "__main__":
    main()
