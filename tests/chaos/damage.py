"""What can happen to the files of a checkpoint, one file at a time, and how is it undone?"""

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

from xtrainer.checkpoint.commit import COMMIT_FILE

KINDS = ("deleted", "emptied", "halved", "one byte short", "one bit flipped")


def files_of(step_folder: Path) -> list[Path]:
    """Returns every file of a step."""
    return sorted(path for path in step_folder.rglob("*") if path.is_file())


def takes_away_the_step(path: Path, kind: str) -> bool:
    """Says whether a damage leaves something that looks like no checkpoint at all."""
    return path.name == COMMIT_FILE and kind == "deleted"


@contextlib.contextmanager
def damaged(path: Path, kind: str, seed: int = 0) -> Iterator[bool]:
    """Damages a file, and puts it back afterwards, wherever its step has gone meanwhile.

    Gives whether anything was lost: an empty file cannot become shorter, and the last byte of the
    record is a newline, without which it says the same.
    """
    content = path.read_bytes()
    new = _changed(content, kind, seed)
    if new is None:
        path.unlink()
    else:
        path.write_bytes(new)
    said = (content, new) if path.name != COMMIT_FILE else (content.strip(), (new or b"").strip())
    try:
        yield said[0] != said[1]
    finally:
        path.write_bytes(content)


def _changed(content: bytes, kind: str, seed: int) -> bytes | None:
    if kind == "deleted":
        return None
    if kind == "emptied":
        return b""
    if kind == "halved":
        return content[: len(content) // 2]
    if kind == "one byte short":
        return content[:-1]
    return flipped(content, random.Random(seed).randrange(max(8 * len(content), 1)))


def flipped(content: bytes, bit: int) -> bytes:
    """Returns the content with one bit turned over; an empty one as it is."""
    new = bytearray(content)
    if new:
        new[bit // 8] ^= 1 << bit % 8
    return bytes(new)
