"""The judge: process 1 of the sandbox. It reads one job, judges it, and writes the verdict.

What the tested code could forge, it cannot reach. It runs in a process that was forked before the job was read, so the
tests were never in its memory; the verdict's pipe is closed there; the judge can be neither traced (its executable is
not readable, so the kernel refuses) nor signalled (process 1 of a namespace takes no signal from inside). Expected
outputs of programs never enter the sandbox: they are compared outside.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from types import FunctionType, ModuleType

from posttrain.sandbox.judge.answer import Answer, confine, module_of
from posttrain.sandbox.judge.channel import Channel, Closed
from posttrain.sandbox.judge.processes import DESK, Ended, Stopped, Watch, end_all, spawn
from posttrain.sandbox.judge.remote import AnswerEnded, Peer
from posttrain.sandbox.judge.wire import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Told = tuple[str, str]

MEMORY: Told = ("memory", "it asked for more memory than it may have")


def main() -> None:
    """Judge the job on standard input; write JSON to standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Python's own handler would let the answer interrupt process 1
    verdict = os.dup(1)
    os.set_inheritable(verdict, False)
    nowhere = os.open("/dev/null", os.O_RDWR)
    there, here = os.pipe(), os.pipe()
    child = spawn(
        lambda: _answer(Channel(3, 4)),
        [(nowhere, 0), (nowhere, 1), (nowhere, 2), (there[0], 3), (here[1], 4)],
    )
    os.close(there[0])
    os.close(here[1])
    with open(0, "rb", closefd=False) as stdin:
        job = loads(stdin.read().decode())
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    watch = Watch(job["wall"], job["files"])
    if job["programs"] is None:
        channel = Channel(here[0], there[1], watch)
        result: Any = _judge_tests(job, child, channel)
    else:
        os.close(there[1])  # no answer to ask: its process ends by itself
        result = [_run_program(job, text, watch) for text in job["programs"]]
    with open(verdict, "w", encoding="utf-8") as out:
        out.write(dumps(result))
    os._exit(0)  # with process 1 the kernel ends whatever else there is


def _answer(channel: Channel) -> None:
    try:
        limits, code = channel.receive()
        confine(limits)
        Answer(channel).serve(code)
    except Closed:
        os._exit(0)


def _judge_tests(job: dict[str, Any], child: int, channel: Channel) -> Told:
    try:
        return _tested(job, Peer(channel))
    except AnswerEnded as ended:
        if str(ended) == "memory":
            return MEMORY
        return ("failed", f"it left with {ended}") if str(ended) else _death(child, job["limits"]["CPU"])
    except Stopped as stopped:
        return stopped.status, stopped.reason


def _death(child: int, cpu: float) -> Told:
    try:
        return Ended(child, Watch(0.25, sys.maxsize)).told(cpu)
    except Stopped:
        return "failed", "it answers no more"


def _tested(job: dict[str, Any], peer: Peer) -> Told:
    try:
        tests = compile(job["tests"], "<tests>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        return "error", f"the tests are no Python: {error}"
    try:
        peer.load(job["limits"], job["code"])
    except Exception as error:
        return "failed", f"the code does not run: {_described(error)}"
    resource.setrlimit(resource.RLIMIT_AS, (job["limits"]["AS"],) * 2)
    try:
        namespace = _namespace(job, peer)
    except AttributeError:
        return "failed", f"the code defines no {job['entry_point']}"
    before = set(namespace)
    try:
        exec(tests, namespace)
        _run_collected({name: value for name, value in namespace.items() if name not in before})
    except (AnswerEnded, Stopped):
        raise
    except AssertionError as error:
        return "failed", f"a test does not hold{_line(error)}{f': {error}'[:200] if str(error) else ''}"
    except BaseException as error:
        return "failed", f"{_described(error)}{_line(error)}"
    return "passed", "every test holds"


def _namespace(job: dict[str, Any], peer: Peer) -> dict[str, Any]:
    """What the tests see from the start: the entry point, and whatever else they name that the answer defines."""
    module = ModuleType("answer")
    module.__getattr__ = lambda name: peer.ask("get", 0, name)  # type: ignore[method-assign]
    sys.modules["answer"] = sys.modules["solution"] = module
    namespace: dict[str, Any] = {"__name__": "tests"}
    if job["entry_point"]:
        namespace[job["entry_point"]] = peer.ask("get", 0, job["entry_point"])
    for name in job["names"]:
        try:
            namespace[name] = peer.ask("get", 0, name)
        except AttributeError:
            continue  # the tests define it, or their use of it says what is missing
    return namespace


def _run_collected(defined: dict[str, Any]) -> None:
    """Functions called `test...`, those of classes called `Test...`, and unittest's cases, as a test runner would.

    Raises what fails.
    """
    for name, value in defined.items():
        if name.startswith("test") and isinstance(value, FunctionType):
            value()
        if name.startswith("Test") and type(value) is type and not hasattr(value, "assertEqual"):
            _run_methods(value)
    if "unittest" not in sys.modules:
        return
    import unittest

    for value in defined.values():
        if isinstance(value, type) and issubclass(value, unittest.TestCase):
            result = unittest.TestResult()
            unittest.defaultTestLoader.loadTestsFromTestCase(value).run(result)
            for case, trace in [*result.failures, *result.errors]:
                raise AssertionError(f"{case}: {trace.strip().splitlines()[-1]}")


def _run_methods(cls: type[Any]) -> None:
    """Each test of a plain class, on an instance of its own."""
    for name in [name for name in dir(cls) if name.startswith("test") and callable(getattr(cls, name))]:
        case = cls()
        if hasattr(case, "setup_method"):
            case.setup_method()
        getattr(case, name)()


def _run_program(job: dict[str, Any], text: str, watch: Watch) -> dict[str, str]:
    """One run of the code as a program: its standard output, or why there is none."""
    files = [os.open(DESK, os.O_TMPFILE | os.O_RDWR) for _ in range(3)]  # standard input, output, error
    os.write(files[0], text.encode("utf-8", "surrogateescape"))
    os.lseek(files[0], 0, os.SEEK_SET)
    limits = job["limits"]
    try:
        child = spawn(lambda: _run_main(job["code"]), list(zip(files, (0, 1, 2), strict=True)), limits)
        ended = Ended(child, watch)
        end_all()
        output, complaint = (os.pread(file, limits["FSIZE"], 0).decode("utf-8", "replace") for file in files[1:])
        if os.fstat(files[1]).st_size >= limits["FSIZE"]:
            return {"status": "failed", "reason": f"it printed {limits['FSIZE']} bytes or more"}
        if ended.code == 0:
            return {"status": "passed", "output": output}
        status, reason = ended.told(limits["CPU"])
        last = complaint.strip().rpartition("\n")[2][:200]
        return {"status": status, "reason": f"{reason}: {last}" if last and status == "failed" else reason}
    except Stopped as stopped:
        end_all()
        return {"status": stopped.status, "reason": stopped.reason}
    finally:
        for file in files:
            os.close(file)


def _run_main(code: str) -> None:
    module_of(code, "__main__")


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:200] if str(error) else type(error).__name__


def _line(error: BaseException) -> str:
    """Where in the tests."""
    at, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<tests>":
            at = f" (line {trace.tb_lineno} of the tests)"
        trace = trace.tb_next
    return at
