"""`posttrain chat`: a conversation in the terminal, mode and thinking budget switchable at any turn."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from posttrain.model.generation import Generator, Prompt
from posttrain.run.model_directory import check_directory, family_at, load
from posttrain.run.quiet import hush_libraries
from posttrain.templates.families import Mode
from posttrain.templates.render import Message

CLOSED = {
    "natural": "ended by itself",
    "budget": "stopped by the budget",
    "eos": "closed where the model would have ended its turn",
}
"""What ended the thinking (`Completion.closed_by`), in words."""

HELP = "/think, /no_think: mode from here on   /budget N: thinking tokens (-1: no limit)   /clear: forget   /quit"


def chat(directory: Path, *, thinking_budget: int, max_new_tokens: int) -> None:
    """Read questions from standard input until its end, and answer each.

    Raises:
        PosttrainError: no whole model stands at the directory.
    """
    check_directory(directory, "give a stage's model directory")
    hush_libraries()
    family = family_at(directory)
    generate = Generator(*load(directory), family, max_new_tokens=max_new_tokens)
    mode: Mode = family.default_mode
    history: list[Message] = []
    print(HELP)
    turn = 0
    while True:
        print(f"\n[{mode}, budget {thinking_budget}] > ", end="", flush=True)
        line = _line()
        if not line or line.strip() == "/quit":
            print()
            return
        command, _, argument = line.strip().partition(" ")
        if command in ("/think", "/no_think") and not argument:
            mode = "thinking" if command == "/think" else "non_thinking"
            if mode not in family.modes:
                mode = family.default_mode
                print(f"{family.name} knows {mode} only")
        elif command == "/budget" and re.fullmatch(r"-1|[0-9]+", argument.strip(), re.ASCII):
            thinking_budget = int(argument)
        elif command == "/clear" and not argument:
            history = []
        elif re.fullmatch("/[a-z_]*", command) and (command not in ("/think", "/no_think") or not argument):
            print(f"no such command: {line.strip()}\n{HELP}")
        elif line.strip():
            history.append({"role": "user", "content": line.strip()})
            turn += 1
            history.append(_answer(generate, history, mode, thinking_budget, seed=turn))


def _line() -> str:
    """The next line of standard input, "" at its end; bytes that are no UTF-8 are replaced, and end no chat."""
    line = sys.stdin.buffer.readline() if hasattr(sys.stdin, "buffer") else sys.stdin.readline().encode()
    return line.decode(errors="replace")


def _answer(generate: Generator, history: list[Message], mode: Mode, thinking_budget: int, *, seed: int) -> Message:
    budget = None if thinking_budget < 0 else thinking_budget
    completion = generate([Prompt(messages=history, mode=mode, thinking_budget=budget)], seed=seed)[0]
    dim, plain = ("\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "")
    if completion.message.reasoning and completion.message.reasoning.strip():
        print(f"{dim}{completion.message.reasoning.strip()}{plain}")
    print(completion.message.content.strip())
    closed = f", {CLOSED.get(completion.closed_by, completion.closed_by)}" if completion.closed_by else ""
    cut = ", cut off" if completion.truncated else ""
    print(f"{dim}({completion.thinking_tokens} thinking tokens{closed}{cut}){plain}")
    return completion.message.to_message()
