"""What makes a folder a checkpoint? A record, written last, of every file in it.

A step exists if its record is whole, names the step and the run of the folder it lies in, and every
file has the size that it names. Before anything is restored the files are read and their checksums
compared (CRC-32C, which finds accidents; it is no protection from an attacker).
"""

import json
import os
import re
import stat
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from xtrainer.checkpoint.durable import sync_tree, write_json
from xtrainer.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    NewerAttemptError,
    NewerFormatError,
)
from xtrainer.json_text import MAX_BYTES, parse_json
from xtrainer.types import JSON

COMMIT_FILE = "COMMIT.json"
RUN_FILE = "RUN.json"
FORMAT_VERSION = 2
"""Raised by one whenever an older xtrainer could no longer read what is written."""

_MAX_NUMBER = 2**63
_BLOCK_BYTES = 2**22
_READERS = 4
_CHECKSUM = "crc32c"
# Also what means another place, or a device, on another system than this one.
_BAD_PART = re.compile(r"^\.\.$|[\x00-\x1f\\:]|^(con|prn|aux|nul|(com|lpt)\d)(\.|$)", re.I)


@dataclass(frozen=True)
class RunId:
    """Which run writes, and which start of it.

    Attributes:
        run_id: Of the folder, from its first start on.
        attempt: Number of the start, from 1.
    """

    run_id: str
    attempt: int


@dataclass(frozen=True)
class Commit:
    """The record of one step.

    Attributes:
        step: The step.
        run_id: Of the run that wrote it.
        attempt: The start of that run.
        files: Size and CRC-32C of each file by its path in the folder.
        fingerprints: Of each leaf by its path; see ``fingerprint.py``.
        format_version: Of the checkpoint.
    """

    step: int
    run_id: str
    attempt: int
    files: dict[str, tuple[int, int]]
    fingerprints: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


def nobody(moment: str) -> None:
    """Does nothing."""


watcher: Callable[[str], None] = nobody
"""Told of every moment of a save; tests that kill one put something else here."""


def reached(moment: str) -> None:
    """Says that a save has come to a moment.

    Args:
        moment: ``begun, meta, arrays, synced, record, committed``, and of old steps ``removing``
            and ``removed``.
    """
    watcher(moment)


def begin_attempt(folder: Path) -> RunId:
    """Returns the run of a folder and the next number of a start; keeps both.

    Where the file that says so is lost, the steps in the folder still do.
    """
    known = _read_run(folder) or _run_of_steps(folder)
    run = RunId(uuid.uuid4().hex, 1) if known is None else RunId(known.run_id, known.attempt + 1)
    write_json(folder / RUN_FILE, asdict(run))
    return run


def require_newest(folder: Path, run: RunId) -> None:
    """Makes sure that no other start has taken the place of one.

    A process that was stopped, and went on when it had been replaced, must not change the folder.

    Raises:
        NewerAttemptError: If one has.
    """
    found = _read_run(folder)
    if found is None or (found.run_id == run.run_id and found.attempt <= run.attempt):
        return
    kind = "" if found.run_id == run.run_id else " of another run"
    raise NewerAttemptError(
        f"{folder}: found that attempt {found.attempt}{kind} writes here, expected none after "
        f"attempt {run.attempt}, which this process is. It was stopped or cut off, and another was "
        "started in its place; nothing of it is saved any more. End it."
    )


def seal(
    folder: Path, step: int, run: RunId, fingerprints: Callable[[], Mapping[str, str]]
) -> Commit:
    """Brings a folder to the disk and writes its record.

    Args:
        folder: Holds everything but the record.
        step: The step.
        run: Who writes.
        fingerprints: Returns those of the leaves; called when the files are on the disk.
    """
    sync_tree(folder)
    reached("synced")
    sums = {name: [size, crc] for name, (size, crc) in _checksums(folder, _files(folder)).items()}
    record = {
        "format_version": FORMAT_VERSION,
        "step": step,
        **asdict(run),
        "files": sums,
        "fingerprints": dict(fingerprints()),
    }
    write_json(folder / COMMIT_FILE, {**record, _CHECKSUM: _own_checksum(record)})
    reached("record")
    return read_commit(folder)


