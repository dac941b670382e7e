"""How does a checkpoint of an older format become one of today's? Step by step, in its place."""

import logging
from collections.abc import Callable
from pathlib import Path

from xtrainer.checkpoint.commit import COMMIT_FILE, FORMAT_VERSION, begin_attempt, read_json, seal
from xtrainer.checkpoint.durable import write_json
from xtrainer.checkpoint.metadata import (
    META_FILE,
    RANK_FILE,
    format_of,
    root_of,
    step_of,
)
from xtrainer.errors import CheckpointNotFoundError

_log = logging.getLogger(__name__)


def migrate(folder: str | Path) -> list[int]:
    """Brings the checkpoints of a run to today's format; those that have it are left.

    What a step lacks that today's format has (checksums from when it was written, fingerprints)
    cannot be known any more: from now on it is protected. Nothing of a step is removed.

    Args:
        folder: A run folder, its ``checkpoints`` folder, or a step folder itself.

    Returns:
        The steps that were changed.

    Raises:
        CheckpointNotFoundError: If there is no checkpoint of any format.
        CheckpointError: If one cannot be read; those before it have been changed.
    """
    folder = Path(folder).expanduser().absolute()
    if step_of(folder) is not None:
        root, paths = folder.parent, [folder]
    else:
        root = root_of(folder)
        paths = sorted(root.iterdir()) if root.is_dir() else []
    formats = {path: found for path in paths if (found := format_of(path)) is not None}
    if not formats:
        raise CheckpointNotFoundError(f"{root}: found no checkpoint of any format. Check the path.")
    old = {path: found for path, found in formats.items() if found < FORMAT_VERSION}
    for path, found in old.items():
        for version in range(found, FORMAT_VERSION):
            MIGRATIONS[version](path)
        _log.info("%s: format %d became format %d.", path, found, FORMAT_VERSION)
    return sorted(int(path.name) for path in old)


def _from_1(step_folder: Path) -> None:
    """Format 1: Orbax's own commit files, ``meta/metadata``, no record of files."""
    meta = read_json(step_folder / "meta" / "metadata")
    if (step_folder / RANK_FILE).is_file():
        meta |= read_json(step_folder / RANK_FILE)
    meta.pop("format_version", None)
    meta |= {"loggers": {}, "rows": None, "ledger": {}, "git": None, "numerics": {}}
    write_json(step_folder / META_FILE, meta)
    run = begin_attempt(step_folder.parent)
    (step_folder / COMMIT_FILE).unlink(missing_ok=True)
    seal(step_folder, int(step_folder.name), run, dict)


MIGRATIONS: dict[int, Callable[[Path], None]] = {1: _from_1}
"""What brings a step's folder from each older format to the next one."""
