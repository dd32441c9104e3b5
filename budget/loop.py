"""Whether the latest tokens are a verbatim loop."""

from __future__ import annotations

from collections.abc import Iterable

from posttrain.budget.request import LOOP_REPEATS


class LoopGuard:
    """Watches for a loop: the last `size` tokens are a block of at most size // 3 tokens repeated, the first repetition
    perhaps cut off on its left. In other words: they have a period of at most a third of their length.

    Looking costs O(size), and happens only when a loop can have come about since the last look, so O(1) a token. With
    K = size // 3, a period p of the window shows when the last K tokens stand p tokens earlier, too. Where they do so
    for no p <= K, more than size - 2 K further tokens have to pass. Where they do, the smallest such p is the one to
    watch (by the theorem of Fine and Wilf, 1965, any other is a multiple of it and no further advanced), and how many
    tokens its run still lacks is known.

    Attributes:
        quiet: how many further tokens may pass before `found` has to be asked.
    """

    __slots__ = ("_longest", "_size", "_window", "quiet")

    def __init__(self, size: int) -> None:
        self._size = size
        self._longest = size // LOOP_REPEATS
        self.reset()

    def reset(self) -> None:
        """Begin with an empty window."""
        self._window: list[int] = []
        self.quiet = self._size - 1

    def copy(self) -> LoopGuard:
        other = LoopGuard.__new__(LoopGuard)
        other._size, other._longest, other.quiet = self._size, self._longest, self.quiet
        other._window = self._window.copy()
        return other

    def add(self, token: int) -> None:
        self._window.append(token)
        self.quiet -= 1

    def extend(self, tokens: Iterable[int]) -> None:
        """Take note of tokens, no more than `quiet` of them."""
        before = len(self._window)
        self._window.extend(tokens)
        self.quiet -= len(self._window) - before

    def found(self) -> bool:
        """Whether the latest tokens are a loop."""
        if self.quiet >= 0:
            return False
        size, longest = self._size, self._longest
        self._window = self._window[-size:]
        text = "".join(map(chr, self._window))  # one character a token: str searches and compares in C
        last = text.rfind(text[-longest:], size - 2 * longest, size - 1)
        lacking = size - 2 * longest + 1
        if last >= 0:
            period = size - longest - last
            if text[period:] == text[:-period]:
                return True
            at = size - longest - 1
            while text[at] == text[at - period]:  # ends before at < period: the whole window would repeat
                at -= 1
            lacking = min(lacking, at - period + 1)
        self.quiet = lacking - 1
        return False
