"""May what lies in a folder of compiled programs be trusted to be what was put there, and whole?

JAX neither replaces an entry that it cannot read (a process that was killed while writing leaves
such a one) nor, where it compresses with zstandard, sees that one has changed.
"""

import contextlib
import json
import logging
import os
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xtrainer.launch.compile_reasons import KnownProgram

MAX_BYTES = 4 * 2**30
_INDEX = "xtrainer-index.json"
_VERSION = 1
_ENTRY, _USED = "-cache", "-atime"  # the ends of JAX's names
_ZSTD = b"\x28\xb5\x2f\xfd"
_BEING_WRITTEN_S = 60.0  # a younger entry may be in the hands of another process
_PROGRAMS_PER_NAME = 16

_LOG = logging.getLogger(__name__)


class CacheFolder:
    """A folder of compiled programs, and the index beside them: what was compiled, what is whole.

    The index is replaced as a whole, so that several processes can write it; the last one wins, and
    what that forgets is found out anew. One that is damaged or of another kind is no index.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._opened_ns = time.time_ns()
        self._damaged: set[str] = set()
        self._programs, self._entries = _read_index(path / _INDEX)

    def known(self, name: str) -> list[KnownProgram]:
        """Returns the programs of a name that were compiled before, the newest last."""
        with self._lock:
            return list(self._programs.get(name, []))

    def remember(self, name: str, program: KnownProgram, write: bool) -> None:
        """Adds a program, and what entries there are now.

        Args:
            name: The function's.
            program: What was compiled.
            write: Whether the index is written; else only this process knows.
        """
        with self._lock:
            _add(self._programs, name, program)
            if write:
                for path, found in self._listed():
                    is_new = found.st_mtime_ns >= self._opened_ns
                    if is_new or path.name not in self._entries:
                        with contextlib.suppress(OSError):  # another process has removed it
                            self._entries[path.name] = _seal(path, found)
                self._write()

    def tidy(self, max_bytes: int | None) -> int:
        """Removes damaged entries, and the least recently used ones above a size.

        An entry is read only where its size or time is not what it was; otherwise this looks at
        names alone.

        Args:
            max_bytes: Size of all entries that may stay; None: any.

        Returns:
            How many entries were damaged.
        """
        with self._lock:
            before, whole = dict(self._entries), []
            for path, found in self._listed():
                state = self._state(path, found)
                if state == "damaged":
                    self._remove(path)
                    self._damaged.add(path.name)
                elif state == "whole":
                    whole.append((max(found.st_atime, found.st_mtime), found.st_size, path))
            size = sum(size for _, size, _ in whole)
            for _, freed, path in sorted(whole):
                if max_bytes is None or size <= max_bytes:
                    break
                self._remove(path)
                size -= freed
            if self._entries != before:
                self._write()
            return len(self._damaged)

    def was_damaged(self, module: str) -> bool:
        """Says whether an entry of a module that JAX could not use was damaged, and removes it."""
        prefix = f"{module}-"
        with self._lock:
            for path, found in self._listed():
                is_older = found.st_mtime_ns < self._opened_ns  # the others JAX has written since
                if is_older and path.name.startswith(prefix) and not self._is_whole(path):
                    self._remove(path)
                    self._damaged.add(path.name)
            return any(name.startswith(prefix) for name in self._damaged)

    def _listed(self) -> list[tuple[Path, os.stat_result]]:
        found = []
        try:
            for entry in os.scandir(self.path):
                if entry.name.endswith(_ENTRY) and entry.is_file(follow_symlinks=False):
                    found.append((Path(entry.path), entry.stat(follow_symlinks=False)))
        except OSError as error:
            _LOG.debug("Could not list %s: %s", self.path, error)
        return found

    def _state(self, path: Path, found: os.stat_result) -> str:
        seal = self._entries.get(path.name)
        try:
            if seal is not None and seal[:2] == (found.st_size, found.st_mtime_ns):
                return "whole"
            if self._is_whole(path):
                self._entries[path.name] = _seal(path, found)
                return "whole"
        except OSError:  # another process has removed it
            return "unknown"
        if seal is None and time.time() - found.st_mtime < _BEING_WRITTEN_S:
            return "unknown"
        return "damaged"

    def _is_whole(self, path: Path) -> bool:
        try:
            with path.open("rb") as file:
                has_own_checksum = file.read(len(_ZSTD)) != _ZSTD
            if has_own_checksum:
                return _decompresses(path)
            seal = self._entries.get(path.name)
            return seal is None or _checksum(path) == seal[2]
        except FileNotFoundError:  # another process has removed it
            return True

    def _remove(self, path: Path) -> None:
        self._entries.pop(path.name, None)
        for old in (path, path.with_name(path.name.removesuffix(_ENTRY) + _USED)):
            try:
                old.unlink(missing_ok=True)
            except OSError as error:
                _LOG.debug("Could not remove %s: %s", old, error)

    def _write(self) -> None:
        programs, entries = _read_index(self.path / _INDEX)  # of other processes
        for name, own in self._programs.items():
            for program in own:
                _add(programs, name, program)
        there = {path.name for path, _ in self._listed()}
        entries = {n: seal for n, seal in {**entries, **self._entries}.items() if n in there}
        text = json.dumps(
            {
                "version": _VERSION,
                "programs": {n: [asdict(program) for program in p] for n, p in programs.items()},
                "entries": entries,
            }
        )
        try:
            number, new = tempfile.mkstemp(prefix=_INDEX, dir=self.path)
            try:
                with os.fdopen(number, "w", encoding="utf-8") as file:
                    file.write(text)
                os.replace(new, self.path / _INDEX)
            except OSError:
                os.unlink(new)
                raise
        except OSError as error:
            _LOG.debug("Could not write the index of %s: %s", self.path, error)


def _add(programs: dict[str, list[KnownProgram]], name: str, program: KnownProgram) -> None:
    others = [
        known
        for known in programs.get(name, [])
        if (known.program, known.facts) != (program.program, program.facts)
    ]
    programs[name] = [*others, program][-_PROGRAMS_PER_NAME:]


_Entries = dict[str, tuple[int, int, int]]  # size, time in ns, checksum


def _read_index(path: Path) -> tuple[dict[str, list[KnownProgram]], _Entries]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["version"] != _VERSION:
            return {}, {}
        programs = {
            str(name): [_known(record) for record in records]
            for name, records in found["programs"].items()
        }
        entries = {str(name): _numbers(seal) for name, seal in found["entries"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}, {}
    return programs, entries


def _known(record: Any) -> KnownProgram:
    facts = {str(name): str(value) for name, value in record["facts"].items()}
    seconds = record["seconds"]
    return KnownProgram(str(record["program"]), facts, None if seconds is None else float(seconds))


def _numbers(seal: Any) -> tuple[int, int, int]:
    size, time_ns, checksum = seal
    return int(size), int(time_ns), int(checksum)


def _seal(path: Path, found: os.stat_result) -> tuple[int, int, int]:
    return found.st_size, found.st_mtime_ns, _checksum(path)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(2**20):
            yield piece


def _checksum(path: Path) -> int:
    checksum = 0
    for piece in _pieces(path):
        checksum = zlib.crc32(piece, checksum)
    return checksum


def _decompresses(path: Path) -> bool:
    """Says whether zlib, which keeps a checksum, finds an entry whole."""
    stream = zlib.decompressobj()
    try:
        for piece in _pieces(path):
            stream.decompress(piece)
    except zlib.error:
        return False
    return stream.eof and not stream.unused_data
