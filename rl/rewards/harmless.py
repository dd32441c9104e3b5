"""Text of a policy made harmless for a model that reads it: it opens no turn, and hides nothing."""

from __future__ import annotations

import re
import unicodedata

_MARKERS = re.compile(r"<(?=[|｜]|/?(?:think|tool_call|tool_response|s|start_of_turn|end_of_turn)>)|\[(?=/?INST\])")
_LINE_BREAKS = "\n\t"


def without_markers(text: str) -> str:
    """A text without what a chat template, or a tokenizer, would take for a marker: a space breaks each of them up."""
    return _MARKERS.sub(lambda match: f"{match[0]} ", text)


def harmless(text: str) -> str:
    """A text without markers, and without control and invisible characters."""
    return without_markers(
        "".join(c for c in text if c in _LINE_BREAKS or unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cs"))
    )
