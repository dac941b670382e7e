"""How do the processes of a run end together? Who fails says so, and nobody waits for the dead.

A process that waits for another inside a compiled program cannot be reached by an exception, and
JAX lets it wait for minutes. So a thread of every process watches what the others announce; when
the process has not ended by itself a few seconds later, it prints that failure and leaves at once.
"""

import atexit
import contextlib
import functools
import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import jax

from xtrainer.errors import PeerError
from xtrainer.launch.exchange import (
    MAX_TEXT,
    coordination_client,
    num_processes,
    runtime_process,
)
from xtrainer.launch.exits import exit_code

_FAILURES = "xtrainer/failures/"
_LEAVING = "xtrainer/leaving/"
_POLL_S = 0.25
_JOIN_S = 5.0


def watch(grace_s: float | None = None) -> None:
    """Starts to watch the other processes; a second call only changes the grace.

    Args:
        grace_s: Seconds that a process has, after a failure, to end by itself; None: as before, at
            first 5.
    """
    if jax.distributed.is_initialized():
        _watcher().start(grace_s)


def announce(error: BaseException) -> None:
    """Tells the other processes that this one has failed; does nothing for a process alone.

    Args:
        error: Its traceback is what the others show. One that came from them is known already.
    """
    if jax.distributed.is_initialized() and not isinstance(error, PeerError):
        _watcher().announce(error)


def settle() -> None:
    """Says that this process has dealt with every failure it knows: it need not be ended.

    Called where all processes have left what they were doing, so that the caller may go on.
    """
    if jax.distributed.is_initialized():
        _watcher().settle()


class _Watcher:
    """What one process knows of failures, its own among them."""

    def __init__(self) -> None:
        self._grace_s = 5.0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._failures: dict[str, str] = {}  # announcements by key
        self._settled: set[str] = set()
        self._number = 0
        self._announced: BaseException | None = None
        self._doomed = False  # an exception was caught by nobody
        self._leaving = threading.Lock()

    def start(self, grace_s: float | None) -> None:
        self._grace_s = self._grace_s if grace_s is None else grace_s
        with self._lock:
            if self._thread is not None:
                return
            self._thread = threading.Thread(target=self._run, name="xtrainer-peers", daemon=True)
        sys.excepthook = self._hook(sys.excepthook)
        # Runs before JAX's own exit handler, which waits for all processes.
        atexit.register(self._leave_if_failed)
        self._thread.start()

    def announce(self, error: BaseException) -> None:
        text = "".join(traceback.format_exception(error))[-MAX_TEXT:]
        with self._lock:
            if error is self._announced:
                return
            self._announced = error
            key = f"{_FAILURES}{runtime_process()}/{self._number}"
            self._number += 1
            self._failures[key] = text
        with contextlib.suppress(Exception):  # the coordinator may be what has failed
            coordination_client().key_value_set(key, json.dumps({"text": text}))

    def settle(self) -> None:
        with self._lock:
            self._read()
            self._settled |= self._failures.keys()

    def _read(self) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # nothing there, or no coordinator
            for key, value in coordination_client().key_value_dir_get(_FAILURES):
                self._failures.setdefault(key, json.loads(value)["text"])

    def _run(self) -> None:
        since: float | None = None
        while coordination_client() is not None:
            with self._lock:
                self._read()
                open_failures = self._failures.keys() - self._settled
            if not open_failures:
                since = None
            elif since is None:
                since = time.monotonic()
            elif time.monotonic() - since > self._grace_s:
                self._leave()
            time.sleep(max(_POLL_S, num_processes() / 500))  # 2000 questions a second in all

    def _hook(self, previous: Callable[..., Any]) -> Callable[..., Any]:
        def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
            self._doomed = True
            self._announced = None  # what was dealt with in training has ended the program
            self.announce(error)
            previous(kind, error, trace)

        return hook

    def _leave_if_failed(self) -> None:
        with self._lock:
            self._read()
            failed = self._doomed or bool(self._failures.keys() - self._settled)
        if failed:
            self._leave()
        # While this process waits for the others to end, too, it is to hear of their failures. Then
        # the thread must be gone: Python aborts where one is within JAX at its end.
        with contextlib.suppress(Exception):
            jax.distributed.shutdown()
        if self._thread is not None:
            self._thread.join(_JOIN_S)

    def _leave(self) -> None:
        """Ends this process now: JAX's own way out would wait for processes that are gone."""
        self._leaving.acquire()  # for good: the thread that is second must not cut the first short
        own = runtime_process()
        for key, text in self._failures.items():
            mine = _process(key) == own
            if key not in self._settled and not (mine and self._doomed):  # Python has shown it
                who = "This process" if mine else f"Process {_process(key)}"
                print(f"{who} has failed, so process {own} ends:\n{text}", file=sys.stderr)
        self._see_others_off(own)
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(exit_code())

    def _see_others_off(self, own: int) -> None:
        """Says that this process leaves; the coordinator leaves last.

        Without it JAX aborts the others at once, before they have shown why.
        """
        client = coordination_client()
        with contextlib.suppress(Exception):
            client.key_value_set(f"{_LEAVING}{own}", "")
            deadline = time.monotonic() + self._grace_s + 8 * _POLL_S
            while own == 0 and time.monotonic() < deadline:
                if len(client.key_value_dir_get(_LEAVING)) == num_processes():
                    time.sleep(_POLL_S)  # between saying so and being gone
                    break
                time.sleep(_POLL_S)


def _process(key: str) -> int:
    return int(key.removeprefix(_FAILURES).split("/")[0])


@functools.cache
def _watcher() -> _Watcher:
    """Returns the one watcher of this process."""
    return _Watcher()
