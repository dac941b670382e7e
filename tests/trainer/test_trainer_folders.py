"""Do two runs in one folder find each other? Real processes, where it is about those.

Rows C10 and C11 of the fault matrix.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_job
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.checkpoint import commit, list_steps
from xtrainer.errors import FolderInUseError
from xtrainer.launch import folder_lock
from xtrainer.launch.folder_lock import LOCK_FILE, FolderLock
from xtrainer.trainer.folders import held_folders, written_folders

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """Gives what starts the job in the folder ``run``."""
    begun = []

    def begin(step: int, locks: str = "locks") -> subprocess.Popen[str]:
        here = Path(__file__).resolve().parent
        path = os.pathsep.join(map(str, (TESTS.parent, TESTS, here)))
        command = [sys.executable, here / "folder_job.py", tmp_path / "run", str(step), locks]
        begun.append(
            subprocess.Popen(
                command, env={**os.environ, "PYTHONPATH": path}, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    assert "waits\n" in lines, process.communicate()[1][-3000:]


def checkpoints_of(folder: Path) -> dict[int, int]:
    """Returns the start that has written each step; each is whole."""
    steps = {
        step: folder / "checkpoints" / str(step) for step in list_steps(folder / "checkpoints")
    }
    assert [commit.problems_of(path) for path in steps.values()] == [[]] * len(steps)
    return {step: commit.read_commit(path).attempt for step, path in steps.items()}


@pytest.mark.processes
def test_a_second_start_is_refused_until_the_first_is_gone(tmp_path: Path, start: Any) -> None:
    folder = tmp_path / "run"
    first = start(step=3)
    wait_for(first)
    while list(folder.glob("checkpoints/*.saving")):  # of its step 2
        pass
    before = zoo.files_in(folder)
    second = start(step=3)
    said = second.communicate(timeout=120)[1]
    assert second.returncode == 1
    holder = rf"in use by process {first.pid} on '.+' since \d{{4}}-\d\d-\d\dT"
    assert re.search(f"FolderInUseError: {re.escape(str(folder))}: found that it is {holder}", said)
    first.send_signal(signal.SIGSTOP)
    third = folder_job.make_trainer(folder)
    with pytest.raises(FolderInUseError, match=holder):
        folder_job.train(third)
    assert zoo.files_in(folder) == before
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert (folder / LOCK_FILE).exists()
    folder_job.train(third)
    assert checkpoints_of(folder) == {step: 1 if step < 4 else 2 for step in range(1, 7)}
    assert not (folder / LOCK_FILE).exists()


@pytest.mark.processes
def test_without_locks_a_start_that_was_replaced_changes_nothing_any_more(
    tmp_path: Path, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    first = start(step=3, locks="no-locks")
    wait_for(first)
    first.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(folder_lock.fcntl, "flock", folder_job.without_locks)
    folder_job.train(folder_job.make_trainer(folder))
    attempts = checkpoints_of(folder)
    assert (sorted(attempts), attempts[6]) == ([1, 2, 3, 4, 5, 6], 2)
    before = zoo.files_in(folder / "checkpoints")
    first.send_signal(signal.SIGCONT)
    said = first.communicate("\n", timeout=120)[1]
    assert first.returncode == 4
    assert re.search(
        "NewerAttemptError: .*attempt 2 writes here, expected none after attempt 1", said
    )
    assert zoo.files_in(folder / "checkpoints") == before


# In one process.


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    """Gives a trainer, compiled once, that can begin again in another folder."""
    return probes.Repeatable(probes.traced())


def train(trainer: Any, steps: int = 2) -> None:
    trainer.train_model(probes.numbered(4), num_train_steps=steps)


def test_one_run_after_another_may_use_a_folder(tmp_path: Path, stage: probes.Repeatable) -> None:
    config = xt.ModelCheckpointConfig(every_n_steps=1)
    for steps in (2, 4):
        trainer = stage.begin(config, folder=tmp_path)
        train(trainer, steps)
        assert trainer.global_step == steps
    train(trainer, 4)  # and one run twice
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_run_within_a_run_is_refused(tmp_path: Path, stage: probes.Repeatable) -> None:
    inner = probes.traced(logger=zoo.file_logger(tmp_path))
    outer = stage.begin(probes.acting("on_training_start", lambda _: train(inner)), folder=tmp_path)
    with pytest.raises(FolderInUseError, match=f"process {os.getpid()} .*, which is this one"):
        train(outer)
    train(inner)


@pytest.mark.parametrize("hook", ["on_training_start", "on_training_step", "on_training_end"])
def test_after_an_error_the_folder_is_free(
    tmp_path: Path, stage: probes.Repeatable, hook: str
) -> None:
    def fail(*_: Any) -> None:
        assert (tmp_path / LOCK_FILE).exists()
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        train(stage.begin(probes.acting(hook, fail), folder=tmp_path))
    FolderLock(tmp_path).release()


def test_the_lock_is_taken_before_a_checkpoint_is_looked_for(
    tmp_path: Path, stage: probes.Repeatable
) -> None:
    config = xt.ModelCheckpointConfig(every_n_steps=1)
    train(stage.begin(config, folder=tmp_path))
    (tmp_path / "checkpoints" / "2" / "meta.json").write_text("{")
    before = zoo.files_in(tmp_path)
    with FolderLock(tmp_path), pytest.raises(FolderInUseError):
        train(stage.begin(config, folder=tmp_path), 4)
    assert zoo.files_in(tmp_path).keys() == before.keys()  # the damaged one was not set aside
    train(stage.begin(config, folder=tmp_path), 4)
    assert (tmp_path / "checkpoints" / "corrupt-2").exists()


def test_checkpoints_that_lie_elsewhere_are_held_too(
    tmp_path: Path, stage: probes.Repeatable
) -> None:
    elsewhere = tmp_path / "elsewhere"
    config = xt.ModelCheckpointConfig(every_n_steps=1, log_path=str(elsewhere))
    folder = tmp_path / "run"
    trainer = stage.begin(config, xt.ModelCheckpointConfig(), folder=folder)
    assert written_folders(trainer) == [folder, elsewhere]
    with FolderLock(elsewhere), pytest.raises(FolderInUseError, match="elsewhere: found"):
        train(trainer)
    FolderLock(folder).release()
    assert written_folders(stage.begin()) == []


def test_a_folder_that_cannot_be_locked_is_left_to_those_who_write_there(
    tmp_path: Path, stage: probes.Repeatable, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = stage.begin(folder=tmp_path / "run")
    (tmp_path / "run").write_text("a file in its place")
    with held_folders(trainer):
        pass
    assert "run could not be locked: [Errno 17] File exists" in caplog.text


def test_evaluation_needs_no_lock(tmp_path: Path, stage: probes.Repeatable) -> None:
    trainer = stage.begin(xt.ModelCheckpointConfig(every_n_steps=1), folder=tmp_path)
    train(trainer)
    with FolderLock(tmp_path):
        loaded = probes.Traced.from_run(tmp_path)
        loaded.eval_model(probes.numbered(2))
        trainer.eval_model(probes.numbered(2))
        assert trainer.load_model() == 2
    trainer.logger.finalize("completed")  # the evaluation has opened it again
