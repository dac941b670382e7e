"""A loader that hangs: a warning names it, then an error says where it stands."""

import logging
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from xtrainer.data import LoaderSource, Prefetcher, peek_ahead
from xtrainer.data.stalled import StallWatch
from xtrainer.errors import LoaderError, LoaderTimeoutError, XTrainerError

WAIT_S = 10.0


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 7.0

    def __call__(self) -> float:
        return self.now


class Hanging:
    """Gives batches, and waits for ever before one of them; until ``gate`` is set."""

    def __init__(self, at: int) -> None:
        self.at, self.gate = at, threading.Event()

    def __iter__(self) -> Iterator[np.ndarray]:
        for number in range(1, 5):
            if number == self.at:
                self.reads_from_a_network_that_is_gone()
            yield np.full(2, float(number))

    def reads_from_a_network_that_is_gone(self) -> None:
        self.gate.wait(WAIT_S)


@pytest.fixture
def loader() -> Iterator[Hanging]:
    made = Hanging(at=3)
    yield made
    made.gate.set()


def sleeper() -> threading.Thread:
    """Returns a thread that stands still."""
    thread = threading.Thread(target=threading.Event().wait, args=(WAIT_S,), daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("timeout_s", "warns_after_s"), [(1800.0, 180.0), (50.0, 10.0), (0.0, 180.0), (-1.0, 180.0)]
)
def test_one_warning_comes_after_a_tenth_of_the_limit(
    timeout_s: float, warns_after_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    watch = StallWatch("train", 4, timeout_s, sleeper(), clock)
    clock.now += warns_after_s - 0.001
    watch.check()
    assert caplog.text == ""
    for _ in range(3):
        clock.now += 1.0
        watch.check()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    text = record.getMessage()
    assert text.startswith(
        f"Waiting for batch 4 of the 'train' loader since {warns_after_s + 1:.0f} s."
    )
    assert ("It is an error after" in text) == (timeout_s > 0)
    assert "stands at:" in text and "in wait" in text


def test_the_limit_is_an_error_at_once_and_without_one_there_is_none() -> None:
    clock = Clock()
    watch, endless = (StallWatch("val", 1, limit, sleeper(), clock) for limit in (20.0, 0.0))
    assert watch.pause_s(0.5) == 0.5
    clock.now += 19.9
    watch.check()
    assert watch.pause_s(0.5) == pytest.approx(0.1)
    clock.now += 0.1
    with pytest.raises(LoaderTimeoutError, match="Found no batch 1 of the 'val' loader after 20 s"):
        watch.check()
    clock.now += 1e9
    endless.check()


def test_the_error_is_a_loader_error_with_the_code_of_a_hang() -> None:
    assert issubclass(LoaderTimeoutError, LoaderError | TimeoutError)
    assert issubclass(LoaderTimeoutError, XTrainerError)
    assert LoaderTimeoutError.exit_code == 124


def test_a_reader_gives_up_and_says_where_the_loader_stands(
    loader: Hanging, caplog: pytest.LogCaptureFixture
) -> None:
    source = LoaderSource(loader, "train")
    source.timeout_s = 0.1
    start = time.monotonic()
    with pytest.raises(LoaderTimeoutError) as caught, Prefetcher(source, lambda x: x) as ready:
        for _ in range(3):
            next(ready)
    assert time.monotonic() - start < 5.0  # the thread is not waited for once more
    text = str(caught.value)
    assert "Found no batch 3 of the 'train' loader" in text
    assert "expected one within loader_timeout_s=0.1" in text
    assert "reads_from_a_network_that_is_gone" in text and "prefetch-train" in text
    assert 0.1 <= ready.waited_s < 5.0
    assert source.position.batches == 2  # what was used; a checkpoint can be written
    assert caplog.text == ""  # no second message from the thread that is left behind
    loader.gate.set()


def test_the_first_batch_is_waited_for_no_longer_either() -> None:
    loader = Hanging(at=1)
    source = LoaderSource(loader, "val")
    source.timeout_s = 0.05
    with pytest.raises(LoaderTimeoutError, match="Found no batch 1 of the 'val' loader"):
        peek_ahead(source)
    loader.gate.set()


def test_a_look_ahead_uses_nothing_up() -> None:
    source = LoaderSource(iter([np.zeros(1), np.ones(1)]), "train")
    assert [float(peek_ahead(source)[0]) for _ in range(3)] == [0.0] * 3
    assert source.position.batches == 0
    assert [float(source.next_host()[0][0]) for _ in range(2)] == [0.0, 1.0]
    with pytest.raises(StopIteration):
        peek_ahead(source)


def test_a_look_ahead_raises_what_the_loader_raises_with_its_place() -> None:
    def broken() -> Iterator[np.ndarray]:
        raise OSError("planted")
        yield

    source = LoaderSource(broken(), "train")
    for _ in range(2):
        with pytest.raises(OSError, match="planted") as caught:
            peek_ahead(source)
        assert caught.value.__notes__ == ["while reading batch 1 of the 'train' loader"]


def test_a_slow_loader_raises_no_alarm(caplog: pytest.LogCaptureFixture) -> None:
    def slow() -> Iterator[np.ndarray]:
        for number in range(5):
            threading.Event().wait(0.03)
            yield np.full(1, float(number))

    source = LoaderSource(slow(), "train")
    source.timeout_s = 2.0
    with Prefetcher(source, lambda x: x) as ready:
        assert [float(batch[0]) for batch, _ in ready] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert ready.waited_s > 0.05 and caplog.text == ""
