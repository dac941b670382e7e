"""Is a signal heard at once, a second one obeyed, and all as it was before afterwards?"""

import ctypes
import hashlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from xtrainer.launch import interrupts
from xtrainer.launch.interrupts import Interrupts, asked_to_end, forget_signals

WAIT_S = 10.0
TERM, INT, USR1, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP
ALL = (TERM, INT, USR1, HUP)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Fails a test after which a signal is handled otherwise than before it."""
    before = [signal.getsignal(number) for number in ALL]
    yield
    forget_signals()
    assert [signal.getsignal(number) for number in ALL] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert "xtrainer-signals" not in [thread.name for thread in threading.enumerate()]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", ALL)
def test_the_first_signal_is_told_once(number: int) -> None:
    told: list[int] = []
    with Interrupts(told.append) as found:
        assert found.asked is None
        send(number)
        until(lambda: told != [])
        assert (told, found.asked) == ([number], number)
    assert asked_to_end() == (None if number == INT else number)


def test_it_is_heard_while_the_main_thread_is_in_a_long_call() -> None:
    heard: list[float] = []
    with Interrupts(lambda number: heard.append(time.monotonic())):
        threading.Timer(0.05, send, [TERM]).start()
        # Lets other threads run, but no handler of Python.
        hashlib.pbkdf2_hmac("sha256", b"x", b"y", 1_000_000)
        ended = time.monotonic()
        until(lambda: heard != [])
    assert heard[0] < ended


@pytest.mark.parametrize(("number", "code"), [(TERM, 143), (INT, 130), (USR1, 143), (HUP, 143)])
def test_a_second_one_leaves_with_the_code_of_the_signal(number: int, code: int) -> None:
    left: list[int] = []
    with Interrupts(leave=left.append) as found:
        send(number)
        until(lambda: found.asked is not None)
        time.sleep(interrupts._SAME_S + 0.05)
        send(number)
        until(lambda: left != [])
    assert left == [code]


def test_one_that_is_sent_twice_by_different_senders_is_one() -> None:
    left: list[int] = []
    with Interrupts(leave=left.append) as found:
        for _ in range(5):
            send(TERM)
            time.sleep(0.01)
        until(lambda: found.asked is not None)
    assert left == []


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(INT, signal.SIG_IGN)
    try:
        with Interrupts() as found:
            send(INT)
            send(TERM)
            until(lambda: found.asked is not None)
            assert found.asked == TERM
        assert signal.getsignal(INT) is signal.SIG_IGN
    finally:
        signal.signal(INT, before)


def test_a_handler_that_was_there_before_is_called_and_is_back_afterwards() -> None:
    called: list[int] = []
    before = signal.signal(TERM, own := lambda number, frame: called.append(number))
    try:
        with Interrupts() as found:
            send(TERM)
            until(lambda: found.asked == TERM and called == [TERM])
        send(TERM)
        assert called == [TERM, TERM]
        assert signal.getsignal(TERM) is own
    finally:
        signal.signal(TERM, before)


def test_a_handler_that_is_put_there_meanwhile_is_called_too_and_stays() -> None:
    called: list[int] = []
    own = lambda number, frame: called.append(number)  # noqa: E731
    with Interrupts() as found:
        before = signal.getsignal(TERM)
        assert before == found._handle
        signal.signal(TERM, own)
        send(TERM)
        until(lambda: found.asked == TERM and called == [TERM])
    assert signal.getsignal(TERM) is own
    signal.signal(TERM, signal.SIG_DFL)


def test_a_handler_that_python_cannot_see_is_back_afterwards() -> None:
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    before = libc.signal(USR1, 1)  # to ignore it; Python believes that it would end the process
    try:
        with Interrupts() as found:
            send(USR1)
            until(lambda: found.asked == USR1)
        send(USR1)
        assert libc.signal(USR1, 1) == 1
    finally:
        libc.signal(USR1, before)


def test_an_event_loop_that_waits_for_signals_still_hears_of_them() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.settimeout(WAIT_S)
        signal.set_wakeup_fd(ours.fileno())
        try:
            with Interrupts():
                send(TERM)
                assert theirs.recv(1) == bytes([TERM])
        finally:
            assert signal.set_wakeup_fd(-1) == ours.fileno()


def test_outside_the_main_thread_nothing_is_installed() -> None:
    found: list[object] = []

    def work() -> None:
        with Interrupts() as entered:
            found.extend([signal.getsignal(TERM), entered.asked])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(TERM), None]


def test_one_that_came_too_late_is_passed_on_to_what_was_there_before() -> None:
    called: list[int] = []
    before = signal.signal(USR1, lambda number, frame: called.append(number))
    try:
        with Interrupts() as found:
            signal.signal(USR1, found._handle)
            found.ask(USR1)
        found.pass_on()
        assert called == [USR1]
    finally:
        signal.signal(USR1, before)


def test_only_what_may_be_left_unfinished_is() -> None:
    found = Interrupts(enabled=False)
    with found.breaking_off():
        assert not found.breaks_off
        found.ask(TERM)
        assert found.breaks_off
    assert not found.breaks_off


def test_in_a_notebook_a_second_interrupt_is_for_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.ps1", ">>> ", raising=False)
    left: list[int] = []
    with Interrupts(leave=left.append) as found:
        send(INT)
        until(lambda: found.asked == INT)
        time.sleep(interrupts._SAME_S + 0.05)
        with pytest.raises(KeyboardInterrupt):
            send(INT)
            time.sleep(1)
    assert left == []
