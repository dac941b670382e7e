"""Who is missing when a run stands still? One process asks, and all that live answer at once.

The answers come from the thread that watches the other processes (``peers.py``), so that a process
answers whatever its other threads wait in. One that is stopped or dead does not.
"""

import contextlib
import functools
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import jax

from xtrainer.launch.exchange import (
    MAX_TEXT,
    coordination_client,
    num_processes,
    runtime_process,
)
from xtrainer.launch.stacks import stacks, stacks_text
from xtrainer.launch.waits import within

_ASKED = "xtrainer/hang/asked/"
_ANSWERS = "xtrainer/hang/answers/"
_STACKS = "xtrainer/hang/stacks/"
_PLACES = "xtrainer/hang/places/"
_WAITING = ("step", "validation")
"""Accounts in which a process may be waiting for the others, in a compiled program."""
_NEARLY = 0.8
_POLL_S = 0.1
_SERVICE_S = 2.0
"""How much longer than for answers is waited for the service itself."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What a process says of itself.

    Attributes:
        doing: An account of the loop's ledger; ``outside`` where it does not train.
        for_s: How long nothing has moved on there.
        limit_s: How long that may take; None: any time.
        step: Newest step that it has begun.
        stacks: Of all its threads, as text.
    """

    doing: str = "outside"
    for_s: float = 0.0
    limit_s: float | None = None
    step: int | None = None
    stacks: str = ""

    def __str__(self) -> str:
        """Returns it without the stacks."""
        at = "" if self.step is None else f"at step {self.step}, "
        return f"{at}in {self.doing!r} for {self.for_s:.1f} s"


@dataclass(frozen=True)
class Found:
    """What came of a question.

    Attributes:
        standings: Of the processes that have answered, by number; this one's too.
        missing: Numbers and places of those that have not.
    """

    standings: dict[int, Standing] = field(default_factory=dict)
    missing: dict[int, str] = field(default_factory=dict)

    def behind(self) -> list[int]:
        """Returns the processes that the others seem to be waiting for.

        Those with the fewest steps; where all have as many, those that do something else than a
        step or a validation, in which a process waits for the others.

        Example:
            >>> on = lambda step, doing: Standing(step=step, doing=doing)
            >>> Found({0: on(5, "step"), 1: on(3, "callbacks"), 2: on(5, "step")}).behind()
            [1]
            >>> Found({0: on(5, "step"), 1: on(5, "callbacks")}).behind()
            [1]
            >>> Found({0: on(5, "step"), 1: on(5, "step")}).behind()
            []
        """
        steps = {i: s.step if s.step is not None else -1 for i, s in self.standings.items()}
        last = [i for i, step in steps.items() if step == min(steps.values())]
        if len(last) < len(steps):
            return last
        late = [i for i, s in self.standings.items() if s.doing not in _WAITING]
        return late if len(late) < len(steps) else []

    def excused(self) -> dict[int, float]:
        """Returns processes that do something which may take longer, and how much longer.

        Not those in a step or a validation: they may be waiting as well. Nor those whose limit is
        as good as over, since the clocks of processes that wait for each other differ a little.

        Example:
            >>> Found({0: Standing(doing="compile", for_s=20, limit_s=60)}).excused()
            {0: 40}
            >>> Found({0: Standing(doing="compile", for_s=59, limit_s=60)}).excused()
            {}
        """
        return {
            i: math.inf if s.limit_s is None else s.limit_s - s.for_s
            for i, s in self.standings.items()
            if s.doing not in (*_WAITING, "outside")
            and (s.limit_s is None or s.for_s < _NEARLY * s.limit_s)
        }


def place() -> str:
    """Returns where this process is, for messages."""
    return f"pid {os.getpid()} on {socket.gethostname()}"


