"""What became of the conversations on their way to tokens: counted, logged, a few kept to read."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from posttrain.errors import PosttrainError, Problem

log = logging.getLogger("posttrain")

LOGGED = 10  # conversations logged one by one, for each reason
EXAMPLES = 100  # skipped conversations kept to read

Reason = Literal["malformed", "no_assistant_turn", "control_token_in_answer", "too_long", "nothing_supervised"]


@dataclass
class TokenCounts:
    """What became of the conversations. `tokenize_conversations` fills it in.

    Attributes:
        conversations: rows read; samples, tokens, supervised_tokens: what was made of them.
        truncated: samples cut at max_length.
        control_tokens: conversations with a control token typed into a message that is not the assistant's.
        skipped: reason -> number, of samples for too_long and nothing_supervised, else of conversations.
        examples: the first skipped ones as {"row", "reason", "detail"}; `dataset[row]` is the conversation.
    """

    conversations: int = 0
    samples: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    truncated: int = 0
    control_tokens: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)

    def skip(self, row: int, reason: Reason, detail: str) -> None:
        """Count one that is left out, and log it."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
        if len(self.examples) < EXAMPLES:
            self.examples.append({"row": row, "reason": reason, "detail": detail})
        if self.skipped[reason] <= LOGGED:
            log.warning("conversation %d skipped: %s (%s)", row, reason.replace("_", " "), detail)

    def typed(self, row: int, marker: str) -> None:
        """Count a conversation with a control token typed into a message, and log it."""
        self.control_tokens += 1
        if self.control_tokens <= LOGGED:
            log.warning("conversation %d: %s typed into a message acts as a control token", row, marker)

    def report(self) -> None:
        """Log the sums. Raises PosttrainError when nothing is left."""
        sums = ", ".join(f"{number} {reason.replace('_', ' ')}" for reason, number in self.skipped.items())
        if not self.samples:
            first = self.examples[0] if self.examples else None
            raise PosttrainError(
                Problem(
                    f"no sample with a supervised token is left of {self.conversations} conversations",
                    why=f"skipped: {sums}; the first is row {first['row']} ({first['detail']})" if first else "no rows",
                    remedy="see the reasons: raise max_length, or mend the messages",
                )
            )
        if sums:
            log.warning("of %d conversations, skipped: %s", self.conversations, sums)
        if self.truncated:
            log.warning("%d samples cut at max_length: they end without an end marker", self.truncated)
        if self.control_tokens:
            log.warning("%d conversations hold control tokens typed into a message", self.control_tokens)

    def as_dict(self) -> dict[str, Any]:
        """The counts as JSON-able data, for a funnel."""
        return asdict(self)
