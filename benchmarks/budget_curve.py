"""The budget curve of a run's model, by vLLM with our processor, beside the run's own on transformers.

    python benchmarks/budget_curve.py [RUN] [--stage general_rl] [--results docs/results]

RUN is a finished run of recipes/tiny_cpu.yaml (default: seed 0 of benchmarks/tiny_cpu.py). The same reserved queries,
prompts, sampling and budgets go through vLLM; only the random numbers differ. The last line is JSON: `ours` is the
number of budgets whose two accuracies lie further apart than chance allows (two-sided, 1 % over all budgets).
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain.model.generation import Completion, Prompt
    from posttrain.templates.families import Family

PROCESSOR = "posttrain.budget.vllm:ThinkingBudgetLogitsProcessor"
ERROR = 0.01  # of seeing a difference where there is none


class VllmGenerator:
    """Answers prompts as `posttrain.model.generation.Generator` does, by vLLM."""

    def __init__(self, model: Path, family: Family, max_new_tokens: int) -> None:
        from vllm import LLM

        from posttrain.budget.tokens import budget_rule, opens_thinking
        from posttrain.model.policy import load_tokenizer

        self.family, self.max_new_tokens = family, max_new_tokens
        self.tokenizer = load_tokenizer(model)
        self.rule, self.opens = budget_rule(self.tokenizer, family), opens_thinking
        self.engine = LLM(
            str(model),
            dtype="float32",
            max_model_len=512,
            enforce_eager=True,
            gpu_memory_utilization=0.1,
            logits_processors=[PROCESSOR],
        )

    def __call__(
        self, prompts: Sequence[Prompt], *, seed: int, progress: Callable[[int], None] | None = None
    ) -> list[Completion]:
        from vllm import SamplingParams

        from posttrain.templates.render import render

        texts = [render(p.messages, self.family, mode=p.mode, add_generation_prompt=True) for p in prompts]
        params = []
        for place, prompt in enumerate(prompts):
            sampling = self.family.sampling[prompt.mode or self.family.default_mode]
            budget = {"thinking_budget": prompt.thinking_budget, "thinking_stop_text": self.family.stop_thinking}
            params.append(
                SamplingParams(
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    top_k=sampling.top_k,
                    max_tokens=self.max_new_tokens + len(self.rule.stop_ids),
                    stop_token_ids=sorted(self.rule.eos_ids),
                    seed=seed + place,
                    extra_args={} if prompt.thinking_budget is None else budget,
                )
            )
        ids = [{"prompt_token_ids": self.tokenizer.encode(text, add_special_tokens=False)} for text in texts]
        answers = self.engine.generate(ids, params, use_tqdm=False)
        return [self._completion(*given) for given in zip(prompts, texts, answers, strict=True)]

    def _completion(self, prompt: Prompt, text: str, answer: Any) -> Completion:
        from posttrain.budget.state import BudgetState
        from posttrain.model.generation import Completion
        from posttrain.templates.parse import parse

        ids = list(answer.outputs[0].token_ids)
        prefilled = text.rpartition(f"{self.family.message_start}assistant\n")[2]
        state = BudgetState(self.rule, prompt.thinking_budget, thinking_open=self.opens(prefilled, self.family))
        state.replay(ids)
        ended = ids[-1] in self.rule.eos_ids
        said = self.tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=False)
        return Completion(
            prompt_ids=list(answer.prompt_token_ids),
            completion_ids=ids,
            forced=state.forced,
            text=said,
            message=parse(said, self.family, prefilled=prefilled),
            prefilled=prefilled,
            mode=prompt.mode,
            thinking_budget=prompt.thinking_budget,
            thinking_tokens=state.thinking_tokens,
            closed_by=state.closed_by,
            truncated=not ended,
        )


def apart(ours: dict[str, Any], theirs: dict[str, Any], limit: float) -> bool:
    """Whether two shares of `n` each differ by more than `limit` standard errors of their difference."""
    share = (ours["accuracy"] * ours["n"] + theirs["accuracy"] * theirs["n"]) / (ours["n"] + theirs["n"])
    error = math.sqrt(share * (1 - share) * (1 / ours["n"] + 1 / theirs["n"]))
    return bool(abs(ours["accuracy"] - theirs["accuracy"]) > limit * error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/tiny_cpu_seeds/seed-0"))
    parser.add_argument("--stage", default="general_rl")
    parser.add_argument("--results", type=Path, help="also write budget_curve.md there")
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

    from posttrain.data.prepare import reserved_rows
    from posttrain.evaluation.evaluate import budget_point
    from posttrain.model.artifacts import RunDir
    from posttrain.model.policy import family_of
    from posttrain.recipe.load import load_recipe

    run = RunDir(arguments.run)
    recipe = load_recipe(run.path / "recipe.yaml").recipe
    family = family_of(recipe.template)
    drawn = json.loads(run.stage(arguments.stage).evaluation.read_text())["budget_curve"]
    generate = VllmGenerator(run.stage(arguments.stage).model, family, recipe.evaluation.max_new_tokens)
    queries = reserved_rows(run, recipe.evaluation.data[0])
    limit = NormalDist().inv_cdf(1 - ERROR / 2 / len(drawn))
    lines = ["| thinking budget | transformers | vLLM | thinking tokens | in vLLM |", "|---|---|---|---|---|"]
    differ = 0
    for theirs in drawn:
        ours = budget_point(
            generate,  # type: ignore[arg-type]  # answers as a Generator does
            queries,
            theirs["thinking_budget"],
            kind="hybrid",
            family=family,
            seed=recipe.evaluation.seed,
            advance=None,
        )
        differ += apart(ours, theirs, limit)
        figures = (theirs["accuracy"], ours["accuracy"], theirs["thinking_tokens"], ours["thinking_tokens"])
        lines.append("| {} | {:.3f} | {:.3f} | {:.1f} | {:.1f} |".format(theirs["thinking_budget"], *figures))
    print("\n".join(lines))
    if arguments.results:
        head = f"# One curve, two engines\n\n`python benchmarks/budget_curve.py`: {len(queries)} queries a budget, "
        head += (
            f"the model after {arguments.stage}. The two differ at {differ} of {len(drawn)} budgets beyond chance.\n\n"
        )
        arguments.results.mkdir(parents=True, exist_ok=True)
        (arguments.results / "budget_curve.md").write_text(head + "\n".join(lines) + "\n")
    summary = {"name": "budget_curve", "ours": differ, "theirs": None, "unit": "budgets at which the engines differ"}
    print(json.dumps(summary | {"ratio": None, "target": 0, "met": differ == 0}))


if __name__ == "__main__":
    main()
