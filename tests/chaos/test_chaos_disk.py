"""What does a full disk cost? The saves that do not fit, and nothing that was saved before."""

import logging
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.checkpoint import choose_usable, list_steps
from xtrainer.errors import CheckpointWriteError
from xtrainer.loop import StopReason

STEPS = 9
FULL_AT, FREE_AT = 4, 6
SIZE = 4 * 2**20
WIDTH = 2048
"""So that the largest file of a step is larger than what is logged."""
PAUSE_S = 0.05
MANY = 100
"""Steps that a run does not come to which ends with a failed save."""


def settle(folder: Path) -> None:
    """Waits until the save under way is a step."""
    while list(folder.glob("checkpoints/*.saving")):
        time.sleep(0.005)


class SmallDisk:
    """A file system of its own, in memory, that can be filled up to some bytes."""

    def __init__(self, folder: Path, left: int) -> None:
        self.folder, self.left = folder, left

    def fill(self) -> None:
        """Leaves ``left`` bytes free, once no save is under way."""
        settle(self.folder)
        size = shutil.disk_usage(self.folder).free - self.left
        with (self.folder / "filler").open("wb") as file:
            file.write(b"\0" * max(size, 0))

    def free(self) -> None:
        """Takes the filling away."""
        (self.folder / "filler").unlink(missing_ok=True)


