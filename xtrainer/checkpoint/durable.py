"""What makes a file survive a loss of power? It is synced, and so is the folder naming it."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from xtrainer.errors import CheckpointError
from xtrainer.json_text import check_size
from xtrainer.types import JSON


def write_json(path: Path, data: Mapping[str, JSON]) -> None:
    """Writes a file of JSON, whole or not at all; it is on the disk when this returns.

    Raises:
        CheckpointError: If it is more than is read back.
    """
    text = json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    try:
        check_size(text.encode("utf-8", errors="replace"))
    except ValueError as error:
        raise CheckpointError(
            f"{path}: found {error} to write, expected no more, since nothing larger is read "
            "back. Keep less in the states of loaders and callbacks; arrays belong into files."
        ) from error
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)  # of a killed save; a link would be written through
    with open(temporary, "x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_tree(folder: Path) -> None:
    """Syncs every file of a folder and every folder in it, itself last."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync_file(Path(root, name))
        sync_folder(Path(root))


def sync_file(path: Path) -> None:
    """Brings the content of a file to the disk."""
    _sync(path, os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Brings the names in a folder to the disk."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def rename(old: Path, new: Path) -> None:
    """Renames within one folder; the new name is on the disk when this returns."""
    os.rename(old, new)
    sync_folder(new.parent)


def free_space(folder: Path) -> str:
    """Returns a sentence on the free space of the disk that a folder is on; empty if unknown."""
    try:
        return f"Free there: {shutil.disk_usage(folder).free:,} bytes. "
    except OSError:
        return ""


def _sync(path: Path, flags: int) -> None:
    file = os.open(path, flags | os.O_NOFOLLOW)
    try:
        os.fsync(file)
    finally:
        os.close(file)
