"""Plans for a world that is known but for which of a few hypotheses holds: what to do whatever turns out."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, Literal, TypeVar

State = TypeVar("State", bound=Hashable)
Hypothesis = TypeVar("Hypothesis", bound=Hashable)
Move = TypeVar("Move", bound=Hashable)

Result = tuple[State, Literal["goes on", "won", "lost"]]
Belief = tuple[State, frozenset[Hypothesis]]


class Plan(Generic[State, Hypothesis, Move]):
    """The move for every belief from which the game is won for certain, and how many moves it takes at worst.

    A belief is a state and the hypotheses that what was seen so far leaves; the state is seen after every move.

    Attributes:
        turns: of every belief that wins for certain, the moves needed at worst.
        move: the first of these.
    """

    def __init__(
        self,
        start: State,
        hypotheses: Sequence[Hypothesis],
        moves: Sequence[Move],
        step: Callable[[Hypothesis, State, Move], Result[State]],
    ) -> None:
        self.step, self.moves = step, moves
        self.turns: dict[Belief[State, Hypothesis], int] = {}
        self.move: dict[Belief[State, Hypothesis], Move] = {}
        self._solve(self._reach((start, frozenset(hypotheses))))

    def after(self, belief: Belief[State, Hypothesis], move: Move) -> dict[Result[State], list[Hypothesis]]:
        """What may be seen after a move, and the hypotheses that it would leave."""
        seen: dict[Result[State], list[Hypothesis]] = {}
        for hypothesis in belief[1]:
            seen.setdefault(self.step(hypothesis, belief[0], move), []).append(hypothesis)
        return seen

    def _reach(
        self, start: Belief[State, Hypothesis]
    ) -> dict[Belief[State, Hypothesis], list[tuple[Move, list[Belief[State, Hypothesis]]]]]:
        """Every belief that can come up, with the moves that never lose there and the beliefs they lead to."""
        reached: dict[Belief[State, Hypothesis], list[tuple[Move, list[Belief[State, Hypothesis]]]]] = {start: []}
        todo = [start]
        for belief in todo:
            for move in self.moves:
                seen = self.after(belief, move)
                if any(outcome == "lost" for _, outcome in seen):
                    continue
                following = [(state, frozenset(left)) for (state, outcome), left in seen.items() if outcome != "won"]
                reached[belief].append((move, following))
                for each in following:
                    if each not in reached:
                        reached[each] = []
                        todo.append(each)
        return reached

    def _solve(
        self, reached: dict[Belief[State, Hypothesis], list[tuple[Move, list[Belief[State, Hypothesis]]]]]
    ) -> None:
        """Backwards: first the beliefs that win in one move, then those that win in two at worst, and so on."""
        open_beliefs, turns = list(reached), 0
        while open_beliefs:
            turns += 1
            solved: dict[Belief[State, Hypothesis], Move] = {}
            for belief in open_beliefs:
                for move, following in reached[belief]:
                    if all(each in self.turns for each in following):
                        solved[belief] = move
                        break
            if not solved:
                return
            self.move |= solved
            self.turns |= dict.fromkeys(solved, turns)
            open_beliefs = [belief for belief in open_beliefs if belief not in solved]
