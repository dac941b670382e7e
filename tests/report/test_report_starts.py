"""Is it known what each start of a run has taken, and what of it was lost?"""

import os
import socket
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from report_zoo import BEGAN, KILLED, SAVED, START, STOP, line

from xtrainer.report import RunRecord
from xtrainer.report.run import Row
from xtrainer.report.starts import downtime, goodput, ledger_of, mfu, starts_of
from xtrainer.report.summary import status_of, summarize


def starts(lines: list[Any], rows: list[Row] | None = None) -> list[Any]:
    return starts_of(RunRecord(Path("run"), rows=rows or [], lines=lines))


def test_steps_between_the_newest_sign_and_the_next_start_are_lost() -> None:
    first, second = starts(KILLED)
    assert (first.last_step, first.lost_steps, first.stop) == (20, 10, None)
    assert (second.begin.step, second.last_step, second.lost_steps) == (10, 40, 0)
    assert first.kept_until == BEGAN + timedelta(seconds=14)


def test_a_row_is_a_sign_of_a_start_as_well() -> None:
    row = Row("train", 24, 1, BEGAN + timedelta(seconds=30), {"loss": 1.0})
    first, _ = starts(KILLED, [row])
    assert (first.last_step, first.lost_steps) == (24, 14)
    assert first.last_time == row.time


def test_the_seconds_of_all_starts_are_summed_by_account() -> None:
    found = starts(KILLED)
    assert ledger_of(found) == {
        "init": 4.0, "compile": 3.0, "step": 50.0, "checkpoint": 1.0, "restore": 1.0, "idle": 1.0,
    }  # fmt: skip


def test_goodput_counts_the_steps_that_were_kept() -> None:
    # 20 steps in 20 s, half of them lost, and 30 in 30 s, of 26 + 34 s.
    assert goodput(starts(KILLED)) == pytest.approx((10 + 30) / 60)


def test_mfu_is_what_was_computed_of_what_the_chips_could() -> None:
    # 50 steps of 312 TFLOP in 50 s on two chips of 312 TFLOP/s.
    assert mfu(starts(KILLED)) == pytest.approx(0.5)


def test_mfu_is_not_known_where_the_chip_is_not() -> None:
    other = START | {"devices": {"kind": "cpu", "count": 2}}
    assert mfu(starts([replace(KILLED[0], facts=other), *KILLED[1:]])) is None


def test_the_time_in_which_nothing_ran_ends_when_the_next_process_begins() -> None:
    assert downtime(starts(KILLED)) == timedelta(seconds=100 - 3 - 24)


def test_steps_that_a_run_has_gone_back_over_are_lost() -> None:
    facts = {"from_step": 25, "reason": "It has spiked.", "skipped_batches": 5}
    lines = [
        line("start", 0, 0, START),
        line("ledger", 10, 25, step=25.0),
        line("rollback", 11, 20, facts, step=25.0),
        line("stop", 20, 30, STOP, step=35.0),
    ]
    (only,) = starts(lines)
    assert (only.last_step, only.lost_steps, only.steps_taken) == (30, 5, 35)
    assert only.lost_s == pytest.approx(5.0)


def test_a_journal_that_was_cut_begins_with_its_first_start() -> None:
    assert len(starts(KILLED[1:])) == 1


@pytest.mark.parametrize(
    ("facts", "word", "tone"),
    [
        (STOP, "finished", "good"),
        (STOP | {"reason": "PREEMPTED", "exit_code": 143}, "stopped", "fair"),
        (STOP | {"reason": "NONFINITE", "exit_code": 3}, "stopped", "bad"),
        (STOP | {"reason": "FAILED", "detail": "KeyError('a')"}, "failed", "bad"),
        (STOP | {"reason": "ABDUCTED"}, "stopped", "fair"),
    ],
)
def test_how_a_run_stands_is_what_its_last_line_says(
    facts: dict[str, Any], word: str, tone: str
) -> None:
    status = status_of(starts([KILLED[0], line("stop", 9, 5, facts)]))
    assert (status.word, status.tone) == (word, tone)
    assert facts["detail"] in status.text


def test_a_process_that_is_there_still_runs() -> None:
    own = START | {"host": socket.gethostname(), "pid": os.getpid()}
    assert status_of(starts([line("start", 0, 0, own)])).word == "running"
    assert status_of(starts([line("start", 0, 0, START)])).word == "ended without a word"


def test_the_summary_is_json_with_all_of_it() -> None:
    values = {20: 2.0, 30: 3.0, 40: float("nan")}
    time = BEGAN + timedelta(seconds=133)
    rows = [Row("val", step, 1, time, {"loss": value}) for step, value in values.items()]
    found = summarize(RunRecord(Path("run"), rows=rows, lines=KILLED)).to_json()
    assert found["status"] == "finished"
    assert (found["starts"], found["lost_steps"], found["wall_s"]) == (2, 10, 134.0)
    (loss,) = found["results"]  # type: ignore[misc]
    assert (loss["last"], loss["best"], loss["best_step"]) == ("nan", 2.0, 20)  # type: ignore[index]


def test_refused_steps_are_counted_by_rows_and_by_the_journal() -> None:
    facts = {"first": 3, "count": 2}
    lines = [KILLED[0], line("refused", 5, 4, facts), line("checkpoint", 6, 4, SAVED)]
    assert summarize(RunRecord(Path("run"), lines=lines)).refused_steps == 2
    row = Row("train", 9, 1, BEGAN, {"skipped_steps": 4.0})
    assert summarize(RunRecord(Path("run"), rows=[row], lines=lines)).refused_steps == 4
