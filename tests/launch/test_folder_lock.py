"""Is a folder held by one at a time, and by nobody who is dead?"""

import errno
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from xtrainer.errors import FolderInUseError
from xtrainer.launch import folder_lock
from xtrainer.launch.folder_lock import LOCK_FILE, FolderLock, holder_of

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pathlib import Path
from xtrainer.launch.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""
HOLD_AND_FORK = """
import os, sys, time
from pathlib import Path
from xtrainer.launch.folder_lock import FolderLock, holder_of
lock = FolderLock(Path(sys.argv[1]))
if os.fork() == 0:
    print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_one_is_refused_and_told_who_holds_it(tmp_path: Path, holder) -> None:
    for _ in range(2):
        with pytest.raises(FolderInUseError, match=rf"in use by process {holder.pid} on .* since "):
            FolderLock(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_has_died_holds_nothing(tmp_path: Path, holder, number: signal.Signals) -> None:
    os.kill(holder.pid, number)
    holder.wait()
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_a_process_that_is_stopped_holds_it_still(tmp_path: Path, holder) -> None:
    os.kill(holder.pid, signal.SIGSTOP)
    with pytest.raises(FolderInUseError):
        FolderLock(tmp_path)


def test_a_lock_of_the_same_process_counts_and_can_be_released(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "new" / "folder")
    with pytest.raises(FolderInUseError, match=f"process {os.getpid()} .*, which is this one"):
        FolderLock(tmp_path / "new" / "folder")
    lock.release()
    lock.release()
    FolderLock(tmp_path / "new" / "folder").release()


NO_HOLDERS = [b"", b"{", b"[]", b"\xff", b"x" * 10_000, b"[" * 4096, b"9" * 4096]


@pytest.mark.parametrize("content", NO_HOLDERS)
def test_whatever_stands_in_the_file_of_another_it_is_told_of(
    tmp_path: Path, holder: Any, content: bytes
) -> None:
    (tmp_path / LOCK_FILE).write_bytes(content)
    with pytest.raises(FolderInUseError, match="in use by another process"):
        FolderLock(tmp_path)


@pytest.mark.parametrize("content", NO_HOLDERS)
def test_whatever_stands_in_the_file_is_no_hindrance(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOCK_FILE).write_bytes(content)
    with FolderLock(tmp_path):
        pass


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("kept")
    (tmp_path / LOCK_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        FolderLock(tmp_path)
    assert (tmp_path / "elsewhere").read_text() == "kept"


def test_a_lock_that_is_released_leaves_no_file(tmp_path: Path) -> None:
    with FolderLock(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_its_holder_has_removed_is_not_taken_for_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = FolderLock(tmp_path)
    flock = fcntl.flock

    def release_before(file: int, how: int) -> None:
        first.release()  # after the other has opened the file, and before it locks it
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", release_before)
    with FolderLock(tmp_path) as second:
        assert second.path.exists()
        monkeypatch.undo()
        with pytest.raises(FolderInUseError):
            FolderLock(tmp_path)


def test_a_process_that_was_forked_does_not_hold_what_its_parent_has_released(
    tmp_path: Path,
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD_AND_FORK, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        with pytest.raises(FolderInUseError):
            FolderLock(tmp_path)
        process.kill()
        process.wait()
        FolderLock(tmp_path).release()
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)


def test_without_locks_there_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_lock.fcntl, "flock", no_locks)
    with caplog.at_level(logging.WARNING), FolderLock(tmp_path), FolderLock(tmp_path):
        pass
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path} cannot be locked ([Errno 37] No locks available): two runs there would go "
        "unseen."
    ]


def test_folders_that_it_has_made_are_removed_where_nothing_is_in_them(tmp_path: Path) -> None:
    FolderLock(tmp_path / "new" / "folder").release()
    assert list(tmp_path.iterdir()) == []
    lock = FolderLock(tmp_path / "new" / "folder")
    (tmp_path / "new" / "folder" / "kept").touch()
    lock.release()
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["kept"]


def test_who_only_looks_is_told_who_writes_and_changes_nothing(tmp_path: Path, holder) -> None:
    assert (holder_of(tmp_path) or "").startswith(f"process {holder.pid} on ")
    holder.kill()
    holder.wait()
    assert holder_of(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]
    assert holder_of(tmp_path / "gone") is None


def test_a_run_that_starts_while_someone_looks_is_not_refused(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).touch()
    with open(tmp_path / LOCK_FILE) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        threading.Timer(0.02, fcntl.flock, (file, fcntl.LOCK_UN)).start()
        FolderLock(tmp_path).release()
