"""ThinkFollow: dialogues of several turns with flags at random turns, scored on mode (Qwen3 report, Table 22).

The template's switch is left alone: the model sees the flags only, and must follow the last one it saw; before any flag
it thinks, as that is the default. Earlier turns stand in the history as the served template shows them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.evaluation.scores import score
from posttrain.model.generation import Generator, Prompt
from posttrain.templates.families import Family, Mode
from posttrain.templates.flags import with_flag
from posttrain.templates.render import Message

FLAGGED = 0.5  # share of turns that carry a flag


def plan_dialogues(
    queries: Sequence[Mapping[str, Any]], *, dialogues: int, turns: int, seed: int
) -> list[list[tuple[Mapping[str, Any], Mode | None, Mode]]]:
    """For each dialogue its turns: query, flag or None, and the mode the answer must have."""
    rng = random.Random(seed)
    plan = []
    for _ in range(dialogues):
        mode: Mode = "thinking"
        dialogue: list[tuple[Mapping[str, Any], Mode | None, Mode]] = []
        for _ in range(turns):
            flag: Mode | None = rng.choice(("thinking", "non_thinking")) if rng.random() < FLAGGED else None
            mode = flag or mode
            dialogue.append((rng.choice(queries), flag, mode))
        plan.append(dialogue)
    return plan


def think_follow(
    generate: Generator,
    queries: Sequence[Mapping[str, Any]],
    family: Family,
    *,
    dialogues: int,
    turns: int,
    seed: int,
    advance: Any = None,
) -> dict[str, Any]:
    """Hold the dialogues, all at once turn by turn.

    Returns:
        The share of answers in the mode asked for (with interval and count), the same by turn, and by mode asked for.
    """
    plan = plan_dialogues(queries, dialogues=dialogues, turns=turns, seed=seed)
    histories: list[list[Message]] = [[] for _ in plan]
    followed: list[list[float]] = [[] for _ in plan]
    by_mode: dict[str, list[float]] = {"thinking": [], "non_thinking": []}
    for turn in range(turns):
        for history, dialogue in zip(histories, plan, strict=True):
            query, flag, _ = dialogue[turn]
            question: Message = {"role": "user", "content": query["prompt"][-1]["content"]}
            history.extend(with_flag([question], family, flag) if flag else [question])
        completions = generate([Prompt(messages=list(h)) for h in histories], seed=seed + turn, progress=advance)
        for index, completion in enumerate(completions):
            wanted = plan[index][turn][2]
            right = float(completion.message.mode == wanted and not completion.truncated)
            followed[index].append(right)
            by_mode[wanted].append(right)
            histories[index].append(completion.message.to_message())
    return {
        **score(followed),
        "by_turn": [score([[values[turn]] for values in followed]) for turn in range(turns)],
        "by_mode": {mode: score([[value] for value in values]) for mode, values in by_mode.items()},
    }
