"""What does a run do when its storage fails: read-only, gone, slow, short of handles, held busy?

Rows C3 to C7, C9, B9 and I3 of the fault matrix; a full disk is in ``test_chaos_disk.py``.
"""

import contextlib
import logging
import os
import resource
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.checkpoint import (
    CheckpointItems,
    CheckpointManager,
    choose_usable,
    commit,
    gather_meta,
    list_steps,
    restore_state,
)
from xtrainer.errors import CheckpointError, CheckpointWriteError, ConfigError

FAILS_AT = 3
Act = Callable[[], None]


def mount(*arguments: str) -> None:
    """Mounts something, or skips the test where that is not allowed."""
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no file system could be mounted: {done.stderr.strip()}")


@contextlib.contextmanager
def mounted(*arguments: str) -> Iterator[None]:
    """Mounts something for a while; the last argument is where."""
    mount(*arguments)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", arguments[-1]], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)):
        yield folder


def saving(folder: Path, **options: Any) -> xt.ModelCheckpointConfig:
    options = {"every_n_steps": 1, "max_to_keep": None, **options}
    return xt.ModelCheckpointConfig(log_path=str(folder / "checkpoints"), **options)


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    """Gives a trainer, compiled once, that can begin again in another folder."""
    return probes.Repeatable(probes.traced())


def train(trainer: Any, steps: int) -> None:
    trainer.train_model(probes.numbered(12), num_train_steps=steps)


def settled(folder: Path) -> None:
    """Waits until no save is under way."""
    while list(folder.glob("checkpoints/*.saving")):
        time.sleep(0.005)


def failing(folder: Path, act: Act) -> Any:
    """Returns what makes a callback that does something once the save before is a step."""

    def call(trainer: Any, metrics: Any, epoch: int, step: int) -> None:
        if step == FAILS_AT:
            settled(folder)
            act()

    return probes.acting("on_training_step", call)


def assert_steps_are_whole(folder: Path, steps: list[int]) -> None:
    assert list_steps(folder / "checkpoints") == steps
    for step in steps:
        assert choose_usable(folder / "checkpoints", step).folder.name == str(step)


def test_a_disk_that_becomes_read_only_ends_a_run_and_harms_no_step(
    disk: Path, stage: probes.Repeatable, tmp_path: Path
) -> None:
    seal: Act = lambda: mount("-o", "remount,ro", str(disk))  # noqa: E731
    trainer = stage.begin(failing(disk, seal), saving(disk), folder=tmp_path / "run")
    with pytest.raises(CheckpointWriteError, match=r"save of step 3 failed.*Read-only"):
        train(trainer, 10)
    assert trainer.global_step <= FAILS_AT + trainer.trainer_config.max_steps_in_flight
    assert_steps_are_whole(disk, [1, 2])
    again = stage.begin(saving(disk), folder=tmp_path / "other")
    with pytest.raises(CheckpointError, match="expected a folder that can be written"):
        train(again, 10)
    assert again.global_step == 2  # restored, and none was taken
    mount("-o", "remount,rw", str(disk))
    train(stage.begin(saving(disk), folder=tmp_path / "run"), 5)
    assert_steps_are_whole(disk, [1, 2, 3, 4, 5])


