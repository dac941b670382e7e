"""Which files and folders would a loss of power take? Read from what ``strace`` has seen."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

CALLS = (
    "open,openat,creat,write,pwrite64,writev,pwritev,ftruncate,fsync,fdatasync,"
    "mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,link,linkat"
)
_LINE = re.compile(r"(\d+) +(.*)")
_CALL = re.compile(r"(\w+)\((.*)\) += (-?\d+)(?:<(.*)>)?")
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>(.*)")
_TEXT = re.compile(r'(?:(?:AT_FDCWD|\d+)<((?:[^>"\\]|\\.)*)>, )?"((?:[^"\\]|\\.)*)"')
_FD = re.compile(r"\d+<((?:[^>\\]|\\.)*)>")


class Disk:
    """What was written, and how much of it is on the disk.

    Attributes:
        dirty: Files and folders whose last change was not synced.
        known: All that were made.
    """

    def __init__(self) -> None:
        self.dirty: set[str] = set()
        self.known: set[str] = set()

    def see(self, call: str, arguments: str, opened: str | None) -> None:
        """Takes account of one call that has succeeded."""
        paths = [_joined(folder, name) for folder, name in _TEXT.findall(arguments)]
        fd = _FD.match(arguments)
        if call in ("fsync", "fdatasync") and fd:
            self.dirty.discard(fd[1])
        elif call in ("open", "openat", "creat"):
            if opened and ("O_CREAT" in arguments or call == "creat") and opened not in self.known:
                self._made(opened)
        elif call.startswith("mkdir") and paths:
            self._made(paths[-1])
        elif call.startswith("rename") and len(paths) == 2:
            self._renamed(*paths)
        elif call.startswith("unlink") and paths:
            self.known.discard(paths[-1])
            self.dirty.discard(paths[-1])
            self.dirty.add(str(Path(paths[-1]).parent))
        elif call.startswith("link") and len(paths) == 2:
            self._made(paths[1])
        elif fd and call in ("write", "pwrite64", "writev", "pwritev", "ftruncate"):
            self.dirty.add(fd[1])

    def _made(self, path: str) -> None:
        self.known.add(path)
        self.dirty |= {path, str(Path(path).parent)}

    def _renamed(self, old: str, new: str) -> None:
        for paths in (self.known, self.dirty):
            inside = {path for path in paths if path == old or path.startswith(old + "/")}
            paths -= inside
            paths |= {new + path[len(old) :] for path in inside}
        self.known.add(new)
        self.dirty |= {str(Path(old).parent), str(Path(new).parent)}

    def unsynced(self, folder: str) -> list[str]:
        """Returns what in a folder, itself included, would be lost."""
        inside = {path for path in self.dirty & self.known if path.startswith(folder + "/")}
        return sorted(inside | (self.dirty & {folder}))


def trace(command: list[str], log: Path, environ: dict[str, str]) -> None:
    """Runs a command under ``strace``.

    Raises:
        AssertionError: If it fails.
    """
    watched = ["strace", "-f", "-y", "-s", "0", "-o", str(log), "-e", f"trace={CALLS}", *command]
    done = subprocess.run(watched, env=environ, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(done.stderr[-3000:])


def calls_of(log: Path) -> Iterator[tuple[str, str, str | None]]:
    """Yields the calls that have succeeded in the order of their ends."""
    begun: dict[str, str] = {}
    for line in log.read_text("utf-8", "replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        thread, text = match.groups()
        if text.endswith("<unfinished ...>"):
            begun[thread] = text.removesuffix("<unfinished ...>").rstrip()
            continue
        resumed = _RESUMED.fullmatch(text)
        text = begun.pop(thread, "") + resumed[1] if resumed else text
        call = _CALL.match(text)
        if call and int(call[3]) >= 0:
            yield call[1], call[2], call[4]


def renamed(call: str, arguments: str) -> list[str]:
    """Returns the old and the new path of a rename; nothing for another call."""
    if not call.startswith("rename"):
        return []
    return [_joined(folder, name) for folder, name in _TEXT.findall(arguments)]


def _joined(folder: str, name: str) -> str:
    return name if name.startswith("/") or not folder else f"{folder}/{name}"
