"""How is a line added to a file so that it is there whole or not at all, also on a full disk?"""

import contextlib
import os
from pathlib import Path


class LineFile:
    """A text file in UTF-8 that grows by whole writes.

    Nothing is buffered: what was written survives a kill, and nothing of a write that fails is left
    to come later. A :func:`csv.writer` may write to it.

    Args:
        path: Of the file, which is made if it is not there.

    Attributes:
        size: Bytes of the file.

    Raises:
        OSError: If it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab", buffering=0)
        self.size = self._file.seek(0, os.SEEK_END)

    def write(self, text: str) -> int:
        """Adds a text.

        Raises:
            OSError: If not all of it could be written; then none of it is there.
        """
        data = memoryview(text.encode("utf-8"))
        left = data
        try:
            while left:
                left = left[self._file.write(left) :]
        except BaseException:
            self.shorten(self.size)
            raise
        self.size += len(data)
        return len(text)

    def shorten(self, size: int) -> None:
        """Takes the end off again, as far as that is possible."""
        with contextlib.suppress(OSError):
            self._file.truncate(size)
            self.size = size

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def tail_of(path: Path) -> bytes:
    """Returns what follows the last newline of a file, reading back from its end."""
    with open(path, "rb") as file:
        position = file.seek(0, os.SEEK_END)
        tail = b""
        while position > 0 and b"\n" not in tail:
            size = min(65536, position)
            position = file.seek(position - size)
            tail = file.read(size) + tail
    return tail.rpartition(b"\n")[2]


def cut_after_last_newline(path: Path) -> None:
    """Takes off a last line that a killed process has left unfinished."""
    tail = tail_of(path)
    if tail:
        os.truncate(path, path.stat().st_size - len(tail))
