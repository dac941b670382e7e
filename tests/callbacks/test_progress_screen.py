"""What stands on a real terminal (a pseudo-terminal, read by pyte) while lines are at its foot?"""

import fcntl
import logging
import os
import pty
import select
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import probes
import pyte
import pytest

import xtrainer as xt
from xtrainer.callbacks import ProgressBar
from xtrainer.callbacks.progress_facts import Facts
from xtrainer.callbacks.progress_screen import Screen, terminal
from xtrainer.callbacks.progress_views import TerminalView
from xtrainer.launch import exits

HIDES_CURSOR = b"\x1b[?25l"
MARK = b"\x1b[?9999h"
"""A mode that no terminal knows."""


class Tty:
    """A pseudo-terminal and what a person sees on it.

    Attributes:
        out: What a program writes to.
        raw: All bytes that were written.
    """

    def __init__(self, columns: int = 100, rows: int = 24) -> None:
        self._master, slave = pty.openpty()
        self.out: TextIO = os.fdopen(slave, "w", encoding="utf-8")
        self.raw = b""
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self._reader: threading.Thread | None = None
        self._over, self._lock = threading.Event(), threading.Lock()
        self.take: Callable[[], None] = lambda: None
        self.screen = Screen(self.out)
        self.resize(columns, rows)

    def resize(self, columns: int, rows: int = 24) -> None:
        """Changes the size, as dragging a window does."""
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self.out.fileno(), termios.TIOCSWINSZ, size)
        self._screen.resize(rows, columns)

    def read(self) -> None:
        """Takes what has come so far."""
        with self._lock:
            while select.select([self._master], [], [], 0)[0]:
                data = os.read(self._master, 65536)
                self.raw += data
                self._stream.feed(data)

    def read_all(self) -> None:
        """Takes all that was written until now; the kernel passes it on when it has time to."""
        marks = self.raw.count(MARK)
        os.write(self.out.fileno(), MARK)
        end = time.monotonic() + 30.0
        while self.raw.count(MARK) == marks:
            assert time.monotonic() < end, "what was written does not come"
            self.read()
            time.sleep(0.001)

    def lines(self) -> list[str]:
        """Returns the lines on the screen, empty ones at the end left out."""
        self.read_all()
        text = "\n".join(line.rstrip() for line in self._screen.display)
        return text.rstrip("\n").split("\n")

    @property
    def cursor(self) -> tuple[int, int]:
        """The row and column of the cursor."""
        self.read_all()
        return self._screen.cursor.y, self._screen.cursor.x

    def start_reading(self) -> None:
        """Reads in a thread from here on."""

        def work() -> None:
            while not self._over.wait(0.005):
                self.read()

        self._reader = threading.Thread(target=work, daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Ends it."""
        self._over.set()
        if self._reader is not None:
            self._reader.join(10)
        self.read()
        self.out.close()
        os.close(self._master)


@pytest.fixture
def tty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tty]:
    """Gives a terminal; a test makes it stdout and stderr, which pytest sets before each test."""
    monkeypatch.setenv("TERM", "xterm-256color")
    found = Tty()
    with monkeypatch.context() as patch:

        def take() -> None:
            patch.setattr("sys.stdout", found.out)
            patch.setattr("sys.stderr", found.out)

        found.take = take
        yield found
        found.screen.close()
    found.close()


def begin(tty: Tty, clock: Callable[[], float] = time.monotonic) -> Screen:
    """Returns an open screen on a terminal."""
    tty.take()
    tty.screen = Screen(tty.out, clock)
    tty.screen.open()
    return tty.screen


def test_lines_stand_below_an_empty_one_where_the_cursor_rests(tty: Tty) -> None:
    screen = begin(tty)
    screen.draw(["one", "two"])
    assert tty.lines() == ["", "one", "two"]
    assert tty.cursor == (0, 0)


def test_a_drawing_takes_the_place_of_the_one_before(tty: Tty) -> None:
    screen = begin(tty)
    screen.draw(["one", "two", "three"])
    screen.draw(["1"])
    assert tty.lines() == ["", "1"]


def test_what_is_printed_stands_above(tty: Tty) -> None:
    screen = begin(tty)
    screen.draw(["a foot that is long", "of two lines"])
    print("a print\nof three\nlines")
    print("to stderr", file=sys.stderr)
    printed = ["a print", "of three", "lines", "to stderr"]
    assert tty.lines() == [*printed, "", "a foot that is long", "of two lines"]


def test_handlers_that_were_made_before_pass_through(tty: Tty) -> None:
    handler = logging.StreamHandler(tty.out)
    log = logging.getLogger("test_progress_screen")
    log.addHandler(handler)
    screen = begin(tty)
    try:
        screen.draw(["a foot that is long"])
        log.warning("logged")
        assert tty.lines() == ["logged", "", "a foot that is long"]
        screen.close()
        assert handler.stream is tty.out
    finally:
        log.removeHandler(handler)


def test_a_line_that_is_not_ended_is_left_in_peace(tty: Tty) -> None:
    now = [0.0]
    screen = begin(tty, clock=lambda: now[0])
    screen.draw(["foot"])
    print("10%", end="")
    screen.draw(["foot"])
    print("\r20%", end="")
    assert tty.lines() == ["20%"]
    now[0] = 60.0  # nobody goes on with it
    screen.draw(["foot"])
    assert tty.lines() == ["20%", "", "foot"]


def test_what_others_write_past_the_screen_is_kept(tty: Tty) -> None:
    screen = begin(tty)
    screen.draw(["foot"])
    os.write(tty.out.fileno(), b"from a library\n")
    screen.draw(["foot"])
    assert tty.lines() == ["from a library", "", "foot"]


def test_at_the_bottom_of_the_terminal_all_that_was_printed_is_kept(tty: Tty) -> None:
    screen = begin(tty)
    tty.resize(100, 6)
    for number in range(20):
        screen.draw(["foot", f"{number}"])
        print(f"line {number}")
    assert tty.lines() == ["line 17", "line 18", "line 19", "", "foot", "19"]


def test_a_terminal_that_becomes_narrow_keeps_no_rest_of_wide_lines(tty: Tty) -> None:
    screen = begin(tty)
    view = TerminalView(screen)
    facts = Facts(step=5, total=10, epoch=1, loss=1.0, validation=(5, {"loss": 1.0}))
    view.draw(facts)
    tty.resize(40)
    view.draw(facts)
    lines = tty.lines()
    assert len(lines) == 4 and max(map(len, lines)) < 40
    assert lines[2:] == ["5/10 · epoch 1 · loss 1", "validation at step 5: loss 1"]


@pytest.mark.parametrize("columns", [20, 40, 80, 100, 300])
def test_no_line_is_wider_than_the_terminal(tty: Tty, columns: int) -> None:
    screen = begin(tty)
    tty.resize(columns)
    view = TerminalView(screen)
    metrics = {"loss": 1.0, "a_metric_with_a_very_long_name_that_has_no_room": 2.0}
    facts = Facts(title="validation " * 9, step=5, total=10**9, loss=1.0, validation=(5, metrics))
    view.draw(facts)
    lines = tty.lines()
    assert lines[0] == "" and tty.cursor == (0, 0)
    assert len(lines) == 1 + len(view.lines(facts, columns - 1))


def test_a_low_terminal_shows_the_first_lines(tty: Tty) -> None:
    screen = begin(tty)
    tty.resize(40, 4)
    view = TerminalView(screen)
    view.draw(Facts(step=5, total=10, loss=1.0, validation=(5, {"loss": 1.0}), refused=3))
    assert len(tty.lines()) == 3 and tty.lines()[1].startswith("train: ")


def test_the_streams_are_given_back(tty: Tty) -> None:
    screen = begin(tty)
    assert sys.stdout is not tty.out and sys.stdout.fileno() == tty.out.fileno()
    screen.close()
    assert sys.stdout is sys.stderr is tty.out


def test_what_was_handed_out_meanwhile_still_writes_afterwards(tty: Tty) -> None:
    screen = begin(tty)
    kept = sys.stderr
    screen.close()
    print("late", file=kept)
    assert tty.lines() == ["late"]


def test_a_second_run_does_not_draw_on_the_same_terminal(tty: Tty) -> None:
    screen = begin(tty)
    assert terminal() is None
    screen.close()
    assert terminal() is tty.out


def test_a_terminal_without_movements_is_none(tty: Tty, monkeypatch: pytest.MonkeyPatch) -> None:
    tty.take()
    monkeypatch.setenv("TERM", "dumb")
    assert terminal() is None


# A whole run on it.

BAR = xt.ProgressBarConfig(min_interval_s=0.0)


def run(stage: probes.Repeatable, tty: Tty, *callbacks: Any) -> None:
    tty.take()
    tty.start_reading()
    trainer = stage.begin(BAR, *callbacks, every=2)
    trainer.train_model(probes.numbered(6), probes.numbered(2, first=100), num_epochs=1)


def test_a_run_leaves_one_line_and_what_was_printed(stage: probes.Repeatable, tty: Tty) -> None:
    run(stage, tty, probes.acting("on_training_step", lambda t, *_: print(f"at {t.global_step}")))
    lines = tty.lines()
    assert lines[:6] == [f"at {step}" for step in range(1, 7)]
    assert len(lines) == 7 and lines[6].startswith("train: 100% 6/6 steps in ")
    assert tty.cursor == (7, 0)
    assert HIDES_CURSOR not in tty.raw


def test_an_error_leaves_a_clean_terminal(stage: probes.Repeatable, tty: Tty) -> None:
    def fail(trainer: Any, *args: Any) -> None:
        if trainer.global_step == 3:
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        run(stage, tty, probes.acting("on_training_step", fail))
    (line,) = tty.lines()
    assert line.startswith("train: 50% 3/6 steps in ") and line.endswith(", failed")
    assert sys.stderr is tty.out and HIDES_CURSOR not in tty.raw


def test_a_program_that_ends_at_once_takes_its_lines_away(
    stage: probes.Repeatable, tty: Tty
) -> None:
    seen: list[list[str]] = []

    def leave(trainer: Any, *args: Any) -> None:
        if trainer.global_step == 3:
            for farewell in exits.watch_exit().farewells:
                farewell()
            time.sleep(0.1)  # which the thread would use
            seen.append(tty.lines())

    run(stage, tty, probes.acting("on_training_step", leave))
    assert not any("steps/s" in line or "━" in line for line in seen[0])
    assert exits.watch_exit().farewells == []


def fill(tty: Tty) -> None:
    """Writes to a terminal until it takes no more, and a drawing has to wait."""
    other = os.open(os.ttyname(tty.out.fileno()), os.O_WRONLY | os.O_NONBLOCK)
    refused = 0
    while refused < 20:  # the kernel makes room once or twice, when it has time to
        try:
            os.write(other, b"x\n")
            refused = 0
        except BlockingIOError:
            refused += 1
            time.sleep(0.01)
    os.close(other)


def test_a_terminal_that_nobody_reads_does_not_hold_up_the_end(
    stage: probes.Repeatable, tty: Tty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xtrainer.callbacks.progress_bar._JOIN_S", 0.1)
    tty.take()
    trainer = stage.begin(BAR)
    (bar,) = trainer.callbacks
    assert isinstance(bar, ProgressBar)
    bar.on_training_start()
    thread = bar._thread
    assert thread is not None
    fill(tty)
    bar.finalize("completed")
    assert thread.is_alive() and sys.stderr is tty.out
    tty.start_reading()
    thread.join(10)
    assert not thread.is_alive()
