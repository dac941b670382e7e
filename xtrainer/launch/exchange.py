"""How do the processes of a run tell each other something small? JSON, past the devices.

JAX's coordination service carries it, so that no device waits and no compiled program is needed.
Every process must call these functions in one order.
"""

import contextlib
import functools
import itertools
import json
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from xtrainer.errors import PeerError
from xtrainer.types import JSON

DEFAULT_TIMEOUT_S = 300.0
MAX_TEXT = 20_000
"""Characters of a traceback that are passed on."""


def gather(value: JSON, name: str, timeout_s: float | None = None) -> list[JSON]:
    """Returns the values of all processes, by process.

    Args:
        value: What this process says; JSON.
        name: What it is about, for messages.
        timeout_s: How long to wait for the last process; None: 300, or more, see
            :func:`allowing`.

    Raises:
        PeerError: If a process does not come in time.

    Example:
        >>> gather({"rows": 3}, "rows of a batch")
        [{'rows': 3}]
    """
    if num_processes() == 1:
        return [value]
    return _exchange().gather(value, name, timeout_s)


def broadcast(value: JSON, name: str, timeout_s: float | None = None) -> JSON:
    """Returns the main process's value; that of the others is not looked at.

    Args:
        value: What the main process says; JSON.
        name: What it is about, for messages.
        timeout_s: How long to wait for it; None: as :func:`gather`.

    Raises:
        PeerError: If it does not come in time.

    Example:
        >>> broadcast("runs/a", "run folder")
        'runs/a'
    """
    if num_processes() == 1:
        return value
    return _exchange().broadcast(value, name, timeout_s)


def barrier(name: str, timeout_s: float | None = None) -> None:
    """Waits until every process is here.

    Args:
        name: What is waited for, for messages.
        timeout_s: How long to wait; None: as :func:`gather`.

    Raises:
        PeerError: If a process does not come in time.
    """
    gather(None, name, timeout_s)


@contextlib.contextmanager
def allowing(timeout_s: float) -> Iterator[None]:
    """Lets the waits in here take longer than 300 s, where something else watches them.

    Args:
        timeout_s: How long; it never makes them shorter.
    """
    if num_processes() == 1:
        yield
        return
    exchange = _exchange()
    before, exchange.timeout_s = exchange.timeout_s, max(exchange.timeout_s, timeout_s)
    try:
        yield
    finally:
        exchange.timeout_s = before


def gather_results(make: Callable[[], JSON], name: str) -> list[JSON]:
    """Returns what ``make()`` gave on each process; an error on one is an error on all.

    Args:
        make: Runs on every process; its result is JSON. It may itself gather results.
        name: What it is about, for messages.

    Raises:
        PeerError: If it raised on another process; with that process's traceback.
        Exception: What it raised on this one.

    Example:
        >>> gather_results(lambda: 3, "rows of a batch")
        [3]
    """
    if num_processes() == 1:
        return [make()]
    error: Exception | None = None
    own: dict[str, JSON] = {"value": None, "error": None}
    try:
        own["value"] = make()
    except PeerError:
        raise  # it was told in a conversation within this one, which the others have left as well
    except Exception as raised:
        if _exchange().told is raised:
            raise  # within a conversation of its own, in which the others have heard of it
        error = raised
        own["error"] = "".join(traceback.format_exception(raised))[-MAX_TEXT:]
    said = gather(own, name)
    if error is not None:
        _exchange().told = error
        raise error
    raise_for_peers({i: other["error"] for i, other in enumerate(said) if other.get("error")})
    return [other.get("value") for other in said]


def raise_for_peers(texts: Mapping[int, str]) -> None:
    """Raises where processes have failed.

    Args:
        texts: Tracebacks by process.

    Raises:
        PeerError: With all of them, if there are any.
    """
    if texts:
        who = " and ".join(f"process {i}" for i in texts)
        shown = "\n".join(f"Process {i}:\n{text.rstrip()}" for i, text in texts.items())
        raise PeerError(f"The run ends, since {who} has failed:\n{shown}")


def coordination_client() -> Any:
    """Returns JAX's client of the coordination service, None for a process alone."""
    return _runtime().client


def runtime_process() -> int:
    """Returns the number of this process without starting JAX's devices."""
    return _runtime().process_id or 0


def num_processes() -> int:
    """Returns the number of processes without starting JAX's devices."""
    return _runtime().num_processes or 1


def _runtime() -> Any:
    # JAX offers the service to programs only through this object; Orbax uses it as well.
    from jax._src import distributed

    return distributed.global_state


class _Exchange:
    """The conversations of a process, numbered in the order in which all processes have them."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._thread = threading.current_thread()
        self.told: Exception | None = None  # the newest error that was passed on
        self.timeout_s = DEFAULT_TIMEOUT_S
        self._spent: list[str] = []  # own keys that may still be read by others

    def gather(self, value: JSON, name: str, timeout_s: float | None) -> list[JSON]:
        client, number = self._begin(name)
        prefix, own = f"xtrainer/exchange/{number}", runtime_process()
        client.key_value_set(f"{prefix}/{own}", json.dumps(value))
        values = [
            self._read(client, f"{prefix}/{i}", i, name, timeout_s) for i in range(num_processes())
        ]
        # All have come here, so that none still reads what was said before.
        for key in self._spent:
            client.key_value_delete(key)
        self._spent = [f"{prefix}/{own}"]
        return values

    def broadcast(self, value: JSON, name: str, timeout_s: float | None) -> JSON:
        client, number = self._begin(name)
        key = f"xtrainer/exchange/{number}/0"
        if runtime_process() == 0:
            client.key_value_set(key, json.dumps(value))
            self._spent.append(key)
            return json.loads(json.dumps(value))
        return self._read(client, key, 0, name, timeout_s)

    def _begin(self, name: str) -> tuple[Any, int]:
        if threading.current_thread() is not self._thread:
            raise PeerError(
                f"{name!r}: the processes of a run speak to each other from one thread, "
                f"{self._thread.name!r}, and this is {threading.current_thread().name!r}: two "
                "would come in any order. Use the trainer from the thread that made it."
            )
        return coordination_client(), next(self._numbers)

    def _read(
        self, client: Any, key: str, process: int, name: str, timeout_s: float | None
    ) -> JSON:
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        try:
            return json.loads(client.blocking_key_value_get(key, int(timeout_s * 1000)))
        except jax.errors.JaxRuntimeError as error:
            raise PeerError(
                f"Process {process} did not answer to {name!r} within {timeout_s:g} s, expected "
                "every process of the run to come here. It has failed, hangs, or took another way "
                "through the program; look at its output."
            ) from error


@functools.cache
def _exchange() -> _Exchange:
    """Returns the one exchange of this process, as there is one coordination service."""
    return _Exchange()
