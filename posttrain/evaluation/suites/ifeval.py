"""IFEval (Zhou et al. 2023, 2311.07911) and IFBench (Pyatkin et al. 2025, 2507.02833): instructions checked by code."""

from __future__ import annotations

import logging

from posttrain.evaluation.suites.data import rows
from posttrain.evaluation.suites.suite import Item, Marks, SingleTurn
from posttrain.model.generation import Completion
from posttrain.tasks import isolated
from posttrain.tasks.instructions import checkers, followed

log = logging.getLogger("posttrain")


class Instructions(SingleTurn):
    """Metrics as the papers have them: `prompt_strict` (every instruction followed), `instruction_strict` (each one
    counts), and both loosely: with first or last line or asterisks taken off.

    Prompts with a checker that cannot work here (NLTK's data are not there) are left out, and their number is told.
    """

    headline = "prompt_strict"

    def items(self) -> list[Item]:
        names, broken = checkers()
        found, left_out = [], 0
        for row in rows(self.reads):
            wanted = row["instruction_id_list"]
            if any(name in broken or name not in names for name in wanted):
                left_out += 1
                continue
            facts = {"instructions": wanted, "arguments": row["kwargs"]}
            prompt = [{"role": "user", "content": row["prompt"]}]
            found.append(Item(str(row["key"]), prompt, group=_group(wanted), facts=facts))
        if left_out:
            log.warning("%s: %d prompts left out, whose checkers need NLTK's data", self.name, left_out)
        return found

    def mark(self, item: Item, completion: Completion) -> Marks:
        try:
            each = followed(item.facts, item.prompt[-1]["content"], completion.message.content)
        except isolated.Fault as fault:
            nothing = [0.0] * len(item.facts["instructions"])
            return _marks(nothing, nothing, f"could not be checked: {fault}"[:200])
        lost = [one.name for one in each if not one.strict]
        reason = f"does not follow {', '.join(lost)}" if lost else "follows all"
        return _marks([float(one.strict) for one in each], [float(one.loose) for one in each], reason)


class IfEval(Instructions):
    name = reads = "ifeval"
    about = "IFEval, 541 prompts with verifiable instructions"


class IfBench(Instructions):
    name = reads = "ifbench"
    about = "IFBench, 300 prompts with further verifiable instructions"


def _marks(strict: list[float], loose: list[float], reason: str) -> Marks:
    scores: dict[str, float | list[float]] = {"prompt_strict": min(strict), "instruction_strict": strict}
    return Marks({**scores, "prompt_loose": min(loose), "instruction_loose": loose}, reason)


def _group(instructions: list[str]) -> str:
    return f"{len(instructions)} instruction{'s' if len(instructions) > 1 else ''}"