def test_a_read_only_run_folder_can_be_evaluated(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = xt.ModelCheckpointConfig(every_n_steps=1, monitor="loss")
    first = probes.traced(logger=zoo.file_logger(folder), callbacks=[config])
    val = [probes.one(i) for i in (3, 4)]
    first.train_model(probes.numbered(4), val, num_train_steps=4)
    want = first.eval_model(val, mode="val", epoch_idx=1)
    first.logger.finalize("completed")  # the evaluation has opened it again
    with mounted("--bind", str(folder), str(folder)):
        mount("-o", "remount,bind,ro", str(folder))
        with pytest.raises(OSError, match="Read-only"):
            (folder / "new").write_text("x")
        before = zoo.files_in(folder)
        loaded = probes.Traced.load_from_checkpoint(
            folder / "checkpoints" / "4", mesh=zoo.devices(1)
        )
        found = loaded.eval_model(val, mode="val", epoch_idx=1)
        other = probes.traced()
        other.load_pretrained_model(folder)
        assert zoo.files_in(folder) == before
    zoo.assert_same(loaded.state.params, first.state.params)
    zoo.assert_same(other.state.params, first.state.params)
    assert {k: v for k, v in found.items() if "time" not in k} == {
        k: v for k, v in want.items() if "time" not in k
    }


NAMES = [
    "made/on/the/way",
    "with spaces",
    "trailing/",
    "Zürich-雪-🙂",
    "x" * 200,
    "dots.and..dots",
    "./relative/../to",
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:12])
def test_a_run_folder_may_have_any_name(
    stage: probes.Repeatable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    config = xt.ModelCheckpointConfig(every_n_steps=2)
    trainer = stage.begin(config, folder=Path(name))
    train(trainer, 2)
    assert_steps_are_whole((tmp_path / name).resolve(), [2])
    again = stage.begin(config, folder=Path(name))
    train(again, 4)
    assert again.global_step == 4
    assert_steps_are_whole((tmp_path / name).resolve(), [2, 4])


def test_home_is_found_and_a_file_or_a_name_that_is_too_long_is_told(
    stage: probes.Repeatable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    train(stage.begin(xt.ModelCheckpointConfig(every_n_steps=2), folder=Path("~/run")), 2)
    assert_steps_are_whole(tmp_path / "run", [2])
    (tmp_path / "file").write_text("x")
    for name in ("file", "file/inside", "y" * 300):
        with pytest.raises(ConfigError, match="log_path"):
            stage.begin(folder=tmp_path / name)
    assert (tmp_path / "file").read_text() == "x"


def test_a_run_whose_folder_is_taken_away_ends_and_makes_no_new_one(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    folder, moved = tmp_path / "run", tmp_path / "moved"
    act = failing(folder, lambda: folder.rename(moved) and None)
    trainer = stage.begin(act, saving(folder), folder=folder)
    with pytest.raises(CheckpointWriteError, match="save of step 3 failed"):
        train(trainer, 10)
    assert not (folder / "checkpoints").exists()
    assert_steps_are_whole(moved, [1, 2])


def test_a_process_without_file_handles_loses_saves_and_nothing_else(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []

    def starve() -> None:
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))

    trainer = stage.begin(failing(folder, starve), saving(folder), folder=folder)
    try:
        with pytest.raises(CheckpointWriteError, match="save of step 3 failed"):
            train(trainer, 10)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for file in taken:
            os.close(file)
    assert_steps_are_whole(folder, [1, 2])
    again = stage.begin(saving(folder), folder=folder)
    train(again, 5)
    assert_steps_are_whole(folder, [1, 2, 3, 4, 5])


def test_of_a_slow_disk_one_save_is_under_way_and_none_is_left_out(
    stage: probes.Repeatable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way: list[int] = []
    checkpoints = tmp_path / "run" / "checkpoints"

    def slow(moment: str) -> None:
        if moment == "arrays":
            time.sleep(0.1)
            under_way.append(len(list(checkpoints.glob("*.saving"))))

    monkeypatch.setattr(commit, "watcher", slow)
    trainer = stage.begin(saving(tmp_path / "run"), folder=tmp_path / "run")
    train(trainer, 6)
    assert under_way == [1] * 6
    assert_steps_are_whole(tmp_path / "run", [1, 2, 3, 4, 5, 6])


def test_a_step_that_cannot_be_removed_is_told_once_and_tried_again(
    stage: probes.Repeatable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    held = folder / "checkpoints" / "1"
    calls: dict[int, Act] = {
        2: lambda: mount("--bind", str(held), str(held)),
        7: lambda: kept.extend(list_steps(folder / "checkpoints")),
        8: lambda: subprocess.run(["umount", str(held)], check=True) and None,
    }
    kept: list[int] = []

    def act(trainer: Any, metrics: Any, epoch: int, step: int) -> None:
        settled(folder)
        calls.get(step, lambda: None)()

    callback = probes.acting("on_training_step", act)
    trainer = stage.begin(callback, saving(folder, max_to_keep=1), folder=folder)
    with caplog.at_level(logging.WARNING, logger="xtrainer"):
        train(trainer, 10)
    said = [r.getMessage() for r in caplog.records if "could not be removed" in r.getMessage()]
    assert len(said) == 1 and str(held) in said[0]
    assert 1 in kept and len(kept) <= 4
    assert_steps_are_whole(folder, [9, 10])


def test_a_file_that_is_late_is_waited_for_a_little(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train(stage.begin(saving(folder), folder=folder), 2)
    late = folder / "checkpoints" / "2" / "meta.json"
    late.rename(tmp_path / "elsewhere")
    timer = threading.Timer(0.15, lambda: (tmp_path / "elsewhere").rename(late))
    timer.start()
    assert choose_usable(folder).folder.name == "2"
    timer.join()


@pytest.mark.slow
@pytest.mark.parametrize(("leaves", "rows"), [(20_000, 8), (1, 2**29)], ids=["20000", "2_GB"])
def test_many_leaves_and_a_large_one_are_saved_and_restored(
    tmp_path: Path, leaves: int, rows: int, record_property: Callable[[str, Any], None]
) -> None:
    if shutil.disk_usage(tmp_path).free < 4 * 4 * leaves * rows:
        pytest.skip("the disk has no room for two states")
    state = {f"w{i}": jnp.arange(rows, dtype=jnp.float32) + i for i in range(leaves)}
    parts = ("progress", "loaders", "callbacks", "config", "batch_spec", "metrics")
    meta = gather_meta(state, mesh=zoo.devices(1), **{part: {} for part in parts})
    began = time.perf_counter()
    with CheckpointManager(tmp_path / "steps") as manager:
        manager.save(1, CheckpointItems(state, meta))
    saved = time.perf_counter()
    choice = choose_usable(tmp_path / "steps")
    restored = restore_state(choice.folder, state)
    record_property("save_s", saved - began)
    record_property("restore_s", time.perf_counter() - saved)
    record_property("peak_mb", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    print(f"save {saved - began:.1f} s, restore {time.perf_counter() - saved:.1f} s")
    for name in list(state)[:: max(leaves // 100, 1)]:
        np.testing.assert_array_equal(restored[name], state[name])
    assert jax.tree.structure(restored) == jax.tree.structure(state)
