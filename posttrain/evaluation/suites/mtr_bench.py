"""MTR-Bench: forty games that answer back, four classes of ten, in three difficulties (arXiv 2505.17123).

The paper's evaluator reports accuracy, efficiency (turns, on problems that all compared models solved), the rate of
invalid moves, and patterns of reasoning. A model is asked turn by turn with the conversation so far, as any server is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from posttrain.evaluation.play import Episode, RenderingSpeaker, play
from posttrain.evaluation.scores import flat_score
from posttrain.evaluation.suites.suite import Ask, Item, Marks, Played, Setting, every_mode
from posttrain.model.generation import Completion
from posttrain.tasks.environment import environment_for
from posttrain.tasks.registry import get_task
from posttrain.templates.families import Family

INSTANCES = 30  # of each game in each difficulty, as in the paper
SEED = 2505

Record = Mapping[str, Any]


class MtrBench:
    """`accuracy`: games won. `score` (with those won in part), `invalid_moves` (a share of the moves), `turns_used` (of
    the turns there were, in games won), and the share of turns that show each pattern. Groups: class and difficulty.
    """

    name = "mtr-bench"
    about = "MTR-Bench, games that answer back over several turns"
    headline = "accuracy"

    def settings(self, family: Family, budgets: Sequence[int]) -> list[Setting]:
        return every_mode(family, budgets)

    def items(self) -> list[Item]:
        return [
            Item(row["id"], row["prompt"], f"{row['domain']}/{json.loads(row['entry'])['difficulty']}", facts=facts)
            for row in self._rows
            for facts in [{key: row[key] for key in ("task", "entry")}]
        ]

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        task = get_task("mtr_bench:all")
        games: Sequence[str] = getattr(task, "games", ())
        return list(task.queries(INSTANCES * 3 * len(games), SEED))

    def play(self, ask: Ask, items: Sequence[Item], setting: Setting) -> list[Played]:
        def answers(prompts: Any, *, seed: int, progress: Any = None) -> list[Completion]:
            return ask(prompts)

        speaker = RenderingSpeaker(answers)
        episodes = [_begun(item, setting) for item in items]
        play(episodes, speaker, seed=0)  # `ask` has seeds of its own
        return [
            Played(item, episode.messages, speaker.completions[id(episode)], _marks(episode))
            for item, episode in zip(items, episodes, strict=True)
        ]

    def table(self, results: Mapping[str, Sequence[Record]]) -> str:
        """Markdown: accuracy, efficiency, invalid moves and patterns of every model, by class and difficulty."""
        solved = [{one["id"] for one in records if one["scores"]["accuracy"] >= 1} for records in results.values()]
        common = set.intersection(*solved) if solved else set()
        lines = [
            "| model | class | difficulty | accuracy | n | turns, where all solved it | invalid moves | patterns |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for model, records in results.items():
            lines += [_line(model, group, chosen, common) for group, chosen in _groups(records).items()]
        return "\n".join(lines) + "\n"


def _begun(item: Item, setting: Setting) -> Episode:
    environment = environment_for(item.facts)
    assert environment is not None
    return Episode.begin(environment, item.facts, setting.prompt(item.prompt))


def _marks(episode: Episode) -> Marks:
    outcome = episode.outcome
    won, score = (0.0, 0.0) if episode.cut else (float(outcome.won), outcome.score)
    scores: dict[str, float | Sequence[float]] = {"accuracy": won, "score": score}
    if outcome.turns:
        scores["invalid_moves"] = _flags(outcome.invalid, outcome.turns)
        scores |= {f"pattern_{name}": _flags(count, outcome.turns) for name, count in outcome.patterns.items()}
    if won:
        scores["turns_used"] = outcome.turns / outcome.max_turns
    ended = "cut off" if episode.cut else "to the end" if outcome.ended else "no turns left"
    faults = f", {outcome.faults} faults of the game" if outcome.faults else ""
    return Marks(scores, f"{outcome.turns} turns, {outcome.invalid} invalid, {ended}{faults}")


def _flags(count: int, of: int) -> list[float]:
    return [1.0] * count + [0.0] * (of - count)


def _groups(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records in all, by class, by difficulty, and by both."""
    groups: dict[str, list[Record]] = {"all/all": list(records)}
    for record in records:
        kind, _, difficulty = record["group"].partition("/")
        for name in (f"{kind}/all", f"all/{difficulty}", record["group"]):
            groups.setdefault(name, []).append(record)
    return groups


def _line(model: str, group: str, records: Sequence[Record], common: set[str]) -> str:
    kind, _, difficulty = group.partition("/")
    accuracy = flat_score([record["scores"]["accuracy"] for record in records])
    turns = [len(record["turns"]) for record in records if record["id"] in common]
    invalid = [flag for record in records for flag in record["scores"].get("invalid_moves", [])]
    patterns = sorted({name for record in records for name in record["scores"] if name.startswith("pattern_")})
    shown = []
    for name in patterns:
        flags = [flag for record in records for flag in record["scores"].get(name, [])]
        shown.append(f"{name.removeprefix('pattern_')} {sum(flags) / max(1, len(flags)):.2f}")
    return (
        f"| {model} | {kind.replace('_', ' ')} | {difficulty} "
        f"| {accuracy['value']:.3f} ({accuracy['low']:.3f}-{accuracy['high']:.3f}) | {accuracy['n']} "
        f"| {f'{sum(turns) / len(turns):.1f} (n={len(turns)})' if turns else '-'} "
        f"| {sum(invalid) / max(1, len(invalid)):.3f} | {', '.join(shown)} |"
    )
