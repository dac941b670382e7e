"""Does each fault come when it is asked for, once, and only then?"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.checkpoint import CheckpointManager, commit, list_steps
from xtrainer.data import LoaderSource
from xtrainer.errors import CheckpointWriteError
from xtrainer.testing import (
    MOMENTS,
    Fault,
    WitnessConfig,
    flip_bits,
    full_disk,
    plant,
    read_journal,
    watch_batches,
    watch_saves,
)
from xtrainer.testing.witness import Witness, write_line

STEPS = 6


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes out again what is planted."""
    for owner, name in (
        (CheckpointManager, "save"),
        (CheckpointManager, "_commit"),
        (LoaderSource, "pull"),
        (Witness, "on_training_step"),
        (xt.TrainerModule, "create_training_step_function"),
        (commit, "watcher"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    """Gives a trainer, compiled once, that can begin again in another folder."""
    return probes.Repeatable(probes.traced())


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "journal"
    path.touch()
    return path


def train(stage: probes.Repeatable, folder: Path, **saving: Any) -> Any:
    saving = {"every_n_steps": 2, "max_to_keep": None, **saving}
    witness = WitnessConfig(every_n_steps=1, journal=str(folder / "journal"))
    trainer = stage.begin(xt.ModelCheckpointConfig(**saving), witness, folder=folder / "run")
    trainer.train_model(probes.numbered(STEPS), num_epochs=1)
    return trainer


class Killed(BaseException):
    """In place of the end of the process."""


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Gives the signals that were sent; SIGKILL ends what has sent it."""
    sent = []

    def send(pid: int, number: int) -> None:
        sent.append((pid, number))
        if number == signal.SIGKILL:
            raise Killed

    monkeypatch.setattr(os, "kill", send)
    return sent


def test_nothing_is_planted_for_no_fault(journal: Path) -> None:
    before = (CheckpointManager.save, LoaderSource.pull, Witness.on_training_step, commit.watcher)
    plant(Fault(), journal)
    after = (CheckpointManager.save, LoaderSource.pull, Witness.on_training_step, commit.watcher)
    assert before == after
    assert journal.read_text() == ""


def test_a_run_without_a_fault_notes_all_that_is_asked_about_later(
    stage: probes.Repeatable, tmp_path: Path, journal: Path
) -> None:
    watch_batches(journal)
    watch_saves(journal)
    train(stage, tmp_path)
    found = read_journal(journal)
    assert (found.start, found.end_step, found.stop) == (0, STEPS, "FINISHED")
    assert list(found.times) == list(found.steps) == [1, 2, 3, 4, 5, 6]
    assert list(found.batches) == [(0, number) for number in range(1, 7)]
    assert list(found.saves) == list(found.saved) == [2, 4, 6]
    assert all(found.saved[step] >= found.saves[step] for step in found.saves)
    assert found.fault_at is None
    assert found.accounts["step"] > 0


@pytest.mark.parametrize(
    ("kind", "number"), [("kill", signal.SIGKILL), ("preempt", signal.SIGTERM)]
)
def test_a_signal_is_sent_after_its_step(
    stage: probes.Repeatable,
    tmp_path: Path,
    journal: Path,
    signals: list[tuple[int, int]],
    kind: str,
    number: int,
) -> None:
    plant(Fault(kind=kind, at=3), journal)
    if kind == "kill":
        with pytest.raises(Killed):
            train(stage, tmp_path)
    else:
        train(stage, tmp_path)
    assert signals == [(os.getpid(), number)]
    found = read_journal(journal)
    assert max(found.steps) == (3 if kind == "kill" else STEPS)  # the step itself is noted
    assert found.fault_at is not None and found.fault_at >= found.times[3]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_comes_in_its_save_and_at_its_moment(
    stage: probes.Repeatable,
    tmp_path: Path,
    journal: Path,
    signals: list[tuple[int, int]],
    moment: str,
) -> None:
    seen: list[str] = []
    commit.watcher = seen.append
    plant(Fault(kind="kill-in-save", at=2, moment=moment), journal)
    with pytest.raises((Killed, CheckpointWriteError)):  # in the thread that commits, or here
        train(stage, tmp_path, enable_async_checkpointing=False, save_last=False)
    assert len(signals) == 1
    assert (seen.count(moment), seen.count("committed")) == (2, 1)
    assert list_steps(tmp_path / "run" / "checkpoints") == [2]


def test_slow_saves_are_those_that_were_asked_for(
    stage: probes.Repeatable, tmp_path: Path, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda s: slept.append(s) if s == 7.5 else sleep(s))
    plant(Fault(kind="slow-save", at=2, count=2, moment="arrays", seconds=7.5), journal)
    train(stage, tmp_path, every_n_steps=1)
    assert slept == [7.5, 7.5]


@pytest.mark.parametrize("max_failed_saves", [0, 1])
def test_a_full_disk_is_full_for_one_save(
    stage: probes.Repeatable, tmp_path: Path, journal: Path, max_failed_saves: int
) -> None:
    plant(Fault(kind="disk-full", at=2), journal)
    saving = {"enable_async_checkpointing": False, "max_failed_saves": max_failed_saves}
    if max_failed_saves == 0:
        with pytest.raises(CheckpointWriteError, match=r"save of step 4 failed.*File too large"):
            train(stage, tmp_path, **saving)
    else:
        train(stage, tmp_path, **saving)
    steps = [2, 6] if max_failed_saves else [2]
    assert list_steps(tmp_path / "run" / "checkpoints") == steps
    assert read_journal(journal).fault_at is not None


def test_a_loader_is_stalled_at_its_batch(
    stage: probes.Repeatable, tmp_path: Path, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda s: slept.append(s) if s == 7.5 else sleep(s))
    for place in ((0, 4), (5, 1)):  # the second is of a pass that never comes
        plant(Fault(kind="stall-loader", place=place, seconds=7.5), journal)
    train(stage, tmp_path)
    assert slept == [7.5]


def test_a_batch_of_floats_is_poisoned_and_the_data_stay_as_they_are(
    stage: probes.Repeatable, tmp_path: Path, journal: Path
) -> None:
    batches = probes.numbered(STEPS)
    plant(Fault(kind="nan", at=4, place=(0, 4)), journal)
    trainer = stage.begin(folder=tmp_path)
    trainer.train_model(batches, num_epochs=1)
    assert (trainer.stop_reason, trainer.global_step) == (xt.StopReason.NONFINITE, 3)
    for found, made in zip(batches, probes.numbered(STEPS), strict=True):
        jax.tree.map(np.testing.assert_array_equal, found, made)


class OfIntegers(xt.TrainerModule):
    """A model of batches without a float, whose loss comes in one of three forms."""

    model_class = zoo.MLP
    form = "scalar"

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        value = (apply_fn({"params": params}, batch["inputs"] / 7.0, train=train) ** 2).mean(-1)
        forms = {"scalar": value.mean(), "rows": value}
        return forms.get(self.form, {"value": value.sum(), "count": value.size}), ({}, {})


@pytest.mark.parametrize("form", ["scalar", "rows", "pair"])
def test_where_a_batch_has_no_floats_the_loss_of_its_step_is_not_finite(
    journal: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(OfIntegers, "form", form)
    inputs = np.arange(STEPS * 16).reshape(STEPS, 4, 4) % 7
    batches = [{"inputs": each.astype(np.int32)} for each in inputs]

    def begin() -> Any:
        return zoo.make_trainer(OfIntegers, batch=batches[0], mesh=zoo.devices(1))

    usual = begin()
    usual.train_model(batches, num_train_steps=3)
    plant(Fault(kind="nan", at=4, place=(0, 4)), journal)
    trainer = begin()
    trainer.train_model(batches, num_epochs=1)
    assert (trainer.stop_reason, trainer.global_step) == (xt.StopReason.NONFINITE, 3)
    zoo.assert_same(trainer.state.params, usual.state.params)
    assert trainer.eval_model(batches) == usual.eval_model(batches)  # which is never spoilt


def test_flipped_bits_are_three_of_the_arrays(stage: probes.Repeatable, tmp_path: Path) -> None:
    train(stage, tmp_path)
    folder = tmp_path / "run" / "checkpoints" / "4"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    path = flip_bits(folder, seed=5)
    changed = [each for each, content in before.items() if each.read_bytes() != content]
    assert changed == [path] and path.suffix != ".json"
    pairs = zip(before[path], path.read_bytes(), strict=True)
    assert sum((old ^ new).bit_count() for old, new in pairs) == 3
    assert commit.problems_of(folder) == [f"{path.relative_to(folder).as_posix()} is damaged"]


@pytest.fixture
def no_space() -> Iterator[threading.Event]:
    """The disk is full until the event is set."""
    over = threading.Event()
    begun = threading.Event()

    def hold() -> None:
        with full_disk(2**4):
            begun.set()
            over.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait(60)
    yield over
    over.set()
    thread.join()


def test_a_journal_waits_for_space(tmp_path: Path, no_space: threading.Event) -> None:
    with open(tmp_path / "journal", "a", encoding="utf-8") as file:
        with pytest.raises(OSError, match="File too large"):
            write_line(file, {"kind": "stop", "reason": "x" * 40, "seconds": {}}, limit_s=0.05)
        threading.Timer(0.05, no_space.set).start()
        write_line(file, {"kind": "start", "step": 3})
    assert read_journal(tmp_path / "journal").start == 3
