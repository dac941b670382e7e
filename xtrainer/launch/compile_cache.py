"""What was compiled before, and may it be trusted? JAX's persistent compilation cache, managed.

Synopsis:
    cache = enable_compilation_cache()        # this user's folder; before anything is compiled
    step = cache.compile(jax.jit(train_step).lower(state, batch), "train_step")
    print(cache.summary())                    # a hit, or a miss and why
"""

import functools
import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from xtrainer.launch.cache_folder import MAX_BYTES, CacheFolder
from xtrainer.launch.compile_reasons import (
    GONE,
    KnownProgram,
    compile_facts,
    miss_reason,
    module_name,
    program_hash,
)
from xtrainer.launch.exchange import runtime_process
from xtrainer.launch.private_folder import default_folder, folder_fault, open_folder

_REQUEST = "/jax/compilation_cache/compile_requests_use_cache"
_HIT = "/jax/compilation_cache/cache_hits"
_WRITTEN = "/jax/compilation_cache/cache_misses"  # JAX tells of a miss where it keeps the result
_FOLDER = "jax_compilation_cache_dir"
# Everything is kept, however small: a start is to compile nothing. The second value is JAX's own.
_THRESHOLDS = {
    "jax_persistent_cache_min_compile_time_secs": (0.0, 1.0),
    "jax_persistent_cache_min_entry_size_bytes": (-1, 0),
}
_OFF = "no compilation cache"

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompileRecord:
    """How a program came to be compiled.

    Attributes:
        name: The function's.
        seconds: How long it took, with the reading of the cache.
        hit: Whether the cache had it; None: there is no cache.
        reason: Why, in words.
        seconds_saved: Of a hit: how much longer it took when it was compiled, if that is known.
    """

    name: str
    seconds: float
    hit: bool | None
    reason: str
    seconds_saved: float | None = None

    @property
    def description(self) -> str:
        """Returns a part of a sentence for a log.

        Example:
            >>> CompileRecord("train_step", 1.83, False, "never compiled before").description
            'train_step in 1.8 s (cache miss: never compiled before)'
        """
        outcome = self.reason
        if self.hit is False:
            outcome = f"cache miss: {self.reason}"
        elif self.hit:
            saved = self.seconds_saved
            outcome = "cache hit" + ("" if saved is None else f", {saved:.1f} s saved")
        return f"{self.name} in {self.seconds:.1f} s ({outcome})"


@dataclass(frozen=True)
class CacheCounts:
    """How often the cache had what was asked for, over all programs of this process.

    Attributes:
        hits: Programs that were read.
        misses: Programs that had to be compiled.
    """

    hits: int = 0
    misses: int = 0


@dataclass
class _Tally:
    """What JAX has told one thread: it compiles, and tells, in the thread that asks for it."""

    events: dict[str, int] = field(default_factory=lambda: {_REQUEST: 0, _HIT: 0, _WRITTEN: 0})

    def since(self, before: Mapping[str, int]) -> dict[str, int]:
        return {event: count - before[event] for event, count in self.events.items()}