class Limit:
    """A folder in which files may not become larger than some bytes, for this whole process."""

    def __init__(self, folder: Path, left: int) -> None:
        self.folder, self.left = folder, left
        self.hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def fill(self) -> None:
        """Limits the size of files, once no save is under way."""
        settle(self.folder)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.left, self.hard))

    def free(self) -> None:
        """Lifts the limit."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.hard, self.hard))


@pytest.fixture(params=["disk_0", "disk_20000", "disk_200000", "limit_20000"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallDisk | Limit]:
    """Something that can be filled up; small disks need the right to mount one."""
    kind, left = request.param.split("_")
    folder = tmp_path / "disk"
    folder.mkdir()
    if kind == "limit":
        limit = Limit(folder, int(left))
        yield limit
        limit.free()
        return
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no file system could be mounted: {done.stderr.strip()}")
    try:
        yield SmallDisk(folder, int(left))
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    """Gives a trainer, compiled once, that can begin again in another folder."""
    return probes.Repeatable(probes.traced(model={"width": WIDTH, "dropout": 0.3}))


@pytest.fixture(scope="module")
def end(stage: probes.Repeatable) -> Any:
    """What a run that saves nothing has learned."""
    trainer = stage.begin()
    train(trainer, STEPS)
    return probes.learned(trainer)


def train(trainer: Any, steps: int) -> None:
    trainer.train_model(probes.numbered(20), num_train_steps=steps)


def acting(calls: dict[int, Callable[[], None]]) -> Any:
    """Returns what makes a callback that does something at some steps, before the save there."""

    def act(trainer: Any, metrics: Any, epoch: int, step: int) -> None:
        time.sleep(PAUSE_S)
        calls.get(step, lambda: None)()

    return probes.acting("on_training_step", act)


def saving(disk: SmallDisk | Limit, every: int = 1, **options: Any) -> xt.ModelCheckpointConfig:
    folder = str(disk.folder / "checkpoints")
    return xt.ModelCheckpointConfig(log_path=folder, every_n_steps=every, **options)


def test_a_run_outlives_a_disk_that_is_full_for_a_while(
    disk: SmallDisk | Limit,
    stage: probes.Repeatable,
    end: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    filling = acting({FULL_AT: disk.fill, FREE_AT: disk.free})
    config = saving(disk, max_to_keep=None, max_failed_saves=3)
    trainer = stage.begin(filling, config, folder=tmp_path / "run")
    with caplog.at_level(logging.ERROR, logger="xtrainer"):
        train(trainer, STEPS)
    assert trainer.stop_reason is StopReason.FINISHED
    state, progress = probes.learned(trainer)
    zoo.assert_same(state, end[0])
    assert progress["step"] == STEPS
    folder = disk.folder / "checkpoints"
    lost = set(range(1, STEPS + 1)) - set(list_steps(folder))
    assert FULL_AT in lost
    assert lost <= {FULL_AT, FULL_AT + 1, FREE_AT}
    errors = [r.getMessage() for r in caplog.records if "save of step" in r.getMessage()]
    assert [int(step) for step in re.findall(r"save of step (\d+) failed", " ".join(errors))] == (
        sorted(lost)
    )
    assert all(re.search(r"Free there: [\d,]+ bytes", text) for text in errors)
    for step in list_steps(folder):
        assert choose_usable(folder, step).folder == folder / str(step)
    assert list(folder.glob("*.saving")) == []
    again = stage.begin(saving(disk), folder=tmp_path / "run")
    assert again.load_model() == STEPS
    zoo.assert_same(again.state, end[0])


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_run_that_may_lose_no_save_ends_at_once(
    disk: SmallDisk | Limit, stage: probes.Repeatable, tmp_path: Path, asynchronous: bool
) -> None:
    failed_at: list[int] = []
    trainer: Any = None

    def watch() -> None:
        manager = trainer.callbacks[1]._manager
        manager.when_failed(lambda: failed_at.append(trainer.global_step))

    every = 4
    before, after = acting({2 * every: disk.fill}), acting({2 * every: watch})
    config = saving(disk, every, max_to_keep=None, enable_async_checkpointing=asynchronous)
    trainer = stage.begin(before, config, after, folder=tmp_path / "run")
    with pytest.raises(CheckpointWriteError, match=r"save of step 8 failed.*Free there: [\d,]+"):
        train(trainer, MANY)
    if asynchronous:
        assert trainer.global_step <= failed_at[0] + trainer.trainer_config.max_steps_in_flight
    else:
        assert trainer.global_step == 2 * every
    assert trainer.stop_reason is StopReason.FAILED
    folder = disk.folder / "checkpoints"
    assert list(folder.glob("*.saving")) == []
    assert list_steps(folder) == [every]
    disk.free()
    again = stage.begin(saving(disk, every), folder=tmp_path / "run")
    train(again, 12)
    assert again.global_step == 12
    assert max(list_steps(folder)) == 12


def test_more_failures_than_allowed_end_the_run(
    disk: SmallDisk | Limit, stage: probes.Repeatable, tmp_path: Path
) -> None:
    config = saving(disk, max_to_keep=None, max_failed_saves=2)
    trainer = stage.begin(acting({FULL_AT: disk.fill}), config, folder=tmp_path / "run")
    with pytest.raises(CheckpointWriteError, match=f"save of step {FULL_AT + 2} failed"):
        train(trainer, MANY)
    assert FULL_AT + 2 <= trainer.global_step <= FULL_AT + 4
    folder = disk.folder / "checkpoints"
    assert list_steps(folder) == list(range(1, FULL_AT))
    assert list(folder.glob("*.saving")) == []
    for step in list_steps(folder):
        assert choose_usable(folder, step).folder == folder / str(step)


ROWS = 150
"""So many that what is left of a page of each file is used up."""


@pytest.mark.parametrize("disk", ["disk_0"], indirect=True)
@pytest.mark.parametrize("is_freed", [True, False])
def test_a_disk_that_is_full_for_logs_costs_neither_steps_nor_checkpoints(
    disk: SmallDisk,
    stage: probes.Repeatable,
    tmp_path: Path,
    is_freed: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("xtrainer.loggers.guarded._FIRST_PAUSE_S", 0.0)
    twin = stage.begin()
    train(twin, ROWS)
    end = probes.learned(twin)
    checkpoints = tmp_path / "checkpoints"
    config = xt.ModelCheckpointConfig(
        log_path=str(checkpoints), every_n_steps=30, max_to_keep=None, every_n_epochs=99
    )
    acts = {10: disk.fill} | ({120: disk.free} if is_freed else {})
    when = lambda trainer, metrics, epoch, step: acts.get(step, lambda: None)()  # noqa: E731
    trainer = stage.begin(probes.acting("on_training_step", when), config)
    logger = xt.LoggerConfig(
        log_path=str(disk.folder / "run"), write_interval_s=0.0, console_interval_s=0.0,
        tool_retries=1000 if is_freed else 5,
    )  # fmt: skip
    trainer.init_logger(logger)
    with caplog.at_level(logging.INFO, logger="xtrainer"):
        train(trainer, ROWS)
    assert trainer.stop_reason is StopReason.FINISHED
    probes.assert_same_course(probes.learned(trainer), end)
    assert list_steps(checkpoints) == [30, 60, 90, 120, 150]
    steps = [row["step"] for row in xt.read_metrics(disk.folder / "run") if row["set"] == "train"]
    table = (disk.folder / "run" / "metrics_train.csv").read_text().splitlines()
    assert [int(line.split(",")[0]) for line in table[1:]] == steps
    messages = [record.getMessage() for record in caplog.records]
    first = [record for record in caplog.records if "FileLogger has failed." in record.getMessage()]
    assert len(first) == 1 and first[0].exc_info is not None
    assert "Messages cannot be written to" in capsys.readouterr().err
    assert any("output_0.log" in text and "could not be written" in text for text in messages)
    if is_freed:
        assert steps == list(range(1, ROWS + 1))
        assert "FileLogger works again." in messages
    else:
        assert 10 <= len(steps) < ROWS and steps == list(range(1, len(steps) + 1))
        lost = ROWS - len(steps) + 8 + 1  # and the rows of the epochs, and the run's summary
        assert f"FileLogger: {lost} rows were lost in all." in messages
