"""What differs between the chat dialects: template files, markers, modes, stop text, sampling.

Nothing here is measured or guessed. The sources are the Qwen3 Technical Report (arXiv 2505.09388, section 4), the
Qwen3 documentation (quickstart; thinking budget) and the model cards of Qwen2.5 and of the 2507 models.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from posttrain.errors import PosttrainError, Problem

Mode = Literal["thinking", "non_thinking"]
Kind = Literal["hybrid", "thinking", "instruct", "base"]

# The documentation's text (the report prints a stray dot after the marker); 24 tokens with the Qwen3 tokenizer.
QWEN3_STOP_THINKING = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now."
    "\n</think>\n\n"
)


@dataclass(frozen=True)
class Sampling:
    """How to sample in one mode. `top_k` 0 and `top_p` 1.0 mean off; `presence_penalty` is vLLM's and OpenAI's."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    presence_penalty: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Family:
    """One chat dialect.

    Attributes:
        name: the key in `FAMILIES`.
        kind: hybrid (both modes in one model), thinking (always thinks), instruct (never thinks) or base.
        template: file name of the template that is served, beside this module.
        training_template: file name of the prefix-preserving variant with generation marks.
        modes: the modes a model of this family has.
        default_mode: the mode when nobody asks for one.
        prefill: what the generation prompt writes after the assistant's header in each mode, so what a completion
            of that mode never contains. It names the same text as the template (a test holds the two together).
        sampling: the recommended sampling per mode.
        flags: the words that switch the mode inside a user or system message; empty where the family has none.
        stop_thinking: what is forced when a thinking budget strikes, close marker included; "" where nothing thinks.
        default_system: the system message the template adds to a conversation without one, or "".
        null_content: whether `content: null` is rendered as nothing; if not, only a turn with tool calls may lack it.
        string_arguments: what the template does with tool arguments given as a string: "raw" pastes the text,
            "json" encodes it as a JSON string.
        think_open, think_close, message_start, message_end, end_of_text, tool_call_open, tool_call_close: markers.
    """

    name: str
    kind: Kind
    template: str
    training_template: str
    modes: tuple[Mode, ...]
    default_mode: Mode
    prefill: Mapping[Mode, str] = field(hash=False)
    sampling: Mapping[Mode, Sampling] = field(hash=False)
    flags: Mapping[Mode, str] = field(default_factory=dict, hash=False)
    stop_thinking: str = ""
    default_system: str = ""
    null_content: bool = True
    string_arguments: Literal["raw", "json"] = "raw"
    think_open: str = "<think>"
    think_close: str = "</think>"
    message_start: str = "<|im_start|>"
    message_end: str = "<|im_end|>"
    end_of_text: str = "<|endoftext|>"
    tool_call_open: str = "<tool_call>"
    tool_call_close: str = "</tool_call>"

    @property
    def markers(self) -> tuple[str, ...]:
        """What a model has to have as tokens of their own to be trained in this dialect."""
        thinking = (self.think_open, self.think_close) if self.default_mode == "thinking" else ()
        return (self.message_start, self.message_end, *thinking)

    @property
    def thinks(self) -> bool:
        """Whether the templates of this family render a think block at all."""
        return self.kind in ("hybrid", "thinking")


_THINKING = Sampling(temperature=0.6, top_p=0.95, top_k=20)

_FAMILIES = (
    Family(
        name="qwen3",
        kind="hybrid",
        template="qwen3.jinja",
        training_template="qwen3_training.jinja",
        modes=("thinking", "non_thinking"),
        default_mode="thinking",
        prefill={"thinking": "", "non_thinking": "<think>\n\n</think>\n\n"},
        sampling={
            "thinking": _THINKING,
            "non_thinking": Sampling(temperature=0.7, top_p=0.8, top_k=20, presence_penalty=1.5),
        },
        flags={"thinking": "/think", "non_thinking": "/no_think"},
        stop_thinking=QWEN3_STOP_THINKING,
    ),
    Family(
        name="qwen3_thinking_2507",
        kind="thinking",
        template="qwen3_thinking_2507.jinja",
        training_template="qwen3_thinking_2507_training.jinja",
        modes=("thinking",),
        default_mode="thinking",
        prefill={"thinking": "<think>\n"},
        sampling={"thinking": _THINKING},
        stop_thinking=QWEN3_STOP_THINKING,
    ),
    Family(
        name="qwen3_instruct_2507",
        kind="instruct",
        template="qwen3_instruct_2507.jinja",
        training_template="qwen3_instruct_2507_training.jinja",
        modes=("non_thinking",),
        default_mode="non_thinking",
        prefill={"non_thinking": ""},
        sampling={"non_thinking": Sampling(temperature=0.7, top_p=0.8, top_k=20)},
    ),
    Family(
        name="qwen2_5",
        kind="instruct",
        template="qwen2_5.jinja",
        training_template="qwen2_5_training.jinja",
        modes=("non_thinking",),
        default_mode="non_thinking",
        prefill={"non_thinking": ""},
        sampling={"non_thinking": Sampling(temperature=0.7, top_p=0.8, top_k=20)},
        default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        null_content=False,
        string_arguments="json",
    ),
)

FAMILIES: Mapping[str, Family] = {family.name: family for family in _FAMILIES}


def get_family(name: str) -> Family:
    """The family called `name`. Raises PosttrainError, with the nearest known name, when there is none."""
    if name in FAMILIES:
        return FAMILIES[name]
    near = difflib.get_close_matches(str(name).lower().replace(".", "_").replace("-", "_"), FAMILIES, n=1)
    raise PosttrainError(
        Problem(
            what=f"unknown template family {name!r}",
            why="a family names the chat template, the markers and the modes of a model",
            remedy=(f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(sorted(FAMILIES))}",
        )
    )
