"""Runs in a child process (`isolated`): compares two answers with math-verify."""

from __future__ import annotations


def equal(reference: str, answer: str) -> bool:
    """Whether two final answers are mathematically the same. Time limits are the caller's, hence None twice."""
    from math_verify import parse, verify

    gold = parse(f"\\boxed{{{reference}}}", parsing_timeout=None)
    target = parse(f"\\boxed{{{answer}}}", parsing_timeout=None)
    return bool(verify(gold, target, timeout_seconds=None))
