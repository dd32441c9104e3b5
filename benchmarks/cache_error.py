"""What a cache of the k most probable entries leaves out, against full logits.

    python benchmarks/cache_error.py --model models/smollm2-135m-instruct    (`make smollm2` makes it)

For k = 8 to 256: bytes a token, and against the full distribution in double precision the tail's mass, the share of the
forward KL(teacher || student) that top k and one bucket for the rest see, and what float16 adds to the error. Of two
kinds of distribution:

- a model's, on answers of its own sampled at temperature 1; the student is the same model with noise on every weight
  matrix, a little as late in a distillation, and more as early;
- made-up ones over 151,936 entries, with twelve peaks on a floor of noise: sharper than a small model's, and their
  tails flatter.

The last line is JSON: `ours` is the share of the divergence that k = 64 sees of the model, the lower of the two
students; `theirs` the full logits', which is 1. What is lost is told, and has no target.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "cache_error.json"
VOCABULARY = 151_936
QUESTIONS = (
    "What is 17 times 23? Think step by step.",
    "Explain why the sky is blue.",
    "Write a short story about a lighthouse keeper.",
    "Name three rivers of Europe and where they end.",
    "Write a Python function that reverses a list.",
    "How do vaccines work?",
    "Translate into French: the weather is fine today.",
    "A train leaves at 9:40 and takes 2 hours 35 minutes. When does it arrive?",
)
NOISES = (0.02, 0.1)  # of a weight matrix's standard deviation


def drawn() -> tuple[Any, Any]:
    """Logits of a teacher and of a student, made up: (64, V) each, in double precision."""
    import torch

    draw = torch.Generator().manual_seed(0)
    tokens = 64
    logits = torch.randn(tokens, VOCABULARY, generator=draw, dtype=torch.float64) * 2.0
    peaks = torch.randint(VOCABULARY, (tokens, 12), generator=draw)
    heights = 14.0 + 3.0 * torch.randn(tokens, 12, generator=draw, dtype=torch.float64)
    logits.scatter_(1, peaks, heights)
    noise = 0.5 * torch.randn(tokens, VOCABULARY, generator=draw, dtype=torch.float64)
    return logits, logits + noise


def of_a_model(directory: Path, noise: float) -> tuple[Any, Any]:
    """Logits of a model and of the same model with noise on its weights, on answers of the first: (T, V) each.

    Args:
        noise: its standard deviation, in those of each weight matrix.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    teacher, student = (AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32) for _ in range(2))
    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    asked = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )
    length = asked["input_ids"].shape[1]
    with torch.no_grad():
        for weight in student.parameters():
            weight += noise * weight.std() * torch.randn_like(weight) if weight.dim() > 1 else 0.0
        answers = teacher.generate(
            **asked, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=64, min_new_tokens=64
        )
        mask = torch.cat([asked["attention_mask"], torch.ones(len(chats), 64, dtype=torch.long)], 1)
        both = [model(answers, attention_mask=mask).logits[:, length - 1 : -1] for model in (teacher, student)]
    teachers, students = (logits.flatten(0, 1).double() for logits in both)
    return teachers, students


def errors(logits: Any, others: Any) -> list[dict[str, float]]:
    """Bytes a token and error against full logits, by k.

    Args:
        logits, others: the teacher's and the student's, (T, V).
    """
    import torch

    from posttrain.distill.buckets import TopK, bucket_divergence

    teacher, student = logits.log_softmax(1), others.log_softmax(1)
    entries = teacher.shape[1]
    full = (teacher.exp() * (teacher - student)).sum(1).mean().item()
    entropy = -(teacher.exp() * teacher).sum(1).mean().item()
    width = 5 if entries > 1 << 16 else 4  # bytes an entry, its id's high byte included
    found = []
    for k in (8, 16, 32, 64, 128, 256):
        top = teacher.topk(k, dim=1)
        tail = teacher.scatter(1, top.indices, float("-inf")).logsumexp(1)
        kept = TopK(top.indices, top.values.half(), tail.half()).buckets(torch.float64)
        exact = TopK(top.indices, top.values, tail).buckets(torch.float64)
        rest = student.scatter(1, top.indices, float("-inf")).logsumexp(1, keepdim=True)
        ours = torch.cat([student.gather(1, top.indices), rest], 1)
        by_buckets, as_kept = (bucket_divergence(ours, one, 0.0).mean().item() for one in (exact, kept))
        found.append(
            {
                "k": k,
                "bytes_a_token": width * k + 2,
                "smaller_than_float16_logits": round(2 * entries / (width * k + 2)),
                "tail_mass": round(tail.exp().mean().item(), 5),
                "share_of_the_divergence": round(by_buckets / full, 5),
                "error_of_float16": round(abs(as_kept - by_buckets) / full, 6),
                "largest_error_of_a_mass": round((kept.exp() - exact.exp()).abs().max().item(), 7),
            }
        )
    return [
        {
            "tokens": len(teacher),
            "entries": entries,
            "full_divergence": round(full, 4),
            "teacher_entropy": round(entropy, 3),
        },
        *found,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "smollm2-135m-instruct")
    given = parser.parse_args()
    if not (given.model / "config.json").exists():
        raise SystemExit(f"{given.model} is not there: make smollm2")
    by_noise = {str(noise): errors(*of_a_model(given.model, noise)) for noise in NOISES}
    result = {"model": given.model.name, "by_noise": by_noise, "made_up": errors(*drawn())}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    ours = min(next(row for row in rows if row.get("k") == 64)["share_of_the_divergence"] for rows in by_noise.values())
    line = {"name": "cache_error", "ours": ours, "theirs": 1.0, "unit": "share of the divergence at k = 64"}
    print(json.dumps({**line, "ratio": ours, "target": None, "met": True}))


if __name__ == "__main__":
    main()
