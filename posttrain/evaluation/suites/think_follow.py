"""ThinkFollow as a suite: dialogues with flags at random turns, on questions of our own (Qwen3 report, Table 22)."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.evaluation.suites.suite import Ask, Item, Marks, Played, Setting
from posttrain.evaluation.think_follow import plan_dialogues
from posttrain.model.generation import Completion
from posttrain.templates.families import Family
from posttrain.templates.flags import with_flag
from posttrain.templates.render import Message

DIALOGUES, TURNS, SEED = 100, 4, 22
QUESTIONS = """\
What is 17 + 26?
Which is larger, 0.9 or 0.11?
Name a river in Europe.
What is the plural of mouse?
How many minutes are two hours?
Which planet is closest to the sun?
Spell the word rhythm.
What is 7 * 8?
Give a word that rhymes with light.
What is the capital of Peru?
Is 91 a prime number?
Who wrote Hamlet?
What do bees make?
What is the opposite of ancient?
How many sides has a hexagon?
Name a prime above 50.
In which month does spring begin in Chile?
What is ice made of?
What is 15 % of 80?
Name three metals.
""".splitlines()


class ThinkFollow:
    """`followed`: the share of answers in the mode that the last flag asked for; a cut off answer follows nothing."""

    name = "think-follow"
    about = f"ThinkFollow, {DIALOGUES} dialogues of {TURNS} turns"
    headline = "followed"

    def settings(self, family: Family, budgets: Sequence[int]) -> list[Setting]:
        """The template's switch is left alone. A family without flags is not asked."""
        return [Setting(None, None, family)] if len(family.flags) > 1 else []

    def items(self) -> list[Item]:
        queries = [{"prompt": [{"role": "user", "content": question}]} for question in QUESTIONS]
        return [
            Item(
                f"dialogue-{number}",
                list(plan[0][0]["prompt"]),
                facts={"turns": [(query["prompt"][-1]["content"], flag, mode) for query, flag, mode in plan]},
            )
            for number, plan in enumerate(plan_dialogues(queries, dialogues=DIALOGUES, turns=TURNS, seed=SEED))
        ]

    def play(self, ask: Ask, items: Sequence[Item], setting: Setting) -> list[Played]:
        histories: list[list[Message]] = [[] for _ in items]
        said: list[list[Completion]] = [[] for _ in items]
        for turn in range(TURNS):
            for item, history in zip(items, histories, strict=True):
                question, flag, _ = item.facts["turns"][turn]
                message: Message = {"role": "user", "content": question}
                history += with_flag([message], setting.family, flag) if flag else [message]
            completions = ask([setting.prompt(list(history)) for history in histories])
            for history, answers, completion in zip(histories, said, completions, strict=True):
                history.append(completion.message.to_message())
                answers.append(completion)
        return [
            Played(item, history, answers, _marks(item, answers))
            for item, history, answers in zip(items, histories, said, strict=True)
        ]


def _marks(item: Item, answers: Sequence[Completion]) -> Marks:
    wanted = [mode for _, _, mode in item.facts["turns"]]
    followed = [
        float(answer.message.mode == mode and not answer.truncated)
        for answer, mode in zip(answers, wanted, strict=True)
    ]
    wrong = [str(turn) for turn, right in enumerate(followed, 1) if not right]
    return Marks({"followed": followed}, f"another mode in turn {', '.join(wrong)}" if wrong else "followed")
