"""What lies in a folder of compiled programs: which entries are whole, how many stay."""

import os
import zlib
from pathlib import Path

from xtrainer.launch.cache_folder import CacheFolder
from xtrainer.launch.compile_reasons import KnownProgram

PROGRAM = KnownProgram("12ab", {"jaxlib": "0.10.2"}, 1.5)
ZSTD = b"\x28\xb5\x2f\xfd"


def put(folder: Path, name: str, content: bytes, time_s: float = 1e9) -> Path:
    path = folder / f"{name}-cache"
    path.write_bytes(content)
    os.utime(path, (time_s, time_s))
    return path


def test_what_is_remembered_is_known_to_the_next(tmp_path):
    CacheFolder(tmp_path).remember("train_step", PROGRAM, write=True)
    assert CacheFolder(tmp_path).known("train_step") == [PROGRAM]
    assert CacheFolder(tmp_path).known("eval_step") == []


def test_what_is_not_written_is_known_here_alone(tmp_path):
    folder = CacheFolder(tmp_path)
    folder.remember("train_step", PROGRAM, write=False)
    assert folder.known("train_step") == [PROGRAM]
    assert list(tmp_path.iterdir()) == []


def test_two_writers_keep_what_the_other_wrote(tmp_path):
    one, other = CacheFolder(tmp_path), CacheFolder(tmp_path)
    one.remember("train_step", PROGRAM, write=True)
    other.remember("eval_step", PROGRAM, write=True)
    assert CacheFolder(tmp_path).known("train_step") == [PROGRAM]
    assert CacheFolder(tmp_path).known("eval_step") == [PROGRAM]


def test_few_programs_of_a_name_are_remembered(tmp_path):
    folder = CacheFolder(tmp_path)
    for number in range(40):
        folder.remember("train_step", KnownProgram(str(number), {}, None), write=True)
    known = CacheFolder(tmp_path).known("train_step")
    assert [k.program for k in known] == [str(number) for number in range(24, 40)]


def test_an_entry_that_zstandard_has_compressed_is_compared_with_what_it_was(tmp_path):
    entry = put(tmp_path, "jit_f-1", ZSTD + b"abc")
    assert CacheFolder(tmp_path).tidy(None) == 0  # nothing is known of it yet
    put(tmp_path, "jit_f-1", ZSTD + b"abd", 1e9 + 1)
    assert CacheFolder(tmp_path).tidy(None) == 1
    assert not entry.exists()


def test_an_entry_that_was_only_touched_stays(tmp_path):
    entry = put(tmp_path, "jit_f-1", ZSTD + b"abc")
    CacheFolder(tmp_path).tidy(None)
    os.utime(entry)
    assert CacheFolder(tmp_path).tidy(None) == 0
    assert entry.exists()


def test_an_entry_that_may_be_being_written_stays(tmp_path):
    entry = put(tmp_path, "jit_f-1", zlib.compress(b"abc")[:-2])
    os.utime(entry)
    assert CacheFolder(tmp_path).tidy(None) == 0
    os.utime(entry, (1e9, 1e9))
    assert CacheFolder(tmp_path).tidy(None) == 1


def test_what_was_used_last_stays(tmp_path):
    whole = zlib.compress(bytes(os.urandom(1000)))
    for number in range(4):
        put(tmp_path, f"jit_f-{number}", whole, 1e9 + number)
    os.utime(tmp_path / "jit_f-0-cache", (1e9 + 9, 1e9))  # read since
    CacheFolder(tmp_path).tidy(2 * len(whole) + 5)
    assert sorted(p.name for p in tmp_path.glob("*-cache")) == ["jit_f-0-cache", "jit_f-3-cache"]


def test_nothing_but_entries_is_removed(tmp_path):
    (tmp_path / "other").write_bytes(b"x")
    (tmp_path / "folder-cache").mkdir()
    (tmp_path / "link-cache").symlink_to(tmp_path / "other")
    assert CacheFolder(tmp_path).tidy(0) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"other", "folder-cache", "link-cache"}
