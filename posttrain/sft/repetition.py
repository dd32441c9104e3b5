"""How much of a text repeats itself."""

from __future__ import annotations

import re
from collections import Counter

# A word, a single sign, or a single character of a script written without spaces.
_UNITS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+|[^\w\s]")

TAIL = 4000  # characters of the end that are searched for a loop


def units(text: str) -> list[str]:
    """The text's words, signs and ideographs, in order."""
    return _UNITS.findall(text)


def repeated_share(text: str, n: int) -> float:
    """Share of a text's units that lie in an n-gram seen earlier in the same text (0..1)."""
    words = units(text)
    if len(words) <= n:
        return 0.0
    seen: set[tuple[str, ...]] = set()
    covered, reach = 0, 0  # units before `reach` are counted already
    for start in range(len(words) - n + 1):
        gram = tuple(words[start : start + n])
        if gram in seen:
            covered += start + n - max(start, reach)
            reach = start + n
        else:
            seen.add(gram)
    return covered / len(words)


def duplicate_line_share(text: str, *, shortest: int) -> float:
    """Share of the characters that stand in lines (of `shortest` characters or more) seen earlier (0..1)."""
    lines = [line.strip() for line in text.splitlines()]
    total = sum(len(line) for line in lines)
    counts = Counter(line for line in lines if len(line) >= shortest)
    repeated = sum(len(line) * (count - 1) for line, count in counts.items())
    return repeated / total if total else 0.0


def looped_tail(text: str, *, repeats: int, characters: int) -> str | None:
    """The unit that a text repeats at its very end, `repeats` times or more over `characters` or more; else None.

    The borders of the reversed tail give its shortest period at every length (Knuth, Morris and Pratt's failure
    function), so the search is linear. The last unit may be cut short, as truncation leaves it.
    """
    tail = text.rstrip()[-TAIL:][::-1]
    border = [0] * len(tail)
    found: tuple[int, int] | None = None  # length, period
    for i in range(1, len(tail)):
        k = border[i - 1]
        while k and tail[i] != tail[k]:
            k = border[k - 1]
        border[i] = k + (tail[i] == tail[k])
        length, period = i + 1, i + 1 - border[i]
        if length >= characters and length >= repeats * period:
            found = (length, period)
    if found is None:
        return None
    return tail[: found[1]][::-1]
