"""The thinking budget's state machine against a brute-force reading of its rule, on random token streams.

    python benchmarks/budget_oracle.py                              a million streams
    python benchmarks/budget_oracle.py --first 5000000 --streams 1  the stream of one seed, shown

Every stream is a case of its own, drawn from its seed: markers of one to four ids that overlap, ends of turn anywhere,
blocks opened again, budget, grace, reserve, minimum, loop guard and tool calls switched at random, and an engine that
sees samples, one that edits scores, or one that does neither. After every token everything an engine can ask for is
compared with an oracle that has read the whole stream again (tests/budget_oracle.py), and every 20th stream is replayed
from nothing at each of its lengths. The run ends after `--seconds`, if not all streams are done by then.

Unit: streams on which the two differ. The last line is JSON; the target is none on at least a million streams.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from multiprocessing import Pool
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from posttrain.budget.state import BudgetState
from tests.budget_oracle import Case, compare, random_case

TARGET = 1_000_000
CHUNK = 2_000  # streams given to a process at once
REPLAY_EVERY = 20


def replay(case: Case, state: BudgetState, stream: list[int]) -> None:
    """AssertionError where a state that is told the stream afterwards stands elsewhere than one that lived it."""
    flags = state.forced if case.engine == "emit" else None

    def fresh() -> BudgetState:
        return BudgetState(case.rule, case.request, thinking_open=case.thinking_open, max_tokens=case.max_tokens)

    live = fresh()
    for length in range(len(stream) + 1):
        again = fresh()
        again.replay(stream[:length], flags and flags[:length])
        told = [(each.forced_token(), each.redirect(), each.quiet(), each.outcome()) for each in (live, again)]
        assert told[0] == told[1], (case, stream, length)
        if length < len(stream):
            live.observe(stream[length], forced=bool(flags and flags[length]))


def check(first: int) -> tuple[Counter[str], list[str]]:
    """Compare the streams of CHUNK seeds. Returns what happened in them, and the differences."""
    happened: Counter[str] = Counter()
    faults = []
    for seed in range(first, first + CHUNK):
        case = random_case(seed)
        try:
            state, stream = compare(case)
            if seed % REPLAY_EVERY == 0:
                replay(case, state, stream)
                happened["replayed"] += 1
        except (AssertionError, RuntimeError, IndexError) as error:
            faults.append(f"seed {seed}: {error!r}")
            continue
        outcome = state.outcome()
        happened["tokens"] += len(stream)
        happened["streams"] += 1
        happened[f"closed by {outcome.closed_by}" if outcome.closed_by else "not closed"] += 1
        happened["with a continuation"] += outcome.continued > 0
        happened["with a budget"] += case.request.thinking_budget is not None
        happened[f"engine {case.engine}"] += 1
    return happened, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=TARGET)
    parser.add_argument("--first", type=int, default=0, help="seed of the first stream; the others follow")
    parser.add_argument("--seconds", type=float, default=7200.0, help="no further streams are begun after these")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.streams == 1:
        case = random_case(arguments.first)
        state, stream = compare(case)
        print(f"{case}\nstream {stream}\n{state.outcome()}")
        return
    happened: Counter[str] = Counter()
    faults: list[str] = []
    began, chunks = time.monotonic(), range(arguments.first, arguments.first + arguments.streams, CHUNK)
    with Pool(arguments.processes) as pool:
        for more, found in pool.imap(check, chunks):
            happened += more
            faults += found
            if happened["streams"] % 50_000 < CHUNK:
                print(f"{happened['streams']:>9,} streams, {len(faults)} differences, {time.monotonic() - began:.0f} s")
            if time.monotonic() - began > arguments.seconds:
                break
    for fault in faults[:10]:
        print(fault)
    print(f"seeds {chunks[0]} to {chunks[0] + happened['streams'] + len(faults) - 1}, one a stream")
    for what, count in sorted(happened.items()):
        print(f"  {what:20} {count:>12,}")
    print(
        json.dumps(
            {
                "name": "budget_oracle",
                "ours": len(faults),
                "theirs": None,
                "unit": f"differences in {happened['streams'] + len(faults)} streams of {happened['tokens']} tokens",
                "ratio": None,
                "target": 0,
                "met": not faults and happened["streams"] >= TARGET,
            }
        )
    )


if __name__ == "__main__":
    main()
