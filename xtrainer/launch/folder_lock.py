"""Who writes into a folder? One run at a time: a second one is refused and told who is there.

The lock is one of the kernel (``flock``), so a process that dies in whatever way holds none; its
file stays then, and hinders nobody. Over NFS it needs version 4, or a server's lock daemon; where a
file system has no locks, a warning says that two runs could not be told apart.
"""

import contextlib
import datetime
import errno
import fcntl
import functools
import json
import logging
import os
import socket
import time
import weakref
from pathlib import Path

from xtrainer.errors import FolderInUseError
from xtrainer.json_text import parse_json

LOCK_FILE = "RUN.lock"
_LOG = logging.getLogger(__name__)
_LOOK_S = 0.1
"""Who only looks whether a folder is locked holds it for a moment, and is waited for."""
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class FolderLock:
    """A folder that nobody else may lock until it is released.

    Args:
        folder: Made if it is not there; removed again where it is empty in the end.

    Raises:
        FolderInUseError: If another process, or another lock of this one, holds the folder.
        OSError: If the file of the lock cannot be made.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with FolderLock(folder):
        ...     [path.name for path in folder.iterdir()]
        ['RUN.lock']
        >>> list(folder.iterdir())
        []
    """

    def __init__(self, folder: Path) -> None:
        above = [folder, *folder.parents]
        self._made = [path for path in above if not path.exists()]
        self.path = folder / LOCK_FILE
        self._file = -1
        while self._file < 0:
            self._file = self._try()

    def _try(self) -> int:
        """Returns the locked file; -1 where the one before has removed it meanwhile."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except FileNotFoundError:  # who has made the folder has removed it meanwhile
            return -1
        try:
            _lock(file)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                _warn_of_no_locks(self.path.parent, str(error))
                return file
            holder = _holder(file)
            os.close(file)
            if not isinstance(error, BlockingIOError):
                raise
            raise FolderInUseError(
                f"{self.path.parent}: found that it is in use by {holder}, expected a folder that "
                "no other run writes to. Wait for its end, end it, or choose another folder."
            ) from None
        if not _is_same(file, self.path):
            os.close(file)
            return -1
        _write_holder(file)
        _held_here().add(self)
        return file

    def release(self) -> None:
        """Lets others lock the folder; a second call does nothing."""
        file, self._file = self._file, -1
        if file >= 0:
            with contextlib.suppress(OSError):
                self.path.unlink()  # while it is held: whoever has opened it meanwhile looks again
            os.close(file)
            with contextlib.suppress(OSError):  # something is in it
                for folder in self._made:
                    folder.rmdir()

    def leave(self) -> None:
        """Closes the file in a process that was forked: it would go on holding the folder."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def holder_of(folder: Path) -> str | None:
    """Returns who writes to a folder now, None where nobody does; changes nothing.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with FolderLock(folder):
        ...     holder_of(folder)[:8]
        'process '
        >>> holder_of(folder) is None
        True
    """
    try:
        file = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(file)
    except OSError:  # no locks here
        return None
    finally:
        os.close(file)
    return None


def _lock(file: int) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(_LOOK_S)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@functools.cache
def _held_here() -> "weakref.WeakSet[FolderLock]":
    """Returns the locks of this process, which its forks are made to leave."""
    locks: weakref.WeakSet[FolderLock] = weakref.WeakSet()
    os.register_at_fork(after_in_child=lambda: [lock.leave() for lock in list(locks)])
    return locks


@functools.cache
def _warn_of_no_locks(folder: Path, reason: str) -> None:
    _LOG.warning("%s cannot be locked (%s): two runs there would go unseen.", folder, reason)


def _is_same(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.lstat(path))
    except FileNotFoundError:
        return False


def _write_holder(file: int) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now})
    with contextlib.suppress(OSError):  # a full disk is no reason to refuse a run
        os.ftruncate(file, 0)
        os.pwrite(file, text.encode(), 0)


def _holder(file: int) -> str:
    try:
        said = parse_json(os.pread(file, 4096, 0))
        here = said["pid"] == os.getpid() and said["host"] == socket.gethostname()
        who = f"process {said['pid']} on {said['host']!r} since {said['since']}"
        return f"{who}, which is this one" if here else who
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
