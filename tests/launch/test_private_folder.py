"""Whose folder, and who else can write to it? Owners and modes, as root sees them too."""

import os
from pathlib import Path

import pytest

from xtrainer.errors import ConfigError
from xtrainer.launch.private_folder import default_folder, folder_fault, open_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners and modes here")


def make(path: Path, mode: int = 0o755) -> Path:
    path.mkdir()
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path, mode):
    folder = make(tmp_path / "a", mode)
    with pytest.raises(ConfigError, match=rf"\(mode {mode:04o}\), expected .* chmod go-w {folder}"):
        open_folder(folder)


def test_a_folder_below_one_that_others_may_write_to_is_refused(tmp_path):
    shared = make(tmp_path / "shared", 0o777)
    with pytest.raises(ConfigError, match=f"a by way of {shared}, which others may write to"):
        open_folder(shared / "a")
    assert not (shared / "a").exists()


def test_a_folder_of_ones_own_in_a_sticky_one_is_safe(tmp_path):
    shared = make(tmp_path / "shared", 0o1777)
    assert open_folder(shared / "a") == shared / "a"


def test_what_is_created_is_for_this_user_alone(tmp_path):
    open_folder(tmp_path / "a" / "b")
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "a", tmp_path / "a/b")] == [
        0o700
    ] * 2


def test_a_folder_that_others_may_read_is_safe(tmp_path):
    assert folder_fault(make(tmp_path / "a", 0o755)) is None


def test_a_link_of_ones_own_is_followed(tmp_path):
    make(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    assert open_folder(tmp_path / "link" / "a") == tmp_path / "real" / "a"


def test_a_link_into_an_unsafe_place_is_refused(tmp_path):
    make(make(tmp_path / "shared", 0o777) / "real")
    (tmp_path / "link").symlink_to(tmp_path / "shared" / "real")
    with pytest.raises(ConfigError, match="link by way of .*shared, which others"):
        open_folder(tmp_path / "link")


def test_links_in_a_circle_end(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError):
        open_folder(tmp_path / "a")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("what", ["folder", "parent", "link"])
def test_what_belongs_to_another_user_is_refused(tmp_path, what):
    make(tmp_path / "parent")
    folder = make(tmp_path / "parent" / "folder")
    link = tmp_path / "link"
    link.symlink_to(folder)
    given = {"folder": folder, "parent": folder.parent, "link": link}[what]
    os.chown(given, 12345, 12345, follow_symlinks=False)
    with pytest.raises(ConfigError, match=f"{given}, which belongs to user 12345"):
        open_folder(link)


def test_the_folder_of_a_user(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_folder() == Path("/caches/xtrainer/compilation")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_folder() == Path("/home/me/.cache/xtrainer/compilation")
