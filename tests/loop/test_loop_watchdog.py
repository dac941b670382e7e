"""Is a run that does not move on found in time, shown once, and one that does left alone?"""

import json
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from xtrainer.data import LoaderSource, Prefetcher
from xtrainer.errors import HangError
from xtrainer.launch import inquiry
from xtrainer.launch.inquiry import Found, Standing
from xtrainer.loop import Ledger, Limits, Watchdog, watchdog
from xtrainer.loop.watchdog import Limit, Quiet, verdict
from xtrainer.state import Progress
from xtrainer.step.programs import Programs

LIMITS = Limits(startup_s=60.0, hang_s=10.0, loader_s=20.0, validation_s=30.0, save_s=40.0)


class Ended(BaseException):
    """Stands for the end of the process."""


class Stage:
    """A trainer that does nothing, its watchdog, and the time that passes between two looks."""

    def __init__(self, folder: Path | None = None, limits: Limits = LIMITS, **config: Any) -> None:
        self.now = 0.0
        self.ledger = Ledger(lambda: self.now)
        self.progress = Progress(step=5)
        self.first_step = False
        self.thread: threading.Thread | None = None
        self.dog = Watchdog(self, limits, folder=folder, clock=lambda: self.now, **config)

    def pass_time(self, seconds: float, step_s: float = 0.5) -> None:
        """Looks every half second."""
        for _ in range(round(seconds / step_s)):
            self.now += step_s
            self.dog.look()


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[tuple[HangError, list[int]]]:
    """What processes were ended for, and which others were missing."""
    found: list[tuple[HangError, list[int]]] = []

    def leave(error: HangError, absent: Any = ()) -> None:
        found.append((error, list(absent)))
        raise Ended

    monkeypatch.setattr(watchdog.peers, "leave", leave)
    return found


@pytest.mark.parametrize(
    ("doing", "starting", "name", "seconds"),
    [
        ("step", False, "hang_timeout_s", 10.0),
        ("logging", False, "hang_timeout_s", 10.0),
        ("callbacks", False, "hang_timeout_s", 10.0),
        ("idle", False, "hang_timeout_s", 10.0),
        ("validation", False, "validation_timeout_s", 30.0),
        ("compile", False, "startup_timeout_s", 60.0),
        ("restore", False, "startup_timeout_s", 60.0),
        ("init", False, "startup_timeout_s", 60.0),
        ("idle", True, "startup_timeout_s", 60.0),
        ("step", True, "startup_timeout_s", 60.0),
        ("callbacks", True, "hang_timeout_s", 10.0),
        # What raises an error of its own at its limit comes first.
        ("data_wait", False, "loader_timeout_s", 20.0 * 1.1 + 2.0),
        ("checkpoint", True, "save_timeout_s", 40.0 * 1.1 + 2.0),
    ],
)
def test_each_kind_of_work_has_a_limit(
    doing: str, starting: bool, name: str, seconds: float
) -> None:
    limit = LIMITS.of(doing, starting)
    assert limit.name == name
    assert limit.is_passed(seconds) and not limit.is_passed(seconds - 0.01)


def test_a_limit_of_zero_or_less_is_none() -> None:
    limits = Limits(hang_s=0.0, save_s=-1.0, loader_s=3.0)
    assert limits.of("step").seconds == limits.of("checkpoint").seconds == math.inf
    assert not limits.of("step").is_passed(1e9)
    assert limits.longest_s() > 1e6
    assert limits.interval_s() == pytest.approx(0.3)


def test_looks_are_ten_within_the_shortest_limit_and_a_second_apart_at_most() -> None:
    assert Limits().interval_s() == 1.0
    assert Limits(validation_s=2.0).interval_s() == pytest.approx(0.2)


