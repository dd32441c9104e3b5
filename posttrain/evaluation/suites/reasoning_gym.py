"""reasoning-gym: a few problems of every task whose verifier is sound, seeded, so the same for ever."""

from __future__ import annotations

from posttrain.evaluation.suites.suite import Item, Marks, SingleTurn
from posttrain.model.generation import Completion
from posttrain.tasks.reasoning_gym import EXCLUDED, NAMES
from posttrain.tasks.registry import get_task

EACH = 5  # problems a task
SEED = 20_000


class ReasoningGym(SingleTurn):
    """`score`: the library's own, in [0, 1]; in all and by task."""

    name = "reasoning-gym"
    about = f"reasoning-gym, {EACH} problems of each task"
    headline = "score"

    def items(self) -> list[Item]:
        return [
            Item(f"{name}-{number}", query["prompt"], group=name, facts=query)
            for name in sorted(set(NAMES) - set(EXCLUDED))
            for number, query in enumerate(get_task(f"reasoning_gym:{name}").queries(EACH, SEED))
        ]

    def mark(self, item: Item, completion: Completion) -> Marks:
        value = get_task(item.facts["task"]).score(completion.message.content, item.facts)
        return Marks({"score": value}, f"wanted {item.facts['answer'][:80]!r}")
