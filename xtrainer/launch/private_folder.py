"""Can nobody else write to a folder? What is put into one of compiled programs is run."""

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from xtrainer.errors import ConfigError

_MAX_LINKS = 40


def default_folder() -> Path:
    """Returns this user's folder: ``$XDG_CACHE_HOME/xtrainer/compilation``, else in ``~/.cache``.

    Raises:
        OSError: If this user has no home.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # others are to be ignored, says the standard
        return Path(given) / "xtrainer" / "compilation"
    try:
        return Path.home() / ".cache" / "xtrainer" / "compilation"
    except RuntimeError as error:
        raise OSError(str(error)) from error


def open_folder(folder: Path) -> Path:
    """Returns the folder without links on its way; creates it, for this user alone, if need be.

    Raises:
        ConfigError: If others could put programs there.
        OSError: If it cannot be created or written to.
    """
    folder = Path(os.path.abspath(folder))
    check_folder(folder)
    for path in reversed([folder, *folder.parents]):
        if not path.exists():
            path.mkdir(mode=0o700, exist_ok=True)
    check_folder(folder)  # another may have been quicker
    with tempfile.TemporaryFile(dir=folder):
        pass
    return Path(os.path.realpath(folder))


def check_folder(folder: Path) -> None:
    """Checks that nobody but this user and root can change what a folder holds or leads to.

    Raises:
        ConfigError: Naming the folder or link on the way that others own or may write to.
    """
    if fault := folder_fault(folder):
        raise ConfigError(fault)


def folder_fault(folder: Path) -> str | None:
    """Returns why a folder is not safe, in a sentence; None if it is, or is not there yet.

    A shared folder on the way is safe where it is sticky, as ``/tmp`` is: what a user has there
    nobody else can replace.
    """
    if not hasattr(os, "getuid"):  # Windows has no such owners and modes
        return None
    real = Path(os.path.realpath(folder))
    for path, found in _way(folder):
        if found.st_uid not in (0, os.getuid()):
            what = f"which belongs to user {found.st_uid}"
        elif _others_write(found, is_folder=path == real):
            what = f"which others may write to (mode {stat.S_IMODE(found.st_mode):04o})"
        else:
            continue
        where = folder if path == folder else f"{folder} by way of {path}"
        return (
            f"compilation_cache: found the folder {where}, {what}, expected folders that only you "
            "can write to, since what is put there is run as you. "
            f"Use chmod go-w {path} if it is yours, or another folder."
        )
    return None


def _others_write(found: os.stat_result, is_folder: bool) -> bool:
    """Says whether others can replace what is there; on the way that needs more than in it."""
    mode = found.st_mode
    if stat.S_ISLNK(mode) or not mode & (stat.S_IWGRP | stat.S_IWOTH):
        return False
    if is_folder:
        return True
    return not mode & stat.S_ISVTX and bool(mode & stat.S_IWOTH or not _is_own_group(found))


def _way(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yields every folder and link that leads to ``path``, as far as they exist."""
    here, names, links = Path(path.anchor), list(path.parts[1:]), 0
    yield here, here.lstat()
    while names and links < _MAX_LINKS:
        name = names.pop(0)
        if name == os.pardir:  # out of a link
            here = here.parent
            continue
        try:
            found = (here / name).lstat()
        except OSError:
            return
        yield here / name, found
        if not stat.S_ISLNK(found.st_mode):
            here = here / name
            continue
        links += 1
        target = Path(os.readlink(here / name))
        names = [*target.parts[1 if target.is_absolute() else 0 :], *names]
        here = Path(target.anchor) if target.is_absolute() else here


def _is_own_group(found: os.stat_result) -> bool:
    """Says whether a group is the user's own, as many systems give one to each user."""
    import grp
    import pwd

    try:
        group, user = grp.getgrgid(found.st_gid), pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return False
    return group.gr_name == user and set(group.gr_mem) <= {user}
