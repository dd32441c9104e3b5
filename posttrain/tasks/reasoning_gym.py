"""The tasks of the reasoning-gym library, as `reasoning_gym:NAME`. Options are those of the task's own config class.

What the library leaves open is settled here: seeds are spread (its item i of seed s is item i-1 of seed s+1, so two
neighbouring seeds give nearly the same problems), six of its tasks depend on Python's hash seed (fixed in the child),
tuples survive being stored, and a partial score for rubbish (up to 0.25) counts 0 unless asked for.
"""

from __future__ import annotations

import difflib
import json
import logging
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.tasks import isolated
from posttrain.tasks.answers import boxes
from posttrain.tasks.task import Query, derive_seed, make_query, text_key
from posttrain.tasks.worked import WORKED, worked_solution

log = logging.getLogger("posttrain")

ITEM_DEADLINE = 120.0  # CPU-seconds to make an item
SCORE_DEADLINE = 5.0  # CPU-seconds to score an answer
INSTRUCTION = "Put the final answer in \\boxed{}."

LIBRARY_VERSION = "0.1.25"  # the one that NAMES lists
NAMES = tuple(
    """ab acre advanced_geometry aiw arc_1d arc_agi base_conversion basic_arithmetic bf binary_alternation binary_matrix
    bitwise_arithmetic boxnet caesar_cipher calendar_arithmetic chain_sum circuit_logic codeio coin_flip
    color_cube_rotation complex_arithmetic composite count_bits count_primes countdown course_schedule cryptarithm
    decimal_arithmetic decimal_chain_sum dice emoji_mystery family_relationships figlet_font fraction_simplification
    futoshiki game_of_life game_of_life_halting gcd graph_color group_anagrams gsm_symbolic intermediate_integration
    isomorphic_strings jugs kakurasu knight_swap knights_knaves largest_island lcm leg_counting letter_counting
    letter_jumble list_functions mahjong_puzzle manipulate_matrix maze mini_sudoku modulo_grid n_queens needle_haystack
    number_filtering number_format number_sequence number_sorting palindrome_generation palindrome_partitioning
    path_star polynomial_equations polynomial_multiplication pool_matrix power_function prime_factorization products
    propositional_logic puzzle24 quantum_lock ransom_note rearc rectangle_count rotate_matrix rotten_oranges rubiks_cube
    rush_hour self_reference sentence_reordering shortest_path simple_equations simple_geometry simple_integration
    sokoban spell_backward spiral_matrix string_insertion string_manipulation string_splitting string_synthesis sudoku
    survo syllogism time_intervals tower_of_hanoi tsumego word_ladder word_sequence_reversal word_sorting
    zebra_puzzles""".split()  # noqa: SIM905
)

_NO_GOLD = "its items carry no answer that its own scorer accepts, so the scorer cannot be checked"
EXCLUDED: dict[str, str] = {
    "boxnet": _NO_GOLD,
    "composite": "it only mixes other tasks: name them as data sets of their own and mix those by weight",
    "game_of_life_halting": "its scorer pays the full score for rubbish such as 'zzz'",
    "graph_color": _NO_GOLD,
    "propositional_logic": _NO_GOLD,
    "rubiks_cube": _NO_GOLD,
    "rush_hour": _NO_GOLD,
}