def test_a_step_that_does_not_end_ends_the_process_within_its_limit(
    ends: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(tmp_path / "run")
    with stage.ledger.spent("step"), inquiry.speaking(stage.dog.describe):
        stage.pass_time(9.5)
        assert ends == []
        with pytest.raises(Ended):
            stage.pass_time(2.5)
    assert stage.now <= 12.0
    ((error, missing),) = ends
    assert isinstance(error, TimeoutError) and error.exit_code == 124 and missing == []
    line = "Nothing has moved on for longer than hang_timeout_s=10: process 0 is at step 5, in "
    assert str(error).startswith(f"{line}'step' for 10.0 s.")
    assert "TrainerConfig(hang_timeout_s=...)" in str(error)
    (record,) = [one for one in caplog.records if one.levelname == "ERROR"]
    assert str(error) in record.getMessage() and ", in pass_time: " in record.getMessage()
    saved = json.loads((tmp_path / "run" / "crash_0.json").read_text())
    assert saved["reason"] == str(error)
    assert (saved["doing"], saved["step"], saved["limit_s"]) == ("step", 5, 10.0)
    name, lines = next(iter(saved["stacks"].items()))
    assert name.startswith("MainThread") and any("pass_time" in one for one in lines)


@pytest.mark.parametrize("moves", ["step", "beat", "account"])
def test_whatever_moves_on_is_left_alone(ends: list[Any], moves: str) -> None:
    stage = Stage()
    with stage.ledger.spent("validation"):
        for _ in range(10):
            if moves == "step":
                stage.progress.step += 1
            if moves == "beat":
                stage.ledger.beat()
            if moves == "account":
                with stage.ledger.spent("logging"):
                    pass
            stage.pass_time(29.0)
    assert ends == []


def test_time_in_which_the_process_was_stopped_does_not_count(ends: list[Any]) -> None:
    stage = Stage()
    with stage.ledger.spent("step"):
        stage.pass_time(3.0)
        stage.now += 10_000.0
        stage.dog.look()
        stage.pass_time(4.5)
        assert ends == []
        with pytest.raises(Ended):
            stage.pass_time(2.0)


def test_quiet_begins_anew_with_every_change() -> None:
    quiet = Quiet(1.0)
    assert [quiet.look(mark, now) for mark, now in (("a", 0.0), ("b", 1.0), ("b", 2.5))] == [
        0.0,
        0.0,
        1.5,
    ]


def test_a_hang_is_reported_once_and_the_run_goes_on(
    ends: list[Any], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    stage = Stage(tmp_path, on_hang="report")
    with stage.ledger.spent("step"):
        stage.pass_time(40.0)
        assert [one.levelname for one in caplog.records] == ["ERROR"]
        stage.progress.step += 1
        stage.pass_time(1.0)
        assert caplog.messages[-1] == "The run goes on, 30.0 s after it was reported to hang."
        stage.pass_time(11.0)
    assert [one.levelname for one in caplog.records] == ["ERROR", "WARNING", "ERROR"]
    assert ends == []
    assert (tmp_path / "crash_0.json").exists()


def test_a_folder_that_cannot_be_written_does_not_save_the_run(
    ends: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").touch()
    stage = Stage(tmp_path / "run")
    with pytest.raises(Ended):
        stage.pass_time(12.0)
    assert len(ends) == 1
    assert "could not be written" in caplog.text


# What the training thread waits in.


@pytest.fixture
def endless() -> Iterator[threading.Event]:
    """What others wait for; it comes when the test is over."""
    event = threading.Event()
    yield event
    event.set()


def looked_at(stage: Stage, work: Any) -> Standing:
    """Returns what a watchdog sees once a thread that trains is within ``work``."""
    entered = threading.Event()

    def train() -> None:
        stage.dog._trains = threading.get_ident()
        with stage.ledger.spent("step"):
            entered.set()
            work()

    stage.thread = threading.Thread(target=train, daemon=True)
    stage.thread.start()
    entered.wait(60)
    end = time.monotonic() + 10.0
    while time.monotonic() < end:
        stage.dog.look()
        if stage.dog._standing.doing != "step":
            break
        time.sleep(0.02)
    return stage.dog._standing


@pytest.mark.parametrize("inline", [False, True])
def test_a_loader_that_hangs_is_judged_by_its_own_limit(
    endless: threading.Event, inline: bool
) -> None:
    def batches() -> Iterator[np.ndarray]:
        endless.wait(60)
        yield np.zeros(2)

    source = LoaderSource(batches(), "train")
    source.is_quick = inline
    ahead = Prefetcher(source, jax.device_put, may_inline=inline)
    stage = Stage()
    seen = looked_at(stage, lambda: next(ahead))
    assert seen.doing == "data_wait" and seen.limit_s == pytest.approx(24.0)
    assert stage.dog._limit.name == "loader_timeout_s"
    endless.set()
    assert stage.thread is not None
    stage.thread.join(10)
    ahead.close()


def test_a_program_that_is_waited_for_is_judged_as_compilation(endless: threading.Event) -> None:
    programs = Programs("train_step")
    program: Future[Any] = Future()
    programs._found["key"] = (program, {})
    stage = Stage()
    seen = looked_at(stage, lambda: programs.get("key", None, {}))
    program.set_result(None)
    assert seen.doing == "compile" and stage.dog._limit.name == "startup_timeout_s"


# Several processes.


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the question of a watchdog gives, and how often it was asked."""
    found = SimpleNamespace(found=Found({}), count=0, ended=0)

    def inquire() -> Found | None:
        found.count += 1
        return found.found

    def end() -> None:
        found.ended += 1

    monkeypatch.setattr(watchdog, "inquire", inquire)
    monkeypatch.setattr(watchdog, "end_question", end)
    return found


OWN = Standing(doing="step", for_s=10.0, limit_s=10.0, step=5)


def test_a_process_that_is_missing_is_named_and_not_waited_for(
    ends: list[Any], asked: SimpleNamespace
) -> None:
    asked.found = Found({0: OWN}, {1: "pid 7 on b"})
    with pytest.raises(Ended):
        Stage().pass_time(12.0)
    ((error, missing),) = ends
    assert missing == [1]
    assert "Process 1 (pid 7 on b) is missing: it is stopped, dead or cut off." in str(error)


def test_the_process_that_is_behind_is_named(ends: list[Any], asked: SimpleNamespace) -> None:
    other = Standing(doing="callbacks", for_s=10.0, limit_s=10.0, step=3)
    asked.found = Found({0: OWN, 1: other})
    with pytest.raises(Ended):
        Stage().pass_time(12.0)
    assert "Process 1 is behind: at step 3, in 'callbacks' for 10.0 s." in str(ends[0][0])


def test_a_process_that_is_behind_itself_says_so() -> None:
    own = Standing(doing="callbacks", for_s=10.0, step=3)
    text = verdict(0, Limit("hang_timeout_s", 10.0), Found({0: own, 1: OWN}))
    assert text.endswith("in 'callbacks' for 10.0 s. It is behind: the others wait for it.")


def test_who_waits_for_a_process_within_its_limit_waits_on_and_asks_again(
    ends: list[Any], asked: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    other = Standing(doing="compile", for_s=10.0, limit_s=60.0, step=5)
    asked.found = Found({0: OWN, 1: other})
    stage = Stage()
    stage.pass_time(14.0)
    assert (ends, asked.count, asked.ended) == ([], 1, 1)
    assert "waits for process 1, which is at step 5, in 'compile' for 10.0 s" in caplog.text
    stage.pass_time(5.0)
    assert asked.count == 1
    stage.pass_time(2.0)
    assert asked.count == 2  # after its own limit once more, or the other's where that is sooner
    asked.found = Found({0: OWN, 1: Standing(doing="compile", for_s=59.0, limit_s=60.0, step=5)})
    with pytest.raises(Ended):
        stage.pass_time(11.0)


def test_who_may_only_be_waiting_excuses_nobody(ends: list[Any], asked: SimpleNamespace) -> None:
    other = Standing(doing="validation", for_s=10.0, limit_s=30.0, step=5)
    asked.found = Found({0: OWN, 1: other})
    with pytest.raises(Ended):
        Stage().pass_time(12.0)


def test_a_run_that_goes_on_while_the_others_are_asked_is_left_alone(
    ends: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage()

    def inquire() -> Found:
        stage.progress.step += 1
        return Found({0: OWN}, {1: "pid 7 on b"})

    monkeypatch.setattr(watchdog, "inquire", inquire)
    stage.pass_time(12.0)
    assert (ends, caplog.messages) == ([], [])


def test_while_another_process_asks_nothing_is_reported_here(
    ends: list[Any],
    asked: SimpleNamespace,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watchdog, "_SHOW_S", 0.01)
    asked.found = None
    stage = Stage(on_hang="report")
    stage.pass_time(40.0)
    assert (ends, asked.count, asked.ended, caplog.messages) == ([], 1, 0, [])


def test_the_failure_of_another_process_is_recorded_before_it_ends_this_one(
    tmp_path: Path,
) -> None:
    stage = Stage(tmp_path)
    stage.pass_time(1.0)
    with stage.dog:
        (call,) = watchdog.peers._watcher().last_words
        call("Process 1 has failed")
    assert watchdog.peers._watcher().last_words == []
    saved = json.loads((tmp_path / "crash_0.json").read_text())
    assert saved["reason"] == "Process 1 has failed" and saved["stacks"]


@pytest.mark.parametrize(("doing", "flushed"), [("step", 1), ("logging", 0)])
def test_rows_are_written_before_the_end_but_not_by_a_logger_that_hangs(
    ends: list[Any], doing: str, flushed: int
) -> None:
    calls: list[int] = []
    stage = Stage(flush=lambda: calls.append(len(ends)))
    with stage.ledger.spent(doing), pytest.raises(Ended):
        stage.pass_time(12.0)
    assert calls == [0] * flushed
    stage = Stage(flush=lambda: 1 // 0)
    with stage.ledger.spent(doing), pytest.raises(Ended):
        stage.pass_time(12.0)


@pytest.mark.parametrize(("error", "recorded"), [(ValueError, True), (KeyboardInterrupt, False)])
def test_an_error_of_one_process_of_several_is_recorded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
    recorded: bool,
) -> None:
    monkeypatch.setattr(watchdog, "num_processes", lambda: 2)
    with pytest.raises(error), Stage(tmp_path).dog:
        raise error("the loader broke here")
    assert (tmp_path / "crash_0.json").exists() == recorded
    if recorded:
        reason = json.loads((tmp_path / "crash_0.json").read_text())["reason"]
        assert reason.startswith("Traceback") and "ValueError: the loader broke here" in reason


def test_an_error_of_a_process_alone_is_its_own_record(tmp_path: Path) -> None:
    with pytest.raises(ValueError), Stage(tmp_path).dog:
        raise ValueError("the loader broke here")
    assert list(tmp_path.iterdir()) == []


# The thread.


def test_the_thread_looks_by_itself_and_ends_with_the_run(
    ends: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = threading.Event()
    monkeypatch.setattr(watchdog.peers, "leave", lambda *args, **kwargs: left.set())
    stage = Stage(limits=Limits(hang_s=0.3))
    stage.dog._clock = time.monotonic
    with stage.dog:
        assert "xtrainer-watchdog" in {thread.name for thread in threading.enumerate()}
        assert inquiry._speaker().standing().doing == "idle"
        assert left.wait(10.0)
    assert "xtrainer-watchdog" not in {thread.name for thread in threading.enumerate()}
    assert inquiry._speaker().describe is None


def test_an_error_in_a_look_does_not_end_the_looking(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(limits=Limits(hang_s=0.1))
    looks, again = [], threading.Event()

    def look() -> None:
        looks.append(1)
        if len(looks) == 2:  # the first is the one at the beginning
            raise RuntimeError("broken")
        if len(looks) == 3:
            again.set()

    monkeypatch.setattr(stage.dog, "look", look)
    with stage.dog:
        assert again.wait(10.0)
    assert "could not look after the run" in caplog.text


def test_no_secret_of_an_error_is_recorded(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    with stage.dog:
        (call,) = watchdog.peers._watcher().last_words
        call("401 for https://user:canary-1@host/x?api_key=canary-2")
    saved = (tmp_path / "crash_0.json").read_text()
    assert "canary" not in saved and "401 for https://***@host/x" in saved
