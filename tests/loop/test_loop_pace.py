"""Is a process that holds the others up named, once, and is nobody else blamed?"""

import logging
from typing import Any

import pytest

from xtrainer.loop import Ledger, pace
from xtrainer.loop.pace import Pace, PaceWatch, slowest


def spent(own: float, step: float, account: str = "data_wait") -> Pace:
    return Pace(own_s={"data_wait": 0.0, account: own}, step_s=step, place="pid 7 on host")


FAST = spent(0.1, 9.9)


@pytest.mark.parametrize(
    ("paces", "process"),
    [
        ([FAST, spent(9.0, 1.0)], 1),
        ([spent(9.0, 1.0), FAST, FAST, FAST], 0),
        ([FAST, FAST, spent(8.0, 0.0, "callbacks"), FAST], 2),
        ([FAST, spent(4.9, 5.1)], None),  # it may do that while its device computes
        ([spent(9.0, 1.0), spent(9.5, 0.5)], None),  # the loaders of all are slow
        ([spent(3.0, 7.0), spent(8.0, 2.0)], None),
        ([FAST, FAST], None),
        ([spent(0.0, 0.0), spent(0.0, 0.0)], None),
        ([spent(9.0, 1.0)], None),
        ([], None),
    ],
)
def test_who_spends_its_time_alone_while_the_others_wait_is_slow(
    paces: list[Pace], process: int | None
) -> None:
    found = slowest(dict(enumerate(paces)))
    assert (found and found.process) == process


def test_the_message_names_the_process_its_place_and_what_it_does() -> None:
    text = str(slowest({0: FAST, 1: spent(9.0, 1.0, "callbacks"), 2: spent(0.2, 9.8)}))
    assert "Process 1 (pid 7 on host) holds the others up: it spends 90% of its time" in text
    assert "most of it in 'callbacks', the others 2%" in text


class Stage:
    """The main process of two; the other one says what the test lets it say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, processes: int = 2) -> None:
        self.now = 0.0
        self.first_step = False
        self.ledger = Ledger(lambda: self.now)
        self.said: dict[int, Any] = {}
        self.put: list[Any] = []
        monkeypatch.setattr(pace, "num_processes", lambda: processes)
        monkeypatch.setattr(pace, "runtime_process", lambda: 0)
        monkeypatch.setattr(pace.board, "put_up", self._put_up)
        monkeypatch.setattr(pace.board, "read_all", lambda topic: self.said)
        self.watch = PaceWatch(self, window_s=10.0, clock=lambda: self.now)

    def _put_up(self, topic: str, value: Any) -> None:
        self.put.append(value)
        self.said[0] = value

    def window(self, **accounts: float) -> None:
        """Spends the seconds of a window, looking every second."""
        for account, seconds in accounts.items():
            for _ in range(int(seconds)):
                with self.ledger.spent(account):
                    self.now += 0.5
                    self.watch.look()  # within an account, as it happens
                    self.now += 0.5
        self.watch.look()


def other(own: float, step: float) -> dict[str, Any]:
    return {"own_s": {"data_wait": own}, "step_s": step, "place": "pid 8 on host"}


def test_a_slow_process_is_named_once_until_it_keeps_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "xtrainer")
    stage = Stage(monkeypatch)
    for own_s in (1.0, 9.0, 9.0, 1.0, 9.0):
        stage.said[1] = other(own_s, 10.0 - own_s)
        stage.window(step=10)
    told = [record.getMessage().partition(" (")[0] for record in caplog.records]
    assert told == ["Process 1", "Process 1 keeps up with the others again.", "Process 1"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "WARNING"]


def test_what_a_process_says_is_its_last_window(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch)
    stage.window(compile=3, data_wait=7)
    stage.window(data_wait=2, step=3, validation=2, checkpoint=2, callbacks=1)
    stage.window(logging=4, step=6)
    assert len(stage.put) == 2
    for said, (own, step) in zip(stage.put, ((7.0, 0.0), (3.0, 3.0)), strict=True):
        assert sum(said["own_s"].values()) == pytest.approx(own, abs=0.5)
        assert said["step_s"] == pytest.approx(step, abs=0.5)


def test_before_the_first_step_and_alone_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch)
    stage.first_step = True
    stage.window(compile=30)
    alone = Stage(monkeypatch, processes=1)
    alone.window(step=30)
    assert stage.put == alone.put == []
