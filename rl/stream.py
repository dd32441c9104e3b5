"""Which queries are asked next: in the order of the recipe, past those that will probably teach nothing.

A group whose rollouts are all right or all wrong has no advantage, hence no gradient. How groups fell out so far
foretells it: a query by its own pass rate once it was asked or measured, any other by the groups of its stratum (its
task, mode and difficulty). A query is asked with a probability in proportion to its chance of a difference, so that
none is passed over for good. Nothing here imports torch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from pydantic import Field

from posttrain.recipe.schema import Spec

FADING = 0.8
"""What earlier groups weigh after a further batch: the policy moves on."""
PRIOR = 2.0
"""Rollouts (of a query) or groups (of a stratum) that the estimate one level above is worth."""


class DynamicSampling(Spec):
    """Batches filled with groups that carry a difference in reward (DAPO, arXiv 2503.14476, section 3.2)."""

    tries: int = Field(
        default=3, ge=1, description="generations a batch at most; then groups without difference fill it"
    )
    oversampling: float = Field(
        default=4.0, ge=1.0, description="rollouts a batch at most, over all tries, as a multiple of the batch"
    )


def stratum_of(row: Mapping[str, Any]) -> str:
    """What queries of about one difficulty share: task, mode, budget or none, and the difficulty or else the length."""
    length = sum(len(str(message.get("content") or "")) for message in row["prompt"])
    hard = row.get("difficulty") or f"2^{length.bit_length()} characters"
    budget = row.get("thinking_budget")
    limited = budget is not None and budget >= 0
    return f"{row.get('task')}/{row.get('mode')}/{limited}/{hard}"


class QueryStream:
    """Queries one after another, endlessly, with what is known of them.

    Args:
        places: indices of this process's rows, in the order of the data.
        strata: the stratum of every row of the data, by index.
        rates: pass rates measured before, by index; empty where none were.
        group: rollouts a query.
        seed: of the order of each pass, if `shuffled`, and of who is passed over.
    """

    def __init__(
        self,
        places: Sequence[int],
        strata: Sequence[str],
        rates: Mapping[int, float],
        *,
        group: int,
        shuffled: bool,
        seed: int,
    ) -> None:
        self._places, self._strata, self._group = list(places), strata, group
        self._shuffled, self._seed = shuffled, seed
        self._pass, self._at = 0, 0
        self._order = self._order_of(0)
        self._own = {place: [rate * group, float(group)] for place, rate in rates.items()}  # right, asked
        # Groups with a difference, groups; their rollouts' mean score, summed.
        self._of_stratum: dict[str, list[float]] = {}
        self.passed_over = 0

    def _order_of(self, number: int) -> list[int]:
        order = list(self._places)
        if self._shuffled:
            random.Random(f"{self._seed}/{number}").shuffle(order)
        return order

    def draw(self, wanted: int, most: int, taken: Collection[int]) -> list[int]:
        """Queries of which `wanted` groups will probably carry a difference.

        Args:
            most: queries at most.
            taken: not these: they stand in the batch already.

        Returns:
            Indices; fewer than `most` where the data has no more.
        """
        drawn: list[int] = []
        expected, variance = 0.0, 0.0
        best = max((self._stratum_chance(name) for name in set(self._strata)), default=1.0)
        seen = set(taken)
        for looked in range(2 * len(self._order)):
            # One deviation more than needed: a second generation costs more than a few rollouts too many.
            if len(drawn) >= most or expected - math.sqrt(variance) >= wanted:
                break
            luck = random.Random(f"{self._seed}/{self._pass}/{self._at}").random()
            place = self._next()
            if place in seen:
                continue
            chance = self.chance(place)
            # After a whole pass, whatever there is.
            if looked < len(self._order) and luck * best > chance:
                self.passed_over += 1
                continue
            seen.add(place)
            drawn.append(place)
            expected, variance = expected + chance, variance + chance * (1.0 - chance)
        return drawn

    def draw_any(self, count: int, taken: Collection[int]) -> list[int]:
        """The next `count` queries, whatever is known of them."""
        drawn: list[int] = []
        for _ in range(len(self._order)):
            if len(drawn) == count:
                break
            place = self._next()
            if place not in taken and place not in drawn:
                drawn.append(place)
        return drawn

    def _next(self) -> int:
        place = self._order[self._at]
        self._at += 1
        if self._at == len(self._order):
            self._pass, self._at = self._pass + 1, 0
            self._order = self._order_of(self._pass)
        return place

    def chance(self, place: int) -> float:
        """How probably a group of this query carries a difference."""
        stratum = self._strata[place]
        if place not in self._own:
            return self._stratum_chance(stratum)
        _, groups, score = self._of_stratum.get(stratum, [0.0, 0.0, 0.0])
        mean = (score + 0.5) / (groups + 1.0)
        right, asked = self._own[place]
        return mixed_chance(right + PRIOR * mean, asked - right + PRIOR * (1.0 - mean), self._group)

    def _stratum_chance(self, stratum: str) -> float:
        mixed, groups, _ = self._of_stratum.get(stratum, [0.0, 0.0, 0.0])
        # Unknown strata are as good as any can be: they are tried.
        return (mixed + PRIOR) / (groups + PRIOR)

    def note(self, groups: Sequence[tuple[int, bool, float]]) -> None:
        """Learn from a generation: place, whether its rewards differ, and the mean reward on a scale from 0 to 1."""
        for counts in self._of_stratum.values():
            counts[:] = [count * FADING for count in counts]
        for place, mixed, score in groups:
            counts = self._of_stratum.setdefault(self._strata[place], [0.0, 0.0, 0.0])
            counts[:] = [counts[0] + mixed, counts[1] + 1.0, counts[2] + score]
            # Rollouts that are equal for whatever reason are as good as all right or all wrong.
            right = self._group * (score if mixed else float(score >= 0.5))
            before = self._own.get(place, [0.0, 0.0])
            self._own[place] = [before[0] / 2 + right, before[1] / 2 + self._group]

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs to go on as this one would."""
        return {
            "pass": self._pass,
            "at": self._at,
            "own": {place: list(counts) for place, counts in self._own.items()},
            "strata": {name: list(counts) for name, counts in self._of_stratum.items()},
            "passed_over": self.passed_over,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self._pass, self._at = state["pass"], state["at"]
        self._order = self._order_of(self._pass)
        self._own = {place: list(counts) for place, counts in state["own"].items()}
        self._of_stratum = {name: list(counts) for name, counts in state["strata"].items()}
        self.passed_over = state["passed_over"]


def mixed_chance(right: float, wrong: float, group: int) -> float:
    """The chance that `group` rollouts are neither all right nor all wrong, the pass rate being Beta(right, wrong)."""
    total = right + wrong
    all_of: Callable[[float], float] = lambda count: math.prod((count + i) / (total + i) for i in range(group))  # noqa: E731
    return max(0.0, 1.0 - all_of(right) - all_of(wrong))
