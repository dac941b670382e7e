"""Does the journal of a run tell what has happened, and never stand in its way?"""

import json
import logging
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zoo

import xtrainer as xt
from xtrainer.checkpoint import Saved
from xtrainer.loop import Ledger, StopReason
from xtrainer.state import Progress, Rollback
from xtrainer.trainer import JournalError, journal, read_journal
from xtrainer.trainer.journal import RunJournal
from xtrainer.trainer.journal_lines import JOURNAL_FILE, MAX_BYTES


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def fake_trainer(folder: Path | None, clock: Clock) -> Any:
    """Returns what a journal reads of a trainer."""
    device = SimpleNamespace(device_kind="cpu")
    return SimpleNamespace(
        log_path=folder,
        ledger=Ledger(clock),
        progress=Progress(),
        stop_reason=None,
        stop_detail="",
        total_steps=40,
        trainer_config=SimpleNamespace(callbacks=[]),
        mesh=SimpleNamespace(devices=np.array([device, device]), shape={"dp": 2}),
        get_num_params=lambda: 67,
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def trainer(tmp_path: Path, clock: Clock) -> Any:
    return fake_trainer(tmp_path, clock)


@pytest.fixture
def begun(trainer: Any, clock: Clock) -> RunJournal:
    found = RunJournal(trainer, clock)
    found.start(online=False)
    return found


def kinds(folder: Path) -> list[str]:
    return [line.kind for line in read_journal(folder)]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three steps that was started again, up to six."""
    folder = tmp_path_factory.mktemp("resumed")
    for steps in (3, 6):
        trainer = zoo.make_trainer(
            logger=zoo.file_logger(folder),
            callbacks=[xt.ModelCheckpointConfig()],
            mesh=zoo.devices(1),
            check_val_every_n_steps=3,
        )
        trainer.train_model(zoo.loader(), zoo.loader(), num_train_steps=steps)
    return folder


def test_a_run_and_its_resume_are_one_time_line(resumed: Path) -> None:
    lines = read_journal(resumed)
    happened = Counter((line.kind, line.step) for line in lines)
    assert happened == {
        ("start", 0): 1, ("first_step", 1): 1, ("validation", 3): 1, ("checkpoint", 3): 1,
        ("stop", 3): 1,
        ("start", 3): 1, ("first_step", 4): 1, ("validation", 4): 1, ("checkpoint", 4): 1,
        ("validation", 6): 1, ("checkpoint", 6): 1, ("stop", 6): 1,
    }  # fmt: skip
    assert [line.kind for line in lines if line.kind in ("start", "stop")] == [
        "start", "stop", "start", "stop",
    ]  # fmt: skip
    assert [line.time for line in lines] == sorted(line.time for line in lines)


def test_a_start_says_where_the_run_is(resumed: Path) -> None:
    facts = read_journal(resumed)[0].facts
    assert facts["devices"] == {"kind": "cpu", "count": 1}
    assert (facts["pid"], facts["parameters"], facts["total_steps"]) == (os.getpid(), 67, 3)
    assert facts["versions"].keys() > {"jax", "python", "xtrainer"}


def test_a_save_says_when_it_was_committed_and_how_large_it_is(resumed: Path) -> None:
    saved = [line for line in read_journal(resumed) if line.kind == "checkpoint"]
    assert {line.facts["folder"] for line in saved} == {"checkpoints"}
    assert all(line.facts["bytes"] >= 4 * 67 and line.facts["problem"] is None for line in saved)


def test_the_seconds_of_a_start_are_those_that_have_passed(resumed: Path) -> None:
    first, *_, last = read_journal(resumed)[-7:]
    assert (first.kind, last.kind) == ("start", "stop")
    passed_s = (last.time - first.time).total_seconds()
    assert last.total_s - first.total_s == pytest.approx(passed_s, rel=0.02, abs=0.02)


def test_without_a_run_folder_nothing_is_written(clock: Clock) -> None:
    found = RunJournal(fake_trainer(None, clock), clock)
    found.start(online=False)
    found.row()
    found.stop(None)


def test_a_second_run_of_a_trainer_counts_its_own_seconds(
    trainer: Any, clock: Clock, begun: RunJournal, tmp_path: Path
) -> None:
    for _ in range(2):
        with trainer.ledger.spent("step"):
            clock.now += 3.0
        begun.stop(None)
        begun.start(online=False)
    stops = [line for line in read_journal(tmp_path) if line.kind == "stop"]
    assert [line.seconds for line in stops] == [{"step": 3.0}, {"step": 3.0}]


def test_rows_are_a_reason_to_write_every_ten_seconds_alone(
    clock: Clock, begun: RunJournal, tmp_path: Path
) -> None:
    for _ in range(100):
        clock.now += 0.25
        begun.row()
    assert Counter(kinds(tmp_path)) == {"start": 1, "ledger": 2}


def test_the_file_of_a_year_of_rows_and_saves_stays_small(
    trainer: Any, clock: Clock, begun: RunJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_DOUBLES_AFTER", 2**12)  # a 64th of the real one
    for hour in range(365 * 24):
        clock.now += 3600.0
        begun.row()
        begun.checkpoint(Saved(tmp_path / "checkpoints", hour, 1.0, 10))
    size = (tmp_path / JOURNAL_FILE).stat().st_size
    assert size < 20 * 2**12
    left_out = [line.facts.get("left_out", 0) for line in read_journal(tmp_path)]
    assert sum(left_out) > 1000


def test_what_is_never_left_out_ends_at_the_limit(
    begun: RunJournal, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / JOURNAL_FILE
    with open(path, "ab") as file:
        file.truncate(MAX_BYTES - 100)
    for _ in range(3):
        begun.rollback(Rollback(5, 3, "x" * 200, ()))
    assert path.stat().st_size == MAX_BYTES - 100
    assert len(caplog.messages) == 1


def test_refused_steps_that_come_soon_after_each_other_share_a_line(
    trainer: Any, clock: Clock, begun: RunJournal, tmp_path: Path
) -> None:
    for step in (3, 4, 5, 9):
        begun.refused(step)
    clock.now += 60.0
    begun.row()
    begun.refused(12)
    begun.stop(None)
    lines = [line for line in read_journal(tmp_path) if line.kind == "refused"]
    found = [(line.facts["first"], line.step, line.facts["count"]) for line in lines]
    assert found == [(3, 3, 1), (4, 9, 3), (12, 12, 1)]


def test_an_error_is_told_with_its_exit_code(begun: RunJournal, tmp_path: Path) -> None:
    begun.stop(xt.errors.NoUsableCheckpointError("nothing"))
    facts = read_journal(tmp_path)[-1].facts
    assert (facts["reason"], facts["exit_code"]) == ("FAILED", 5)
    assert "nothing" in facts["detail"]


def test_why_a_run_has_ended_is_told(trainer: Any, begun: RunJournal, tmp_path: Path) -> None:
    trainer.stop_reason, trainer.stop_detail = StopReason.PREEMPTED, "SIGTERM has come."
    begun.stop(None)
    facts = read_journal(tmp_path)[-1].facts
    assert facts == {"reason": "PREEMPTED", "detail": "SIGTERM has come.", "exit_code": 143}


def test_a_process_that_is_about_to_be_ended_says_so(begun: RunJournal, tmp_path: Path) -> None:
    begun.give_up("It hangs.", 124)
    assert read_journal(tmp_path)[-1].facts["exit_code"] == 124


def test_secrets_are_not_written(begun: RunJournal, tmp_path: Path) -> None:
    begun.stop(ValueError("https://me:hunter2@host/?api_key=abc"))
    text = (tmp_path / JOURNAL_FILE).read_text()
    assert "hunter2" not in text and "abc" not in text


def test_a_full_disk_is_told_once_and_ends_nothing(
    begun: RunJournal, clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with zoo.full_disk((tmp_path / JOURNAL_FILE).stat().st_size + 10):
        for _ in range(3):
            clock.now += 60.0
            begun.row()
    begun.stop(None)
    assert kinds(tmp_path) == ["start", "stop"]
    warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1 and "cannot be written" in warnings[0].getMessage()


def test_a_line_that_a_kill_has_torn_is_passed_over_and_then_taken_off(
    trainer: Any, clock: Clock, begun: RunJournal, tmp_path: Path
) -> None:
    path = tmp_path / JOURNAL_FILE
    with open(path, "a") as file:
        file.write('{"kind": "led')
    assert kinds(tmp_path) == ["start"]
    RunJournal(trainer, clock).start(online=False)
    assert kinds(tmp_path) == ["start", "start"]


GOOD = {"kind": "ledger", "time": "2026-01-02T03:04:05+00:00", "step": 3, "seconds": {"step": 1}}


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1}, {"step": 2**40}, {"step": True}, {"time": "yesterday"}, {"seconds": []},
        {"seconds": {"step": "long"}}, {"kind": "stop"}, {"kind": "refused", "first": 1,
        "count": 1e99},
    ],
)  # fmt: skip
def test_a_line_that_no_run_writes_is_an_error_with_its_number(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    lines = [json.dumps(GOOD), json.dumps(GOOD | change), ""]
    (tmp_path / JOURNAL_FILE).write_text("\n".join(lines))
    with pytest.raises(JournalError, match="line 2"):
        read_journal(tmp_path)


def test_a_line_of_a_newer_version_is_passed_over(tmp_path: Path) -> None:
    lines = [json.dumps(GOOD), json.dumps(GOOD | {"kind": "eclipse", "moon": 1}), ""]
    (tmp_path / JOURNAL_FILE).write_text("\n".join(lines))
    assert kinds(tmp_path) == ["ledger"]


def test_more_than_a_run_writes_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / JOURNAL_FILE, "wb") as file:
        file.truncate(2**33)  # which takes no room on the disk
    with pytest.raises(JournalError, match="bytes"):
        read_journal(tmp_path)


def test_a_pipe_is_no_journal(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / JOURNAL_FILE)
    with pytest.raises(JournalError, match="no regular file"):
        read_journal(tmp_path)