def introduce() -> None:
    """Says where this process is, so that others can name it when it is missing."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        coordination_client().key_value_set(f"{_PLACES}{runtime_process()}", place())


@contextlib.contextmanager
def speaking(describe: Callable[[], Standing]) -> Iterator[None]:
    """Lets ``describe`` say what this process does, where another one asks; from any thread."""
    previous, _speaker().describe = _speaker().describe, describe
    try:
        yield
    finally:
        _speaker().describe = previous


def answer_if_asked() -> None:
    """Answers a question of another process that was not answered yet."""
    client = coordination_client()
    if client is None:  # the run is at its end
        return
    with contextlib.suppress(Exception):  # none asked, or no coordinator; who asks must live on
        for _, question in client.key_value_dir_get(_ASKED):
            _speaker().answer(client, question)


def inquire(timeout_s: float = 5.0) -> Found | None:
    """Asks all processes what they do.

    Args:
        timeout_s: How long to wait for their answers.

    Returns:
        What they said. None: another process is asking, and will say what came of it.
    """
    own = runtime_process()
    if num_processes() == 1:
        return Found({own: _speaker().standing()})
    result: list[Found | None] = []

    def ask() -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError, AttributeError):
            result.append(_ask(coordination_client(), own, timeout_s))

    within(timeout_s + _SERVICE_S, ask)
    if result:
        return result[0]
    service = "the main process, through which the others speak"
    return Found({own: _speaker().standing()}, {} if own == 0 else {0: service})


def end_question() -> None:
    """Lets others ask again."""

    def end() -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError, AttributeError):
            coordination_client().key_value_delete(f"{_ASKED}now")

    if num_processes() > 1:
        within(_SERVICE_S, end)


def _ask(client: Any, own: int, timeout_s: float) -> Found | None:
    question = f"{own}-{time.time_ns()}"
    try:
        client.key_value_set(f"{_ASKED}now", question)
    except jax.errors.JaxRuntimeError as error:
        if "ALREADY_EXISTS" in str(error):
            return None
        raise
    standings = {own: _speaker().standing()}
    deadline = time.monotonic() + timeout_s
    while len(standings) < num_processes() and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        for key, text in client.key_value_dir_get(f"{_ANSWERS}{question}"):
            standings.setdefault(int(key.rpartition("/")[2]), Standing(**json.loads(text)))
    # One by one: those of a large run would not fit into one message.
    for process, standing in list(standings.items()):
        if process != own:
            left_ms = max(1, int(1000 * (deadline - time.monotonic())))
            text = client.blocking_key_value_get(f"{_STACKS}{question}/{process}", left_ms)
            standings[process] = Standing(**{**asdict(standing), "stacks": text})
    missing = [i for i in range(num_processes()) if i not in standings]
    return Found(standings, _places(client, missing))


def _places(client: Any, processes: list[int]) -> dict[int, str]:
    known: Mapping[str, str] = {}
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        known = dict(client.key_value_dir_get(_PLACES)) if processes else {}
    return {i: known.get(f"{_PLACES}{i}", "place unknown") for i in processes}


class _Speaker:
    """What this process says of itself."""

    def __init__(self) -> None:
        self.describe: Callable[[], Standing] | None = None
        self._answered = ""
        self._lock = threading.Lock()

    def standing(self) -> Standing:
        if self.describe is not None:
            return self.describe()
        return Standing(stacks=stacks_text(stacks(threading.main_thread().ident)))

    def answer(self, client: Any, question: str) -> None:
        own = runtime_process()
        with self._lock:
            if question == self._answered or question.startswith(f"{own}-"):
                return
            if self._answered:
                client.key_value_delete(f"{_ANSWERS}{self._answered}/{own}")
                client.key_value_delete(f"{_STACKS}{self._answered}/{own}")
            said = asdict(self.standing())
            text = said.pop("stacks")[:MAX_TEXT]
            client.key_value_set(f"{_STACKS}{question}/{own}", text)
            client.key_value_set(f"{_ANSWERS}{question}/{own}", json.dumps(said))
            self._answered = question


@functools.cache
def _speaker() -> _Speaker:
    """Returns the one speaker of this process."""
    return _Speaker()
