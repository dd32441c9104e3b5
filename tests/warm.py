"""The command line, or a function, in a process of its own that need not import all anew: a fork of one that has.

What a command imports when is measured elsewhere (test_cli_imports, by processes that are really fresh).
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.warm_imports"])


def start(arguments: Sequence[str], output: Path) -> multiprocessing.context.ForkServerProcess:
    """Begin `posttrain ARGUMENTS`, in a session of its own; its output goes to the files `out` and `err`."""
    process = _FORKS.Process(target=_main, args=(list(arguments), str(output), dict(os.environ), os.getcwd()))
    process.start()
    return process


def finish(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run `posttrain ARGUMENTS` to its end."""
    with tempfile.TemporaryDirectory() as folder:
        process = start(arguments, Path(folder))
        process.join()
        assert process.exitcode is not None
        out, err = ((Path(folder) / name).read_text() for name in ("out", "err"))
    return subprocess.CompletedProcess(list(arguments), process.exitcode, out, err)


def call(function: Callable[..., None], *arguments: object) -> int:
    """Call a function of a module in a process of its own; its exit code, negative: the signal that killed it."""
    process = _FORKS.Process(target=function, args=arguments)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _main(arguments: list[str], output: str, environment: Mapping[str, str], directory: str) -> None:
    os.setsid()
    os.chdir(directory)
    os.environ.update(environment)
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(os.path.join(output, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
    from posttrain.cli import main

    sys.argv = ["posttrain", *arguments]
    sys.exit(main())
