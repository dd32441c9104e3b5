"""MTR-Bench: every game in every difficulty, played by a model, whoever serves it; resumable (arXiv:2505.17123).

The paper's evaluator reports accuracy, efficiency (turns, on problems that all compared models solved), the rate of
invalid moves, and patterns of reasoning. What was played is kept as a line an episode, with the whole conversation. The
figures are made from these lines alone, so results that were played apart can be compared later.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.evaluation.play import Answers, Played, complete
from posttrain.evaluation.scores import flat_score
from posttrain.model.artifacts import write_text
from posttrain.model.generation import Prompt
from posttrain.progress import progress
from posttrain.tasks.registry import get_task
from posttrain.tasks.task import derive_seed
from posttrain.templates.families import Mode

log = logging.getLogger("posttrain")

TRANSCRIPTS = "transcripts.jsonl"
Record = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What is played.

    Attributes:
        games: names of games or classes; `all` for every game.
        difficulties: of easy, medium, hard.
        instances: of each game in each difficulty; the paper has 30.
        max_turns: moves allowed; None: each game's own, 15 as in the paper.
        seed: of the instances.
        mode, thinking_budget: how the model is asked, in every turn.
        chunk: episodes played at once, and written together.
    """

    games: tuple[str, ...] = ("all",)
    difficulties: tuple[str, ...] = ("easy", "medium", "hard")
    instances: int = 30
    max_turns: int | None = None
    seed: int = 0
    mode: Mode | None = None
    thinking_budget: int | None = None
    chunk: int = 240

    def rows(self) -> list[dict[str, Any]]:
        """The instances as queries, game by game.

        Raises:
            PosttrainError: there is no such game, class or difficulty.
        """
        rows: list[dict[str, Any]] = []
        for name in self.games:
            task = get_task(f"mtr_bench:{name}")
            games: Sequence[str] = getattr(task, "games", ())
            size = self.instances * len(games) * len(self.difficulties)
            rows += task.queries(size, self.seed, difficulty=list(self.difficulties), max_turns=self.max_turns)
        return list({row["key"]: row for row in rows}.values())


def play_bench(bench: Bench, generate: Answers, folder: Path, *, model: str, quiet: bool = False) -> list[Record]:
    """Play what is not played yet, and return all records, in order.

    They stand in `folder/transcripts.jsonl` under a head line that says what was played by whom. A run that was killed
    goes on behind the last whole chunk.

    Args:
        generate: the model (`posttrain.evaluation.play.complete`).
        model: what the head line calls it; another one needs another folder.

    Raises:
        PosttrainError: the folder holds other results.
    """
    rows, path = bench.rows(), folder / TRANSCRIPTS
    head = {"bench": asdict(bench) | {"games": list(bench.games), "difficulties": list(bench.difficulties)}} | {
        "model": model
    }
    records = _kept(path, head, bench.chunk, len(rows))
    write_text(path, _lines([head, *records]))
    with progress(f"playing {model}", len(rows), quiet=quiet, start=len(records)) as advance:
        for begin in range(len(records), len(rows), bench.chunk):
            made = _played(bench, generate, rows[begin : begin + bench.chunk], begin, advance)
            with path.open("a", encoding="utf-8") as file:
                file.write(_lines(made))
            records += made
    return records


def _played(
    bench: Bench, generate: Answers, rows: Sequence[Mapping[str, Any]], begin: int, advance: Callable[[int], None]
) -> list[Record]:
    prompts = [
        Prompt(messages=list(row["prompt"]), mode=bench.mode, thinking_budget=bench.thinking_budget) for row in rows
    ]
    asked = [{**row, "mode": bench.mode} for row in rows]
    episodes = complete(generate, asked, prompts, seed=derive_seed("bench", bench.seed, begin), progress=advance)
    return [_record(row, one) for row, one in zip(rows, episodes, strict=True) if isinstance(one, Played)]


def _record(row: Mapping[str, Any], episode: Played) -> Record:
    entry = json.loads(row["entry"])
    return {
        "key": row["key"],
        "game": entry["game"],
        "class": row["domain"],
        "difficulty": entry["difficulty"],
        "cut_off": episode.truncated,
        **episode.outcome.as_json(),
        "score": 0.0 if episode.truncated else episode.outcome.score,
        "won": episode.outcome.won and not episode.truncated,
        "messages": episode.messages,
    }


