"""The machines of one run: which is which, and how the others follow the first.

Every machine runs the same command on the same recipe and a shared run directory; `engine.machine_rank` (or
$POSTTRAIN_MACHINE_RANK) tells them apart. Machine 0 builds the data, evaluates and writes the report. The others wait
until it launches a training, launch their part of it, and wait again until the run ends.

Machine 0 says that it is there by counting up a number in `machines.json`. So a file left by an earlier run is told
from a live one without comparing clocks, and the machines may be started, stopped and restarted in any order.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import RunDir, read_json, write_json

if TYPE_CHECKING:
    from posttrain.recipe.schema import EngineSpec
    from posttrain.recipe.stage import StageContext

log = logging.getLogger("posttrain")

BEAT = 1.0  # seconds between two counts of machine 0, and between two looks of another
PATIENCE = 20.0  # seconds without a count after which machine 0 is taken to be gone
SESSION = "machines.json"
LAUNCH = "launch.json"


def machine_rank(engine: EngineSpec) -> int:
    """Which machine this is: the recipe's word, the environment's, or the only one.

    Raises:
        PosttrainError: there is no such machine.
    """
    if engine.machines == 1:
        return 0
    said: Any = engine.machine_rank
    if said is None:
        said = os.environ.get("POSTTRAIN_MACHINE_RANK", "0")
    if not str(said).isdecimal() or int(said) >= engine.machines:
        raise PosttrainError(
            Problem(
                f"machine rank {said}: there are {engine.machines} machines",
                where="engine.machine_rank" if engine.machine_rank is not None else "$POSTTRAIN_MACHINE_RANK",
                remedy=f"a whole number from 0 to {engine.machines - 1}, another on every machine",
            )
        )
    return int(said)


def main_address(engine: EngineSpec) -> str:
    """The address of machine 0.

    Raises:
        PosttrainError: it is not given.
    """
    address = engine.main_address or os.environ.get("POSTTRAIN_MAIN_ADDRESS")
    if not address:
        raise PosttrainError(
            Problem(
                "several machines, and no address of machine 0",
                where="engine.main_address",
                why="the other machines connect to it",
                remedy="set engine.main_address, or $POSTTRAIN_MAIN_ADDRESS on every machine",
            )
        )
    return address


def check_machines(engine: EngineSpec) -> None:
    """Refuse, before anything is begun, what a launch over several machines lacks.

    Raises:
        PosttrainError: the rank is no machine's, the address is missing, or machine 0's port is taken.
    """
    if engine.machines > 1:
        main_address(engine)
        if machine_rank(engine) == 0:
            require_free_port(engine)


def require_free_port(engine: EngineSpec) -> None:
    """Refuse a port that another process listens on.

    Raises:
        PosttrainError: it is taken. The other machines know this one number, so no other can be chosen here.
    """
    with socket.socket(socket.AF_INET6 if ":" in main_address(engine) else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", engine.main_port))
        except OSError as error:
            raise PosttrainError(
                Problem(
                    f"port {engine.main_port} cannot be listened on: {error.strerror}",
                    where="engine.main_port",
                    remedy="choose a free one, the same on every machine",
                )
            ) from error


@contextlib.contextmanager
def leading(run: RunDir, engine: EngineSpec) -> Iterator[None]:
    """On machine 0: tell the others that the run goes on, and at its end how it ended."""
    if engine.machines == 1:
        yield
        return
    note: dict[str, Any] = {"session": uuid.uuid4().hex, "beat": 0, "state": "running", "why": ""}
    over = threading.Event()

    def count() -> None:
        while not over.is_set():
            note["beat"] += 1
            write_json(run.path / SESSION, note)
            over.wait(BEAT)

    write_json(run.path / SESSION, note)
    counter = threading.Thread(target=count, daemon=True)
    counter.start()
    try:
        yield
        note["state"] = "finished"
    except BaseException as error:
        note.update(state="stopped", why=str(error) or type(error).__name__)
        raise
    finally:
        over.set()
        counter.join()
        note["beat"] += 1
        write_json(run.path / SESSION, note)


def announce(context: StageContext) -> None:
    """On machine 0: tell the others to launch their part of a stage's training now."""
    path = context.run.path / LAUNCH
    number = int((read_json(path) or {"number": 0})["number"]) + 1
    session = (read_json(context.run.path / SESSION) or {"session": ""})["session"]
    write_json(path, {"number": number, "session": session, "stage": context.name})


@dataclass
class _Watch:
    """What another machine has seen of machine 0."""

    run: RunDir
    session: str | None = None  # the one that is being followed: seen to count
    _first: dict[str, Any] | None = None
    _beat: tuple[Any, ...] = ()
    _since: float = field(default_factory=time.monotonic)

    def look(self) -> dict[str, Any]:
        """Machine 0's word as it is now; `session` is set once it is known to be alive."""
        note = read_json(self.run.path / SESSION) or {}
        beat = (note.get("session"), note.get("beat"))
        if beat != self._beat:
            if self._beat and note:  # it changed before our eyes
                self.session = note["session"]
            self._beat, self._since = beat, time.monotonic()
        return note

    def idle(self) -> float:
        """Seconds since the last count."""
        return time.monotonic() - self._since


def follow(run: RunDir, train: Callable[[str], None], finished: Callable[[], bool]) -> None:
    """What a machine other than the first does until the run ends.

    Args:
        train: launches this machine's part of the training of the stage of that name.
        finished: whether every stage of the run has its record.

    Raises:
        PosttrainError: machine 0 stopped, or a training failed.
    """
    watch, joined, told = _Watch(run), None, False
    log.info("waiting for machine 0 to launch a training")
    while True:
        note = watch.look()
        if watch.session is not None and note["session"] == watch.session:
            call = read_json(run.path / LAUNCH) or {}
            place = (call.get("session"), call.get("number"))
            if note["state"] == "finished":
                return
            if note["state"] == "stopped":
                raise PosttrainError(Problem("machine 0 stopped the run", why=note["why"], remedy="start both again"))
            if place[0] == watch.session and place != joined:
                train(call["stage"])
                joined = place
        if watch.idle() > PATIENCE:
            if note.get("state") == "finished" and finished():
                log.info("the run is finished already")
                return
            if not told:
                log.info("no sign of machine 0 for %.0f s; waiting for it to be started", watch.idle())
            told = True
        else:
            told = False
        time.sleep(BEAT)
