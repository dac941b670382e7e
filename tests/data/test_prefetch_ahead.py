"""How many batches are read ahead, and how long is one waited for?"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from xtrainer.data import LoaderSource, Prefetcher

WAIT_S = 10.0
SHORT_S = 0.05
SMALL, LARGE = 2**15, 2**15 + 8
"""Bytes of a batch of which many, or few, are read ahead."""


class Counting:
    """An iterator over numbered batches of some bytes that knows how many were read from it."""

    def __init__(self, count: int, num_bytes: int) -> None:
        self.count, self.size, self.read = count, num_bytes // 8, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        if self.read == self.count:
            raise StopIteration
        self.read += 1
        return np.full(self.size, float(self.read - 1))


def value(batch: np.ndarray) -> int:
    return int(batch[0])


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        threading.Event().wait(0.001)


def assert_stays_read(loader: Counting, count: int) -> None:
    """Fails unless so many batches are read before long, and no more."""
    until(lambda: loader.read >= count)
    threading.Event().wait(SHORT_S)
    assert loader.read == count


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Fails a test that leaves a thread reading a loader."""
    yield
    until(lambda: not any(t.name.startswith("prefetch-") for t in threading.enumerate()))


# Batches ahead.


@pytest.mark.parametrize(
    ("num_bytes", "size", "ahead", "burst"),
    [
        (LARGE, None, 2, 1),
        (SMALL, None, 32, 16),
        (8, None, 32, 16),
        (8, 2, 2, 1),
        (8, 3, 3, 1),
        (LARGE, 5, 5, 1),
    ],
)
def test_without_a_size_two_large_batches_or_32_small_ones_are_read_ahead(
    num_bytes: int, size: int | None, ahead: int, burst: int
) -> None:
    loader = Counting(200, num_bytes)
    with Prefetcher(LoaderSource(loader, "train"), value, size=size) as ready:
        assert_stays_read(loader, ahead)
        for taken in range(1, 71):
            assert next(ready)[0] == taken - 1
            assert loader.read <= taken + ahead
        assert_stays_read(loader, 70 // burst * burst + ahead)


def test_room_for_small_batches_is_given_back_by_the_half() -> None:
    loader = Counting(200, 8)
    with Prefetcher(LoaderSource(loader, "train"), value, size=None) as ready:
        assert_stays_read(loader, 32)
        for _ in range(15):
            next(ready)
        assert_stays_read(loader, 32)
        next(ready)
        assert_stays_read(loader, 48)


def test_room_for_large_batches_is_given_back_at_once() -> None:
    loader = Counting(20, LARGE)
    with Prefetcher(LoaderSource(loader, "train"), value, size=None) as ready:
        for taken in range(1, 6):
            next(ready)
            assert_stays_read(loader, taken + 2)


def test_the_leaves_of_a_batch_are_counted_together() -> None:
    half = np.zeros(SMALL // 16 + 1)
    loader = ({"a": half, "b": half} for _ in range(9))
    seen: list[int] = []
    with Prefetcher(LoaderSource(loader, "train"), lambda batch: seen.append(1), size=None):
        until(lambda: len(seen) == 2)
        threading.Event().wait(SHORT_S)
        assert len(seen) == 2


@pytest.mark.parametrize("limit", [1, 5, 40])
def test_a_limit_holds_for_small_batches_as_well(limit: int) -> None:
    loader = Counting(100, 8)
    with Prefetcher(LoaderSource(loader, "train"), value, size=None, limit=limit) as ready:
        assert_stays_read(loader, min(limit, 32))
        assert [found for found, _ in ready] == list(range(limit))
    assert loader.read == limit


@pytest.mark.parametrize("taken", [0, 1, 15, 16, 17, 40])
def test_closing_gives_all_small_batches_that_were_not_used_back_in_order(taken: int) -> None:
    loader = Counting(80, 8)
    source = LoaderSource(loader, "train")
    with Prefetcher(source, value, size=None) as ready:
        assert [next(ready)[0] for _ in range(taken)] == list(range(taken))
        read = 32 + taken // 16 * 16
        assert_stays_read(loader, read)
    assert source.position.batches == taken
    back = [value(source.next_host()[0]) for _ in range(read - taken)]
    assert back == list(range(taken, read))
    assert loader.read == read  # they came from what was read before
    with Prefetcher(source, value, size=None) as ready:
        assert [found for found, _ in ready] == list(range(read, 80))


# Waits.


class Clock:
    """A clock that moves by a second at each look."""

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return float(self.looks)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which waits are measured."""
    made = Clock()
    module = sys.modules[Prefetcher.__module__]
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=made))
    return made


class Gated:
    """An iterator whose every batch waits for a gate."""

    def __init__(self, count: int) -> None:
        self.gates = [threading.Event() for _ in range(count)]

    def __iter__(self) -> Iterator[np.ndarray]:
        for index, gate in enumerate(self.gates):
            assert gate.wait(WAIT_S)
            yield np.full(2, float(index))

    def open_soon(self, index: int) -> threading.Timer:
        """Opens a gate after a while, when it is waited for."""
        timer = threading.Timer(SHORT_S, self.gates[index].set)
        timer.start()
        return timer


def test_what_is_ready_is_not_waited_for(clock: Clock) -> None:
    prepared: list[int] = []
    loader = Counting(6, 16)
    with Prefetcher(LoaderSource(loader, "train"), prepared.append, size=5) as ready:
        assert_stays_read(loader, 5)
        for _ in range(5):
            next(ready)
        assert (ready.waited_s, clock.looks) == (0.0, 0)


def test_each_wait_for_the_thread_is_counted(clock: Clock) -> None:
    loader = Gated(3)
    with Prefetcher(LoaderSource(loader, "train"), value, size=1) as ready:
        for index in range(3):
            timer = loader.open_soon(index)
            assert next(ready)[0] == index
            timer.join()
            assert ready.waited_s == index + 1  # by this clock each takes a second


def test_what_is_looked_at_ahead_is_waited_for_once(clock: Clock) -> None:
    loader = Gated(1)
    with Prefetcher(LoaderSource(loader, "train"), value) as ready:
        timer = loader.open_soon(0)
        assert not ready.ended()
        assert ready.waited_s == 1.0
        next(ready)
        assert ready.waited_s == 1.0
        timer.join()


def test_a_real_wait_has_its_length() -> None:
    loader = Gated(1)
    with Prefetcher(LoaderSource(loader, "train"), value) as ready:
        begun = time.perf_counter()
        timer = loader.open_soon(0)
        next(ready)
        whole = time.perf_counter() - begun
        timer.join()
    assert 0 < ready.waited_s <= whole
