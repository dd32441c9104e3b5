"""Multilingual GSM-Symbolic: GSM8K's kind of problems in more than a hundred languages, many machine-translated.

The problems are those that stand in the package's templates (Mirzadeh et al. 2024, arXiv 2410.05229, translated).
"""

from __future__ import annotations

from posttrain.evaluation.suites.data import rows
from posttrain.evaluation.suites.suite import Item, Marks, SingleTurn
from posttrain.model.generation import Completion
from posttrain.tasks.registry import get_task


class GsmSymbolic(SingleTurn):
    """`accuracy`, in all and by language (ISO 639-3): the number in the last box, else of the last line."""

    name = "gsm-symbolic"
    about = "GSM-Symbolic in many languages"
    headline = "accuracy"
    reads = "gsm_symbolic"

    def items(self) -> list[Item]:
        return [
            Item(
                f"{row['language']}-{row['number']}",
                [{"role": "user", "content": f"{row['instruction']}\n\n{row['question'].strip()}"}],
                group=row["language"],
                facts={"answer": row["answer"].rpartition("####")[2].strip()},
            )
            for row in rows("gsm_symbolic")
        ]

    def mark(self, item: Item, completion: Completion) -> Marks:
        value = get_task("number").score(completion.message.content, item.facts)
        return Marks({"accuracy": value}, f"wanted {item.facts['answer']}")
