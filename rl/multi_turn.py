"""Rows of interactive tasks inside rollouts: each is played over several turns, and trained on as one completion.

The playing itself is `posttrain.evaluation.play`; the environment's tokens are masked as those that a budget forces
are (`rollouts.py`). What stands here is how a trainer calls it, and what it logs of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from posttrain.evaluation.play import Answers, Continues, Limits, Played, complete
from posttrain.model.generation import Completion, Prompt

Summed = Callable[[Sequence[float]], list[float]]
"""Sums over the processes."""


class Episodes:
    """How a trainer completes its rows, interactive ones among them.

    Args:
        turn_tokens: the model's own tokens in one turn at most; None: as many as are left of the completion.
    """

    def __init__(self, turn_tokens: int | None = None) -> None:
        self._turn_tokens = turn_tokens
        self._seconds = self._inside = 0.0  # since the last figures: of rollouts, and of that in environments

    def complete(
        self,
        generate: Answers,
        rows: Sequence[Mapping[str, Any]],
        prompts: Sequence[Prompt],
        *,
        seed: int,
        max_tokens: int,
        anyone: Callable[[bool], bool] | None,
    ) -> list[Completion]:
        """One completion a row.

        Args:
            max_tokens: of a completion, what the environment says included.
            anyone: whether any process still plays, where all have to generate at the same time.
        """
        if not isinstance(generate, Continues):
            raise TypeError("rollouts are trained on, so they have to be continued token by token")
        start = time.perf_counter()
        limits = Limits(tokens=max_tokens, turn_tokens=self._turn_tokens)
        done = complete(generate, rows, prompts, seed=seed, limits=limits, agree=anyone)
        self._seconds += time.perf_counter() - start
        self._inside += sum(one.environment_seconds for one in done if isinstance(one, Played))
        return done

    def figures(self, completions: Sequence[Completion], summed: Summed) -> dict[str, float]:
        """What episodes of all processes came to; {} where none were played.

        `environment/time_share` is the share of the rollouts' time that environments took, all rollouts since the last
        figures counted, those that nobody trains on too.
        """
        played = [one for one in completions if isinstance(one, Played)]
        outcomes = [one.outcome for one in played]
        won = [outcome for outcome in outcomes if outcome.won]
        local = [
            len(played),
            sum(outcome.score for outcome in outcomes),
            len(won),
            sum(outcome.turns for outcome in outcomes),
            sum(outcome.turns for outcome in won),
            sum(outcome.invalid for outcome in outcomes),
            sum(outcome.faults for outcome in outcomes),
            sum(one.truncated for one in played),
            self._inside,
            self._seconds,
        ]
        self._seconds = self._inside = 0.0
        episodes, score, wins, turns, won_turns, invalid, faults, cut, inside, seconds = summed(local)
        if not episodes:
            return {}
        figures = {
            "environment/score": score / episodes,
            "environment/won": wins / episodes,
            "environment/turns": turns / episodes,
            "environment/invalid_moves": invalid / max(1.0, turns),
            "environment/cut_off": cut / episodes,
            "environment/faults": faults,
            "environment/time_share": inside / max(seconds, 1e-9),
        }
        return figures | ({"environment/turns_when_won": won_turns / wins} if wins else {})