def _lines(records: Iterable[Record]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _kept(path: Path, head: Record, chunk: int, total: int) -> list[Record]:
    if not path.exists():
        return []
    # A line that a kill cut off is no JSON object any more.
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    first, *records = [json.loads(line) for line in lines] or [None]
    if first != head:
        what = f"{path} holds results of other settings or of another model"
        raise PosttrainError(Problem(what, remedy="give another folder, or remove this one"))
    whole = len(records) if len(records) == total else len(records) // chunk * chunk
    return records[:whole]


def read_records(folder: Path) -> list[Record]:
    """What was played into a folder.

    Raises:
        PosttrainError: nothing was.
    """
    path = folder / TRANSCRIPTS
    if not path.exists():
        raise PosttrainError(Problem(f"{folder}: no games were played there (no {TRANSCRIPTS})"))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]


def figures(records: Sequence[Record], solved_by_all: set[str] | None = None) -> dict[str, Any]:
    """Accuracy with its interval, efficiency, invalid rate and patterns of some episodes.

    Args:
        solved_by_all: keys on which efficiency is measured: those that every compared model solved. None: those solved
            here.
    """
    turns = sum(record["turns"] for record in records)
    common = [
        record for record in records if record["won"] and (solved_by_all is None or record["key"] in solved_by_all)
    ]
    patterns = sorted({name for record in records for name in record["patterns"]})
    return {
        "accuracy": flat_score([float(record["won"]) for record in records]),
        "score": flat_score([record["score"] for record in records]),
        "turns_when_solved": sum(record["turns"] for record in common) / len(common) if common else None,
        "solved_in_common": len(common),
        "invalid_rate": sum(record["invalid"] for record in records) / max(1, turns),
        "cut_off": sum(record["cut_off"] for record in records) / max(1, len(records)),
        "faults": sum(record["faults"] for record in records),
        "patterns": {name: sum(record["patterns"][name] for record in records) / max(1, turns) for name in patterns},
    }


def summary(records: Sequence[Record], solved_by_all: set[str] | None = None) -> dict[str, Any]:
    """The figures of all episodes, and by class, by difficulty, by class and difficulty, and by game."""

    def by(*keys: str) -> dict[str, Any]:
        groups: dict[str, list[Record]] = {}
        for record in records:
            groups.setdefault("/".join(record[key] for key in keys), []).append(record)
        return {name: figures(group, solved_by_all) for name, group in groups.items()}

    return {
        "all": figures(records, solved_by_all),
        "by_class": by("class"),
        "by_difficulty": by("difficulty"),
        "by_class_and_difficulty": by("class", "difficulty"),
        "by_game": by("game"),
    }


def compared(results: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, Any]]:
    """Summaries of several models, their efficiency measured on the problems that all of them solved."""
    solved = [{record["key"] for record in records if record["won"]} for records in results.values()]
    in_common = set.intersection(*solved) if solved else set()
    return {name: summary(records, in_common) for name, records in results.items()}


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a row a class and difficulty, for every model."""
    lines = [
        "| model | class | difficulty | accuracy | 95 % interval | n | turns when solved | invalid moves |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model, made in results.items():
        groups = {"all/all": made["all"]}
        groups |= {f"{name}/all": group for name, group in made["by_class"].items()}
        groups |= {f"all/{name}": group for name, group in made["by_difficulty"].items()}
        groups |= made["by_class_and_difficulty"]
        for name, group in groups.items():
            accuracy, turns = group["accuracy"], group["turns_when_solved"]
            kind, _, difficulty = name.partition("/")
            lines.append(
                f"| {model} | {kind.replace('_', ' ')} | {difficulty} | {accuracy['value']:.3f} "
                f"| {accuracy['low']:.3f}-{accuracy['high']:.3f} | {accuracy['n']} "
                f"| {'-' if turns is None else f'{turns:.1f}'} | {group['invalid_rate']:.3f} |"
            )
    return "\n".join(lines) + "\n"
