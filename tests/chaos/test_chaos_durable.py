"""Is all of a step on the disk before its name says that it is there?"""

import shutil
import sys
from pathlib import Path

import chaos_zoo
import damage
import pytest
import syscalls

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@needs_strace
def test_everything_is_synced_before_the_rename_that_makes_a_step(tmp_path: Path) -> None:
    log, run = tmp_path / "calls", tmp_path / "run"
    worker = chaos_zoo.WORKER.parent / "save_once.py"
    syscalls.trace([sys.executable, str(worker), str(run)], log, chaos_zoo.environ("", 1, run))
    saving, step = str(run / "checkpoints" / "2.1.saving"), str(run / "checkpoints" / "2")
    disk, names, commits, after = syscalls.Disk(), set(), 0, None
    for call, arguments, opened in syscalls.calls_of(log):
        if syscalls.renamed(call, arguments) == [saving, step]:
            commits += 1
            assert disk.unsynced(saving) == []
            names = {Path(path).relative_to(saving) for path in disk.known if saving + "/" in path}
        disk.see(call, arguments, opened)
        if commits and after is None and call == "fsync":
            after = disk.unsynced(str(run / "checkpoints"))
    assert commits == 1
    assert after == []  # the rename itself, at the first sync that follows
    files = {path.relative_to(step) for path in damage.files_of(Path(step))}
    assert len(files) > 10
    assert files <= names  # the trace has seen each of them being made


def replay(*calls: str) -> syscalls.Disk:
    disk = syscalls.Disk()
    for line in calls:
        for call in parsed(line):
            disk.see(*call)
    return disk


def parsed(line: str) -> list[tuple[str, str, str | None]]:
    match = syscalls._CALL.match(line)
    return [(match[1], match[2], match[4])] if match and int(match[3]) >= 0 else []


MADE = 'openat(AT_FDCWD</w>, "/a/b/f", O_WRONLY|O_CREAT, 0666) = 3</a/b/f>'


@pytest.mark.parametrize(
    ("calls", "unsynced"),
    [
        ((MADE,), ["/a/b", "/a/b/f"]),
        ((MADE, "fsync(3</a/b/f>) = 0"), ["/a/b"]),
        ((MADE, "fsync(3</a/b/f>) = -1"), ["/a/b", "/a/b/f"]),
        ((MADE, "fsync(3</a/b/f>) = 0", "fsync(4</a/b>) = 0"), []),
        ((MADE, "fsync(3</a/b/f>) = 0", "fsync(4</a/b>) = 0", 'write(3</a/b/f>, ""..., 9) = 9'),
         ["/a/b/f"]),
        ((MADE, "fsync(3</a/b/f>) = 0", "fsync(4</a/b>) = 0", 'rename("/a/b/f", "/a/b/g") = 0'),
         ["/a/b"]),
        ((MADE, 'rename("/a/b/f", "/a/b/g") = 0', "fsync(4</a/b>) = 0"), ["/a/b/g"]),
        ((MADE, "fsync(4</a/b>) = 0", 'unlink("/a/b/f") = 0'), ["/a/b"]),
        (('mkdirat(5</a/b>, "d", 0777) = 0', "fsync(4</a/b>) = 0"), ["/a/b/d"]),
    ],
)  # fmt: skip
def test_what_was_not_synced_is_told(calls: tuple[str, ...], unsynced: list[str]) -> None:
    assert replay(*calls).unsynced("/a/b") == unsynced