def read_commit(folder: Path) -> Commit:
    """Returns the record of a step.

    Raises:
        NewerFormatError: If it is of a newer format.
        CheckpointError: If it is missing or damaged.
    """
    record = read_json(folder / COMMIT_FILE)
    if record.pop(_CHECKSUM, None) != _own_checksum(record):
        raise CheckpointError(f"{folder}: {COMMIT_FILE} is damaged: its checksum does not match.")
    version = record.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise NewerFormatError(
            f"{folder}: found format_version {version}, expected at most {FORMAT_VERSION}. It was "
            "written by a newer xtrainer; install that one."
        )
    try:
        files = {name: (_whole(size), _whole(crc)) for name, (size, crc) in record["files"].items()}
        commit = Commit(**{**record, "files": files})
        for number in (commit.step, commit.attempt, commit.format_version):
            _whole(number)
        texts = (commit.run_id, *commit.fingerprints.values())
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("found another run_id or fingerprint than a text")
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{folder}: {COMMIT_FILE} is no record of a step: {error}."
        ) from error
    wrong = [name for name in files if not _is_inside(name)]
    if wrong:
        raise CheckpointError(f"{folder}: {COMMIT_FILE} names {wrong[:5]}, which lie elsewhere.")
    return commit


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a file of JSON, which must be no link; see ``json_text.py``.

    Raises:
        CheckpointNotFoundError: If there is none.
        CheckpointError: If it cannot be read.
    """
    try:
        # Whoever opens a pipe would wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError("no regular file")
            found = parse_json(file.read(MAX_BYTES + 1))
        if not isinstance(found, dict):
            raise ValueError("no object, expected all of it in one")
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(f"{path.parent}: found no {path.name}.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path.parent}: {path.name} cannot be read ({error}). Use another step."
        ) from error
    return found


def _whole(number: JSON) -> int:
    if type(number) is not int or not 0 <= number < _MAX_NUMBER:
        raise TypeError(f"found {number!r:.40}, expected a whole number")
    return number


def quick_problems(folder: Path) -> list[str]:
    """Returns what is wrong with a step as far as sizes tell; nothing for a whole one.

    Raises:
        NewerFormatError: If it cannot be told.
    """
    try:
        commit = read_commit(folder)
    except NewerFormatError:
        raise
    except CheckpointError as error:
        return [str(error)]
    problems = []
    if str(commit.step) != folder.name:
        problems.append(f"it is the record of step {commit.step}")
    run = _read_run(folder.parent)
    if run is not None and run.run_id != commit.run_id:
        problems.append(f"it was written by the run {commit.run_id}, not by {run.run_id}")
    sizes = {path.relative_to(folder).as_posix(): _size(path) for path in _all_paths(folder)}
    for name, (size, _) in commit.files.items():
        found = sizes.get(name)
        if found != size:
            what = "is missing" if name not in sizes else f"has {found} bytes"
            problems.append(f"{name} {what}, expected {size}")
    top = {name.split("/", 1)[0] for name in commit.files if "/" in name}
    added = [name for name in sizes.keys() - commit.files.keys() if name.split("/", 1)[0] in top]
    problems += [f"{name} was not there when it was saved" for name in sorted(added)]
    return problems


def problems_of(folder: Path) -> list[str]:
    """Returns what is wrong with a step; reads every byte of it."""
    problems = quick_problems(folder)
    if problems:
        return problems
    files = read_commit(folder).files
    try:
        found = _checksums(folder, files)
    except OSError as error:
        return [f"a file cannot be read ({error})"]
    return [f"{name} is damaged" for name, sums in files.items() if found[name] != sums]


def _read_run(folder: Path) -> RunId | None:
    """Returns the run of a folder; None where it is not known or cannot be read."""
    try:
        record = read_json(folder / RUN_FILE)
        return RunId(str(record["run_id"]), int(record["attempt"]))
    except (CheckpointError, KeyError, TypeError, ValueError, OverflowError):
        return None


def _run_of_steps(folder: Path) -> RunId | None:
    found = []
    for path in folder.glob(f"*/{COMMIT_FILE}"):
        try:
            commit = read_commit(path.parent)
        except CheckpointError:
            continue
        found.append((commit.attempt, commit.run_id))
    return RunId(max(found)[1], max(found)[0]) if found else None


def _own_checksum(record: Mapping[str, JSON]) -> int:
    import crc32c  # not with the package: a run without checkpoints does without it

    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return crc32c.crc32c(text.encode())


def _is_inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and not any(map(_BAD_PART.search, parts))


def _all_paths(folder: Path) -> list[Path]:
    """Returns what lies in a folder and is no folder: files, and whatever else there is."""
    found = []
    for root, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(Path(root, name))]
        found += [Path(root, name) for name in [*names, *links]]
    return found


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in _all_paths(folder))


def _size(path: Path) -> int | None:
    """Returns the size of a file; None for what is not one, a link for example."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _checksums(folder: Path, names: Any) -> dict[str, tuple[int, int]]:
    """Returns size and checksum of files; several are read at a time."""
    names = list(names)
    with ThreadPoolExecutor(_READERS, thread_name_prefix="checksum") as readers:
        return dict(zip(names, readers.map(lambda n: _checksum(folder / n), names), strict=True))


def _checksum(path: Path) -> tuple[int, int]:
    import crc32c

    block, size, value = memoryview(bytearray(_BLOCK_BYTES)), 0, 0
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb", buffering=0) as file:
        while count := file.readinto(block):
            value = crc32c.crc32c(block[:count], value)
            size += count
    return size, value
