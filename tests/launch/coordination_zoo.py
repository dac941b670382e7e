"""A coordination service in memory, asked by threads that stand for processes."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import jax
import pytest


class Service:
    """What JAX's client offers, as far as xtrainer uses it; one for all processes."""

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.values: dict[str, str] = {}
        self.reads: list[str] = []
        self._changed = threading.Condition()
        self._here = threading.local()

    def as_process(self, index: int) -> None:
        """Makes the calling thread a process."""
        self._here.index = index

    def index(self) -> int:
        """Returns which process asks; 0 for threads that nobody has named."""
        return getattr(self._here, "index", 0)

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        """Sets a key, once unless it may be overwritten."""
        with self._changed:
            if key in self.values and not allow_overwrite:
                raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: {key}")
            self.values[key] = value
            self._changed.notify_all()

    def key_value_delete(self, key: str) -> None:
        """Deletes a key."""
        with self._changed:
            del self.values[key]

    def key_value_dir_get(self, prefix: str) -> list[tuple[str, str]]:
        """Returns the keys under a prefix with their values."""
        with self._changed:
            return [(k, v) for k, v in self.values.items() if k.startswith(prefix)]

    def blocking_key_value_get(self, key: str, timeout_ms: int) -> str:
        """Waits for a key."""
        end = time.monotonic() + timeout_ms / 1000
        with self._changed:
            self.reads.append(key)
            while key not in self.values:
                if not self._changed.wait(max(end - time.monotonic(), 0)):
                    raise jax.errors.JaxRuntimeError(f"DEADLINE_EXCEEDED: {key}")
            return self.values[key]

    def install(self, monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
        """Puts itself in the place of JAX's runtime."""
        for module in modules:
            monkeypatch.setattr(module, "coordination_client", lambda: self)
            monkeypatch.setattr(module, "runtime_process", self.index)
            monkeypatch.setattr(module, "num_processes", lambda: self.processes)

    def on_all(self, speak: Callable[[int], Any]) -> list[Any]:
        """Returns what a function gives on each process; an error in the place of its result."""

        def run(index: int) -> Any:
            self.as_process(index)
            try:
                return speak(index)
            except Exception as error:
                return error

        with ThreadPoolExecutor(self.processes) as pool:
            return list(pool.map(run, range(self.processes)))
