"""Environments of the verifiers library, as its users write them: a module with `load_environment`."""

from __future__ import annotations

import asyncio
from typing import Any

import verifiers as vf
from datasets import Dataset

cleaned: list[str] = []
"""Answers of the rollouts that were cleaned up."""


class GuessEnv(vf.MultiTurnEnv):  # type: ignore[misc]
    """A number from 1 to 9 is to be guessed; the environment says higher or lower."""

    async def setup_state(self, state: Any) -> Any:
        await asyncio.sleep(0)
        state["tries"] = 0
        return state

    @vf.stop  # type: ignore[untyped-decorator, unused-ignore]
    async def guessed(self, state: Any) -> bool:
        said = [step["completion"][-1]["content"].strip() for step in state["trajectory"]]
        return bool(said) and said[-1] == state["answer"]

    @vf.cleanup  # type: ignore[untyped-decorator, unused-ignore]
    async def forget(self, state: Any) -> None:
        cleaned.append(state["answer"])

    async def env_response(self, messages: Any, state: Any, **options: Any) -> Any:
        await asyncio.sleep(0.001)
        state["tries"] += 1
        said = messages[-1]["content"].strip()
        if said == "crash":
            raise KeyError("a bug in the environment")
        if said == "give up":
            state["final_env_response"] = [{"role": "user", "content": f"It was {state['answer']}."}]
            return state["final_env_response"]
        if not said.isdigit():
            return [{"role": "user", "content": "That is no number."}]
        return [{"role": "user", "content": "higher" if int(said) < int(state["answer"]) else "lower"}]


async def right(completion: Any, answer: str) -> float:
    await asyncio.sleep(0)
    said = [message["content"].strip() for message in completion if message["role"] == "assistant"]
    return float(bool(said) and said[-1] == answer)


def short(completion: Any, state: Any) -> float:
    return float(len(state["trajectory"]) <= 2)


def ranked(completions: Any) -> list[float]:
    return [1.0 / (1 + place) for place in range(len(completions))]


def look(cell: int) -> str:
    """Look into a cell."""
    return "nothing"


def load_environment(kind: str, max_turns: int = 5, parser: str = "") -> Any:
    numbers = [str(1 + place * 5 % 9) for place in range(9)]
    rows = Dataset.from_dict({"question": [f"Guess from 1 to 9. ({at})" for at in range(9)], "answer": numbers})
    rubric = vf.Rubric(funcs=[right, short], weights=[1.0, 0.25])
    given: dict[str, Any] = {"dataset": rows, "rubric": rubric, "system_prompt": "You guess."}
    if parser:
        given["parser"] = vf.ThinkParser()
    if kind == "single":
        sums = {"question": [f"{at}+1=?" for at in range(9)], "answer": [str(at + 1) for at in range(9)]}
        given |= {"dataset": lambda: Dataset.from_dict(sums), "eval_dataset": rows.select(range(3))}
        return vf.SingleTurnEnv(**given | {"rubric": vf.Rubric(funcs=[right])})
    if kind == "group":
        guess, add = load_environment("guess", max_turns), load_environment("single")
        return vf.EnvGroup(envs=[guess, add], env_names=["guess", "add"])
    if kind == "ranked":
        return GuessEnv(**given | {"rubric": vf.Rubric(funcs=[ranked])})
    if kind == "tools":
        return vf.ToolEnv(tools=[look], **given)
    return GuessEnv(max_turns=max_turns, **given)
