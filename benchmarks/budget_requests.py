"""Random requests for an engine with a thinking budget, and the engine that answers them: one process, one setting.

`benchmarks/budget_engine.py` starts it once for each setting, with a JSON object as its argument; it prints another.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budget_verdict import Ids, blocks, faults

PROCESSOR = "posttrain.budget.vllm:ThinkingBudgetLogitsProcessor"
STOP_TEXTS = (None, None, "\nEnough of this; the user waits.\n</think>\n\n", "\n</think>\n\n", "</think>")
WORDS = [
    "what",
    "is",
    "seven",
    "plus",
    "five",
    "think",
    "again",
    "wait",
    "so",
    "we",
    "stop",
    "here",
    "12",
    "5",
    ".",
    "\n",
]


@dataclass(frozen=True)
class Asked:
    """One request. `opened` is known from how the prompt was written, not from reading it."""

    prompt: list[int]
    opened: bool
    budget: int | None
    stop_text: str | None
    temperature: float
    max_tokens: int
    n: int
    bias: dict[int, float]


def random_requests(
    count: int, seed: int, tokenizer: Any, ids: Ids, *, longest: int, most_tokens: int = 120
) -> list[Asked]:
    """`count` requests: chats with typed markers, earlier turns with thinking, open and closed prompts, any budget.

    Args:
        longest: words of a prompt at most.
        most_tokens: of a completion.
    """
    draw = random.Random(seed)
    requests = []
    for _ in range(count):
        words = [draw.choice(WORDS) for _ in range(draw.randint(1, longest))]
        if draw.random() < 0.3:
            words.insert(draw.randrange(len(words)), draw.choice(("<think>", "</think>", "<think></think>")))
        turns = [f"<|im_start|>user\n{' '.join(words)}<|im_end|>\n"]
        if draw.random() < 0.3:
            turns.insert(
                0, "<|im_start|>user\nhm<|im_end|>\n<|im_start|>assistant\n<think>\nso\n</think>\n\n12<|im_end|>\n"
            )
        opened = draw.random() < 0.6
        written = "<think>\n" if opened else draw.choice(("", "<think>\n\n</think>\n\n"))
        text = "".join(turns) + "<|im_start|>assistant\n" + written
        temperature = draw.choice((0.0, 0.5, 1.0))
        bias = {ids.open: draw.uniform(0, 6), ids.close: draw.uniform(-4, 4), min(ids.ends): draw.uniform(-8, 2)}
        requests.append(
            Asked(
                prompt=tokenizer.encode(text, add_special_tokens=False),
                opened=opened,
                budget=draw.choice((None, 0, 1, 2, 3, 5, 8, 13, 21, 34, draw.randint(0, most_tokens * 2 // 3))),
                stop_text=draw.choice(STOP_TEXTS),
                temperature=temperature,
                max_tokens=draw.randint(8, most_tokens),
                n=2 if temperature and draw.random() < 0.2 else 1,
                bias=bias,
            )
        )
    return requests


def engine_options(setting: dict[str, Any], stop_thinking: str) -> dict[str, Any]:
    """Options of `vllm.LLM` for a setting: plain, preemption, chunked or ngram; ours or native."""
    options: dict[str, Any] = {
        "model": setting["model"], "dtype": "float32", "enforce_eager": True, "max_model_len": setting["longest"],
        "gpu_memory_utilization": 0.1, "max_num_seqs": setting["rows"], "disable_log_stats": False, "seed": 0,
    }  # fmt: skip
    if setting["scenario"] == "preemption":  # room for the prompts, not for what they become
        options.update(num_gpu_blocks_override=setting["blocks"], block_size=32, enable_prefix_caching=False)
    if setting["scenario"] == "chunked":
        options.update(max_num_batched_tokens=setting["rows"], enable_chunked_prefill=True)
    if setting["scenario"] == "ngram":
        options["speculative_config"] = {
            "method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1
        }  # fmt: skip
    if setting["native"]:
        options["reasoning_config"] = {
            "reasoning_start_str": "<think>",
            "reasoning_end_str": stop_thinking.rstrip("\n"),
        }
    else:
        options["logits_processors"] = [PROCESSOR]
    return options


def sampling(asked: Asked, native: bool, speculative: bool) -> Any:
    from vllm import SamplingParams

    extra: dict[str, Any] = {} if asked.budget is None else {"thinking_budget": asked.budget}
    if asked.stop_text is not None and extra:
        extra["thinking_stop_text"] = asked.stop_text
    own = {"thinking_token_budget": asked.budget} if native else {"extra_args": extra}
    bias = None if speculative else asked.bias  # vLLM has no logit_bias with speculation
    return SamplingParams(n=asked.n, temperature=asked.temperature, max_tokens=asked.max_tokens, logit_bias=bias, **own)


def main() -> None:
    setting = json.loads(sys.argv[1])
    import vllm
    from vllm import LLM

    from posttrain.model.policy import load_tokenizer

    tokenizer = load_tokenizer(setting["model"])
    stop_thinking = json.loads((Path(setting["model"]) / "posttrain.json").read_text())["stop_thinking"]
    vocabulary = tokenizer.get_vocab()
    ends = frozenset(vocabulary[end] for end in ("<|im_end|>", "<|endoftext|>"))
    ids = Ids(vocabulary["<think>"], vocabulary["</think>"], ends)
    longest = 120 if setting["scenario"] == "chunked" else 24
    requests = random_requests(
        setting["requests"],
        setting["seed"],
        tokenizer,
        ids,
        longest=longest,
        most_tokens=setting.get("most_tokens", 120),
    )
    llm = LLM(**engine_options(setting, stop_thinking))
    began = time.monotonic()
    done = llm.generate(
        [{"prompt_token_ids": asked.prompt} for asked in requests],
        [sampling(asked, setting["native"], setting["scenario"] == "ngram") for asked in requests],
        use_tqdm=False,
    )
    seconds = time.monotonic() - began
    kinds: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    wrong = 0
    for asked, result in zip(requests, done, strict=True):
        text = stop_thinking if asked.stop_text is None or setting["native"] else asked.stop_text
        stop = tokenizer.encode(text.rstrip("\n") if setting["native"] else text, add_special_tokens=False)
        for output in result.outputs:
            tokens = list(output.token_ids)
            found = faults(
                tokens, ids, opened=asked.opened, budget=asked.budget, stop=stop, guarded=not setting["native"]
            )
            kinds.update(set(found))
            wrong += bool(found)
            spans = blocks(tokens, ids, asked.opened)
            longest_block = sum(end - start for start, end in spans)
            seen["completions"] += 1
            seen["tokens"] += len(tokens)
            seen["with a budget"] += asked.budget is not None
            seen["thinking"] += bool(spans)
            seen["struck"] += asked.budget is not None and bool(spans) and longest_block >= asked.budget
    metrics = {metric.name: getattr(metric, "value", None) for metric in llm.get_metrics()}
    seen["preemptions"] = int(metrics.get("vllm:num_preemptions") or 0)
    seen["drafts accepted"] = int(metrics.get("vllm:spec_decode_num_accepted_tokens") or 0)
    print(
        "RESULT"
        + json.dumps(
            {"wrong": wrong, "kinds": kinds, "seen": seen, "seconds": round(seconds, 1), "vllm": vllm.__version__}
        )
    )


if __name__ == "__main__":
    main()
