"""The options of `posttrain eval`, and how a command line reads a number."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from posttrain.evaluation.suites.registry import SUITES
from posttrain.templates.families import FAMILIES


def whole(least: int) -> Callable[[str], int]:
    """Reads an option that is a whole number, `least` or more."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of {least} or more")
        return number

    return read


def add_eval_arguments(command: argparse.ArgumentParser) -> None:
    """What is scored, on what, and how it is asked."""
    command.add_argument(
        "--model",
        action="append",
        default=[],
        required=True,
        metavar="[LABEL=]MODEL",
        help="a directory, a stage of the recipe's run, or with --endpoint a served name; repeatable with --suite",
    )
    command.add_argument(
        "--suite", action="append", default=[], metavar="NAME", help=f"repeatable; one of {', '.join(SUITES)}"
    )
    command.add_argument("--endpoint", metavar="URL", help="an OpenAI-compatible server, as http://127.0.0.1:8000/v1")
    command.add_argument("--api-key-env", metavar="NAME", help="the environment variable that holds the server's key")
    command.add_argument(
        "--family", choices=sorted(FAMILIES), default="qwen3", help="the dialect of a served model; default: qwen3"
    )
    command.add_argument(
        "--budget", type=whole(0), action="append", default=[], help="a thinking budget in tokens; repeatable"
    )
    command.add_argument(
        "--mode", choices=("thinking", "non_thinking"), action="append", default=[], help="default: all modes"
    )
    command.add_argument(
        "--limit", type=whole(1), metavar="N", help="so many items of each suite, drawn once and for all"
    )
    command.add_argument(
        "--max-new-tokens", type=whole(1), default=4096, help="of one answer to a suite; default: 4096"
    )
    command.add_argument("--batch-size", type=whole(1), default=64, help="answers decoded together here; default: 64")
    command.add_argument("--seed", type=int, default=1234, help="of all sampling on suites")
    command.add_argument("--quiet", action="store_true")