class ReasoningGym:
    """One task of the library.

    Options of `queries`, beside those of the task's config class:
        level: an int, or [lowest, highest], of the library's curriculum: every attribute of the task is set to that
            level (or its highest), and it is the query's `difficulty`. Without it the library's defaults hold and the
            difficulty is 0.
        instruction: a sentence put under the question; default: to box the answer. "" for none.
        partial: pay the library's partial scores. Default false: 1 for a full score, else 0.
        worked: write a worked solution into `reasoning`, for tasks that have one (`tasks/worked.py`). Default false.
        hasty: the share of worked solutions that restate the problem and jump to the result. Default 0.

    The library's scorer is given the last boxed answer, or where there is none the whole content. Items whose own
    answer does not score 1 are left out and counted.

    Attributes:
        faults: answers on which the scorer failed, which score 0, counted by kind: raised, deadline, died.
    """

    def __init__(self, member: str) -> None:
        self.member = member
        self.name = f"reasoning_gym:{member}"
        self.faults: Counter[str] = Counter()
        if member in EXCLUDED:
            raise PosttrainError(Problem(f"{self.name} is left out", why=EXCLUDED[member], remedy="take another task"))
        if member not in NAMES and member not in _installed_names():
            near = difflib.get_close_matches(member, set(NAMES) - set(EXCLUDED), n=3)
            remedy = f"did you mean {' or '.join(f'reasoning_gym:{name}' for name in near)}?" if near else ""
            raise PosttrainError(Problem(f"reasoning-gym has no task {member!r}", remedy=remedy))

    def queries(
        self,
        size: int,
        seed: int,
        *,
        level: int | list[int] | None = None,
        instruction: str = INSTRUCTION,
        partial: bool = False,
        worked: bool = False,
        hasty: float = 0.0,
        **config: Any,
    ) -> Iterator[Query]:
        levels = self._levels(level)
        self._check_worked(worked, hasty)
        if (wrong := _call("problem", self.member, config, levels[0], deadline=ITEM_DEADLINE)) is not None:
            raise PosttrainError(Problem(wrong, f"{self.name}: options"))
        how = {"config": config, "partial": bool(partial)}
        return self._rows(size, seed, levels, instruction, how, hasty if worked else None)

    def score(self, content: str, query: Mapping[str, Any]) -> float:
        answer = _answer(content or "")
        if not answer:
            return 0.0
        entry = json.loads(query["entry"])
        config = json.dumps(entry["config"], sort_keys=True)
        try:
            score = float(_call("score", self.member, config, answer, entry["item"], deadline=SCORE_DEADLINE))
        except isolated.Fault as fault:
            self.faults[fault.kind] += 1
            if self.faults[fault.kind] == 1:
                log.warning("%s: the scorer failed on %r (%s); such answers score 0", self.name, answer[:80], fault)
            return 0.0
        return min(max(score, 0.0), 1.0) if entry["partial"] else float(score >= 1.0)

    def gold(self, query: Mapping[str, Any]) -> str:
        return f"\\boxed{{{query['answer']}}}"

    def problem(self, answer: str) -> str | None:
        """Why a row of a file without an `entry` cannot be scored."""
        return "its scorer needs an `entry`, which only queries made by the task have"

    def _levels(self, level: int | list[int] | None) -> list[int | None]:
        lowest, highest = level if isinstance(level, list | tuple) and len(level) == 2 else (level, level)
        if level is None:
            return [None]
        if not (type(lowest) is int and type(highest) is int and 0 <= lowest <= highest):
            what = f"level is a number from 0 up, or [lowest, highest], not {level!r}"
            raise PosttrainError(Problem(what, f"{self.name}: options"))
        return list(range(lowest, highest + 1))

    def _check_worked(self, worked: bool, hasty: float) -> None:
        if worked and self.member not in WORKED:
            what, those = f"{self.name} has no worked solutions", ", ".join(sorted(WORKED))
            raise PosttrainError(Problem(what, f"{self.name}: options", remedy=f"these tasks have: {those}"))
        if isinstance(hasty, bool) or not isinstance(hasty, int | float) or not 0 <= hasty <= 1:
            raise PosttrainError(Problem(f"hasty is a share from 0 to 1, not {hasty!r}", f"{self.name}: options"))
        if hasty and not worked:
            raise PosttrainError(Problem("hasty without `worked: true`", f"{self.name}: options"))

    def _rows(
        self,
        size: int,
        seed: int,
        levels: list[int | None],
        instruction: str,
        how: dict[str, Any],
        hasty: float | None,
    ) -> Iterator[Query]:
        """The rows; `hasty` is None where no worked solutions are asked for."""
        base = derive_seed(self.name, seed)
        rng = random.Random(base)
        made = failed = 0
        asked = size if hasty is None else size + 10 + size // 10  # some answers are not what is worked out
        for item in isolated.stream(
            _WORKER + "items", self.member, how["config"], levels, asked, base, deadline=ITEM_DEADLINE
        ):
            if made == size:
                break
            reasoning = ""
            if hasty is not None and "failed" not in item:
                try:
                    reasoning = worked_solution(self.member, json.loads(item["entry"]), hasty=rng.random() < hasty)
                except ValueError as error:
                    item = {"failed": str(error)}
            if "failed" in item:
                failed += 1
                if failed == 1:
                    log.warning("%s: an item is left out: %s", self.name, item["failed"])
                continue
            yield make_query(
                id=f"{self.name}-{seed}-{made}",
                prompt=f"{item['question']}\n\n{instruction}" if instruction else item["question"],
                answer=item["answer"],
                task=self.name,
                domain=item["category"],
                difficulty=item["difficulty"],
                key=text_key(item["question"]),
                reasoning=reasoning,
                response=f"\\boxed{{{item['answer']}}}",
                entry=json.dumps({**how, "item": item["entry"]}),
            )
            made += 1
        if failed:
            log.warning("%s: %d items left out, %d made", self.name, failed, made)
        if made < size:
            what = f"{self.name} made {made} sound items of {size}: {failed} were left out"
            raise PosttrainError(Problem(what, remedy="change its options, or take another task"))


_WORKER = "posttrain.tasks.gym_worker:"


def _call(function: str, *args: Any, deadline: float) -> Any:
    return isolated.call(_WORKER + function, *args, deadline=deadline)


def _installed_names() -> list[str]:
    from importlib.metadata import version

    return [] if version("reasoning-gym") == LIBRARY_VERSION else list(_call("names", deadline=ITEM_DEADLINE))


def _answer(content: str) -> str:
    """What the library scores: the last boxed answer, or the whole content where no box is."""
    boxed = boxes(content)
    return boxed[-1] if boxed else content.strip()