class CompilationCache:
    """Compiles programs, and knows of each whether JAX's persistent cache had it, and if not, why.

    There is one in a process (:func:`compilation_cache`), as there is one cache of JAX. Without a
    folder it compiles as well. It may be used by several threads at once.

    With several processes all read, and JAX lets process 0 alone write; so does this class with the
    index that the reasons come from. Processes of a machine, and machines with a shared home, thus
    share a folder; a machine with a folder of its own and without process 0 never fills it. On the
    CPU the others never find what process 0 wrote: there JAX's keys differ between processes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._local = threading.local()
        self._folder: str | None = None  # as JAX has it
        self._is_users = False  # given to JAX itself
        self._beside: CacheFolder | None = None
        self._listens = False
        self._records: list[CompileRecord] = []
        self._requests = self._hits = 0
        self._told: set[str] = set()

    @property
    def folder(self) -> str | None:
        """Where compiled programs are kept; None: nowhere."""
        return self._folder

    def compile(
        self,
        lowered: jax.stages.Lowered,
        name: str,
        options: Mapping[str, str | bool] | None = None,
    ) -> jax.stages.Compiled:
        """Returns the compiled program, and records how it came about.

        Args:
            lowered: The program.
            name: What it is called in reports, and by which it is found again at the next start.
            options: Of the compiler.
        """
        chosen = None if options is None else dict(options)
        if self._folder is None:
            start = time.perf_counter()
            compiled = lowered.compile(compiler_options=chosen)
            self._record(CompileRecord(name, time.perf_counter() - start, None, _OFF))
            return compiled
        tally = self._tally()
        before, start = dict(tally.events), time.perf_counter()
        compiled = lowered.compile(compiler_options=chosen)
        seconds = time.perf_counter() - start
        self._record(self._explain(lowered, name, seconds, tally.since(before)))
        return compiled

    def report(self) -> list[CompileRecord]:
        """Returns what :meth:`compile` has compiled, in order."""
        with self._lock:
            return list(self._records)

    def counts(self) -> CacheCounts:
        """Returns hits and misses of all programs since the cache was enabled, whoever compiled."""
        with self._lock:
            return CacheCounts(self._hits, self._requests - self._hits)

    def summary(self, newest: int | None = None) -> str:
        """Returns :meth:`report` in one line, or its newest entries."""
        records = self.report()[-newest if newest else 0 :]
        if not records:
            return "compiled nothing"
        return "compiled " + ", ".join(record.description for record in records)

    def enable(self, folder: str | Path | None = None) -> None:
        """Keeps compiled programs from now on; see :func:`enable_compilation_cache`."""
        with self._lock:
            current = _setting(_FOLDER)
            if not _setting("jax_enable_compilation_cache"):
                self._tell("No compilation cache: JAX's own setting has switched it off.")
                self._folder = self._beside = None
            elif current and current != self._folder:
                self._respect(current)
            elif not current or (folder is not None and not self._is_users):
                self._set(folder)
            if self._folder is not None and not self._listens:
                self._listens = True
                jax.monitoring.register_event_listener(self._on_event)

    def _respect(self, current: str) -> None:
        """Uses the folder that the user has given to JAX: it is filled, and never emptied."""
        self._tell(f"Compiled programs are kept where JAX's own setting says: {current}")
        self._folder, self._is_users, self._beside = current, True, None
        if "://" not in current:  # a bucket
            if fault := folder_fault(Path(os.path.abspath(current))):
                self._tell(f"This is not safe. {fault}", logging.WARNING)
            self._look_at(Path(current), max_bytes=None)
        _set_thresholds()

    def _set(self, folder: str | Path | None) -> None:
        try:
            path = open_folder(default_folder() if folder is None else Path(folder).expanduser())
        except (OSError, RuntimeError) as error:
            self._tell(
                f"No compilation cache: the folder {folder or 'of this user'} cannot be written to "
                f"({error}). The run goes on without it.",
                logging.WARNING,
            )
            if self._folder is not None:
                _set_folder(None)
            self._folder = self._beside = None
            return
        if str(path) == self._folder:
            return
        limited = _setting("jax_compilation_cache_max_size") != -1  # JAX does it, with filelock
        self._look_at(path, max_bytes=None if limited else MAX_BYTES)
        _set_thresholds()
        _set_folder(str(path))
        self._folder, self._is_users = str(path), False
        self._tell(f"Compiled programs are kept in {path}")

    def _look_at(self, path: Path, max_bytes: int | None) -> None:
        self._beside = CacheFolder(path)
        if runtime_process() == 0 and (damaged := self._beside.tidy(max_bytes)):
            self._tell(
                f"Removed {damaged} damaged entries of the compilation cache {path}; these "
                "programs are compiled anew.",
                logging.WARNING,
            )

    def _tell(self, message: str, level: int = logging.INFO) -> None:
        if message not in self._told:
            self._told.add(message)
            _LOG.log(level, "%s", message)

    def _on_event(self, event: str, **_: Any) -> None:
        tally = self._tally()
        if event in tally.events and self._folder is not None:
            tally.events[event] += 1
            with self._lock:
                self._requests += event == _REQUEST
                self._hits += event == _HIT

    def _tally(self) -> _Tally:
        if not hasattr(self._local, "tally"):
            self._local.tally = _Tally()
        return self._local.tally

    def _record(self, record: CompileRecord) -> None:
        with self._lock:
            self._records.append(record)

    def _explain(
        self, lowered: jax.stages.Lowered, name: str, seconds: float, told: Mapping[str, int]
    ) -> CompileRecord:
        beside = self._beside
        if not told[_REQUEST]:
            return CompileRecord(
                name, seconds, None, "JAX did not ask the cache: it had the program"
            )
        hit = told[_HIT] == told[_REQUEST]
        if beside is None:
            reason = "compiled before" if hit else "nothing is remembered beside a remote cache"
            return CompileRecord(name, seconds, hit, reason)
        known, facts = beside.known(name), compile_facts()
        is_main = runtime_process() == 0
        if hit:
            same = [k for k in known if k.facts == facts]
            if len(same) != 1:  # else it is this one, and its text, which takes long, not needed
                program = program_hash(lowered)
                same = [k for k in same if k.program == program]
                if not same:  # the index was lost
                    beside.remember(name, KnownProgram(program, facts, None), write=is_main)
            took = same[-1].seconds if same else None
            saved = None if took is None else max(took - seconds, 0.0)
            return CompileRecord(name, seconds, True, "compiled before", saved)
        now = KnownProgram(program_hash(lowered), facts, seconds)
        if is_main and not told[_WRITTEN]:
            reason = "JAX keeps no program that calls back to the host"
            if any(_setting(key) != wanted for key, (wanted, _) in _THRESHOLDS.items()):
                reason += ", nor one below its thresholds, which were set"
            return CompileRecord(name, seconds, False, reason)
        reason = miss_reason(name, now, known)
        if reason == GONE and not is_main:
            reason = "process 0 alone writes to the cache, and wrote nothing that fits this process"
        elif reason == GONE and beside.was_damaged(module_name(lowered)):
            reason = "its entry was damaged"
        beside.remember(name, now, write=is_main)
        return CompileRecord(name, seconds, False, reason)


def enable_compilation_cache(folder: str | Path | None = None) -> CompilationCache:
    """Keeps compiled programs for the next start, and returns the cache; call it early.

    A compiled program is code that is run, so the folder must be this user's own. Damaged entries
    are removed; above 4 GiB so are those that were not used for longest. A second call changes
    nothing, unless it names another folder. A folder that was given to JAX itself
    (``jax_compilation_cache_dir``, ``JAX_COMPILATION_CACHE_DIR``) is used as it is, and no other.

    Args:
        folder: Where; by default ``$XDG_CACHE_HOME/xtrainer/compilation``, or the same in
            ``~/.cache``. Where it cannot be written to, a warning says so and there is no cache.

    Raises:
        ConfigError: If others own the folder, or one that leads to it, or may write to it.
    """
    cache = compilation_cache()
    cache.enable(folder)
    return cache


@functools.cache
def compilation_cache() -> CompilationCache:
    """Returns the compilation cache of this process, enabled or not."""
    return CompilationCache()


def _setting(name: str) -> Any:
    return getattr(jax.config, name)


def _set_thresholds() -> None:
    for name, (wanted, default) in _THRESHOLDS.items():
        if _setting(name) == default and name.upper() not in os.environ:
            jax.config.update(name, wanted)


def _set_folder(folder: str | None) -> None:
    before = _setting(_FOLDER)
    jax.config.update(_FOLDER, folder)
    if before:  # JAX has opened that one, and would stay with it
        from jax.experimental.compilation_cache import compilation_cache as jax_cache

        jax_cache.reset_cache()
