"""CounterFactQA: questions that take something false for granted, and fair ones (after the Qwen3 report, Table 22).

The report's data are not public; these are our own, in `counterfact_facts`.
"""

from __future__ import annotations

import json

from posttrain.evaluation.suites.counterfact_facts import FACTS
from posttrain.evaluation.suites.suite import Item, Marks, SingleTurn
from posttrain.model.generation import Completion
from posttrain.tasks.registry import get_task
from posttrain.tasks.task import verdict_of


class CounterFactQA(SingleTurn):
    """`accuracy`: a false premise is denied and the truth named, a fair question answered without denying its premise.
    `spotted` is of the false premises alone, `answered` of the fair questions: a model that always denies has 0 there.
    """

    name = "counterfact-qa"
    about = "CounterFactQA, questions with false and with true premises"
    headline = "accuracy"

    def items(self) -> list[Item]:
        get_task("premises")
        found = []
        for number, line in enumerate(FACTS.splitlines()):
            question, right, wrong = line.split("|")
            values = [(right, True), *((value.strip(), False) for value in wrong.split(","))]
            for place, (value, holds) in enumerate(values):
                entry = json.dumps({"holds": holds, "facts": [right]})
                prompt = f"{question.format(value)} Answer in one or two sentences."
                group = "fair" if holds else "false premise"
                facts = {"answer": right, "entry": entry}
                found.append(Item(f"{number}-{place}", [{"role": "user", "content": prompt}], group, facts=facts))
        return found

    def mark(self, item: Item, completion: Completion) -> Marks:
        value, reason = verdict_of(get_task("premises"), completion.message, item.facts)
        return Marks({"accuracy": value, "answered" if item.group == "fair" else "spotted": value}, reason)
