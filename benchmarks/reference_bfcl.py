"""BFCL's own checkers against ours, on the same calls.

    make suites && python benchmarks/reference_bfcl.py

Dialogues: the right calls of all 800, which must score 1, none, which must score 0, and eight changes of each (a call
left out, added, renamed, given another or a further argument; calls or turns in another order). Single turns: the right
calls of every question that wants some, and about twenty changes of each. Theirs are run out of the package's wheel.
Answers on which their checker raises are counted and left out.

Unit: answers scored alike, of all. The last line is JSON; the target is all.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from posttrain.evaluation.suites.bfcl import Bfcl
from posttrain.evaluation.suites.suite import Item
from tests.reference_bfcl import (
    call_answers,
    call_asked,
    call_verdict,
    dialogue_answers,
    dialogue_asked,
    dialogue_verdict,
    verdicts,
)
from tests.test_suite_bfcl import played, right_turns

Judged = list[tuple[Item, Any, bool, Any]]
"""Items, answers, our verdicts and theirs."""


def dialogues(items: list[Item]) -> Judged:
    asked = [(item, turns) for item in items for turns in dialogue_answers(item)]
    theirs = verdicts(dialogue_asked(item, turns) for item, turns in asked)
    return [
        (item, turns, dialogue_verdict(item, turns), said) for (item, turns), said in zip(asked, theirs, strict=True)
    ]


def single_turns(items: list[Item]) -> Judged:
    asked = [(item, calls) for item in items if item.facts["wanted"] for calls in call_answers(item)]
    theirs = verdicts(call_asked(item, calls) for item, calls in asked)
    return [(item, calls, call_verdict(item, calls), said) for (item, calls), said in zip(asked, theirs, strict=True)]


def main() -> None:
    items = Bfcl().items()
    several = [item for item in items if "turns" in item.facts]
    begun = time.perf_counter()
    right = sum(played(item, right_turns(item)).marks.scores["accuracy"] == 1.0 for item in several)
    seconds = time.perf_counter() - begun
    nothing = sum(played(item, [[] for _ in right_turns(item)]).marks.scores["accuracy"] == 1.0 for item in several)
    judged = {
        "dialogues": dialogues(several),
        "single_turn": single_turns([item for item in items if "turns" not in item.facts]),
    }
    counts: dict[str, Counter[str]] = {}
    for kind, answers in judged.items():
        counts[kind] = Counter(dict.fromkeys(("outputs", "alike", "passing", "raising"), 0))
        for item, answer, ours, theirs in answers:
            known = isinstance(theirs, bool)
            counts[kind].update(outputs=known, alike=ours == theirs, passing=theirs is True, raising=not known)
            if known and ours != theirs:
                print(f"{item.id}: ours {ours}, theirs {theirs}\n{json.dumps(answer)[:600]}")
    alike, outputs = (sum(count[name] for count in counts.values()) for name in ("alike", "outputs"))
    result = {
        "name": "reference_bfcl",
        "ours": alike,
        "theirs": outputs,
        "unit": "answers scored alike, of all",
        "ratio": round(alike / outputs, 5),
        "target": 1.0,
        "met": alike == outputs and right == len(several) and not nothing,
        "right_dialogues": [right, len(several)],
        "right_dialogues_seconds": round(seconds, 1),
        "empty_dialogues_that_pass": nothing,
        "checkers": counts,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
