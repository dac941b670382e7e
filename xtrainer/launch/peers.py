"""How do the processes of a run end together? Who fails says so, and nobody waits for the dead.

A process that waits for another inside a compiled program cannot be reached by an exception, and
JAX lets it wait for minutes. So a thread of every process watches what the others announce; when
the process has not ended by itself a few seconds later, it prints that failure and leaves at once.
"""

import atexit
import contextlib
import functools
import json
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from typing import Any, NoReturn

import jax

from xtrainer.errors import HangError, PeerError
from xtrainer.launch.exchange import (
    MAX_TEXT,
    coordination_client,
    num_processes,
    runtime_process,
)
from xtrainer.launch.exits import ERROR_CODE, exit_code, leave_now, watch_exit
from xtrainer.launch.inquiry import answer_if_asked, introduce
from xtrainer.launch.waits import within

_FAILURES = "xtrainer/failures/"
_LEAVING = "xtrainer/leaving/"
_POLL_S = 0.25
_JOIN_S = 5.0
_LAST_WORDS_S = 5.0


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


def leave(error: BaseException, absent: Collection[int] = ()) -> NoReturn:
    """Ends this process at once with an error's code, and tells the others of it.

    Args:
        error: Why; it was shown already.
        absent: Processes that nothing can be expected of.
    """
    if jax.distributed.is_initialized():
        _watcher().depart(error, absent)
    leave_now(getattr(error, "exit_code", ERROR_CODE))


@contextlib.contextmanager
def last_words(call: Callable[[str], None]) -> Iterator[None]:
    """Lets something be recorded before another process's failure ends this one.

    Args:
        call: Takes the failures, from any thread; it has a few seconds.
    """
    words = _watcher().last_words
    words.append(call)
    try:
        yield
    finally:
        words.remove(call)


class _Watcher:
    """What one process knows of failures, its own among them."""

    def __init__(self) -> None:
        self._grace_s = 5.0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._failures: dict[str, str] = {}  # announcements by key
        self._codes: dict[str, int] = {}  # what they end a process with
        self.last_words: list[Callable[[str], None]] = []
        self._settled: set[str] = set()
        self._absent: set[int] = set()  # processes that nothing can be expected of
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
        watch_exit()  # before: what is registered last runs first, and that one ends the program
        # Runs before JAX's own exit handler, which waits for all processes.
        atexit.register(self._leave_if_failed)
        introduce()
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
            self._codes[key] = code = getattr(error, "exit_code", ERROR_CODE)
        with contextlib.suppress(Exception):  # the coordinator may be what has failed
            said = {"text": text, "code": code, "absent": sorted(self._absent)}
            coordination_client().key_value_set(key, json.dumps(said))

    def depart(self, error: BaseException, absent: Collection[int]) -> NoReturn:
        self._leaving.acquire()
        self._doomed = True  # it was shown
        self._absent.update(absent)
        if 0 not in absent:  # through which the others would hear of it
            within(_LAST_WORDS_S, lambda: self.announce(error))
            time.sleep(2 * _poll_s())  # else they see a connection break before they hear why
        self._end(getattr(error, "exit_code", ERROR_CODE))

    def settle(self) -> None:
        self._read()
        with self._lock:
            self._settled |= self._failures.keys()

    def _read(self) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # nothing there, or no coordinator
            # Not under the lock: where the coordinator is stopped this never returns.
            found = coordination_client().key_value_dir_get(_FAILURES)
            with self._lock:
                for key, value in found:
                    said = json.loads(value)
                    self._failures.setdefault(key, said["text"])
                    self._codes.setdefault(key, said.get("code", ERROR_CODE))
                    self._absent.update(said.get("absent", ()))

    def _run(self) -> None:
        since: float | None = None
        while coordination_client() is not None:
            self._read()
            with self._lock:
                open_failures = self._failures.keys() - self._settled
                # Who hangs does not end by itself: there is nothing to wait for.
                hangs = any(self._codes[key] == HangError.exit_code for key in open_failures)
            if not open_failures:
                since = None
            elif since is None and not hangs:
                since = time.monotonic()
            elif since is None or hangs or time.monotonic() - since > self._grace_s:
                self._leave()
            answer_if_asked()
            time.sleep(_poll_s())

    def _hook(self, previous: Callable[..., Any]) -> Callable[..., Any]:
        def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
            self._doomed = True
            self._announced = None  # what was dealt with in training has ended the program
            self.announce(error)
            previous(kind, error, trace)

        return hook

    def _leave_if_failed(self) -> None:
        self._read()
        with self._lock:
            failed = self._doomed or bool(self._failures.keys() - self._settled)
        if failed:
            self._leave()
        # While this process waits for the others to end, too, it is to hear of their failures. Then
        # the thread must be gone: Python aborts where one is within JAX at its end.
        with contextlib.suppress(Exception):
            jax.distributed.shutdown()
        if self._thread is not None:
            self._thread.join(_JOIN_S)

    def _leave(self) -> NoReturn:
        """Ends this process now: JAX's own way out would wait for processes that are gone."""
        self._leaving.acquire()  # for good: the thread that is second must not cut the first short
        self._end(exit_code())

    def _end(self, code: int) -> NoReturn:
        own, texts = runtime_process(), []
        # A hang first: what else has failed followed from it.
        first = lambda failure: self._codes[failure[0]] != HangError.exit_code  # noqa: E731
        for key, text in sorted(self._failures.items(), key=first):
            if key in self._settled:
                continue
            code = self._codes[key] if code == ERROR_CODE else code
            mine = _process(key) == own
            if not (mine and self._doomed):  # else it was shown
                who = "This process" if mine else f"Process {_process(key)}"
                texts.append(f"{who} has failed, so process {own} ends:\n{text}")
                print(texts[-1], file=sys.stderr)
        for call in self.last_words if texts else ():
            within(_LAST_WORDS_S, functools.partial(call, "\n".join(texts)))
        self._see_others_off(own)
        leave_now(code)

    def _see_others_off(self, own: int) -> None:
        """Says that this process leaves; the coordinator leaves last.

        Without it JAX aborts the others at once, before they have shown why.
        """
        client, expected = coordination_client(), num_processes() - len(self._absent)
        if 0 in self._absent:
            return  # there is nobody to tell
        with contextlib.suppress(Exception):
            client.key_value_set(f"{_LEAVING}{own}", "")
            deadline = time.monotonic() + self._grace_s + 8 * _POLL_S
            while own == 0 and time.monotonic() < deadline:
                if len(client.key_value_dir_get(_LEAVING)) >= expected:
                    time.sleep(_POLL_S)  # between saying so and being gone
                    break
                time.sleep(_POLL_S)


def _poll_s() -> float:
    return max(_POLL_S, num_processes() / 500)  # 1000 questions a second in all


def _process(key: str) -> int:
    return int(key.removeprefix(_FAILURES).split("/")[0])


@functools.cache
def _watcher() -> _Watcher:
    """Returns the one watcher of this process."""
    return _Watcher()
