"""A quick loader is read by the caller of ``next`` itself, some batches in a row."""

import importlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from xtrainer.data import LoaderSource, Prefetcher
from xtrainer.errors import LoaderError

prefetch = importlib.import_module("xtrainer.data.prefetch")
BURST = prefetch._BURST


class Numbers:
    """Batches of one number each; counts those that were read, and fails at one of them."""

    def __init__(self, count: int, fails_at: int = -1, size: int = 1) -> None:
        self.count, self.fails_at, self.size = count, fails_at, size
        self.read = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for number in range(self.count):
            if number == self.fails_at:
                raise OSError("planted")
            self.read = number + 1
            yield np.full(self.size, number, np.float32)


def quick(loader: Any) -> LoaderSource:
    """Returns a source that is known to be quick."""
    source = LoaderSource(loader, "train")
    source.is_quick = True
    return source


def inline(
    source: LoaderSource, prepare: Callable[[Any], Any] = lambda batch: batch, **options: Any
) -> Prefetcher:
    return Prefetcher(source, prepare, **{"size": None, "may_inline": True, **options})


def numbers(batches: Any) -> list[tuple[int, int]]:
    """Returns the number of each batch, and how many batches its position lies behind."""
    return [(int(batch[0]), position.batches) for batch, position in batches]


@pytest.mark.parametrize("count", [0, 1, BURST - 1, BURST, BURST + 1, 3 * BURST + 5])
def test_every_batch_comes_once_and_in_order_without_a_thread(count: int) -> None:
    before = threading.active_count()
    source = quick(Numbers(count))
    found = numbers(inline(source))
    assert found == [(number, number + 1) for number in range(count)]
    assert source.position.batches == count
    assert threading.active_count() == before


def test_small_batches_are_read_in_bursts_and_large_ones_each_when_it_is_asked_for() -> None:
    small, large = Numbers(40), Numbers(40, size=2**14)
    for loader in (small, large):
        next(inline(quick(loader)))
    assert (small.read, large.read) == (BURST, 1)


def test_a_given_size_is_not_read_ahead_of() -> None:
    loader = Numbers(40)
    next(inline(quick(loader), size=2))
    assert loader.read == 1


@pytest.mark.parametrize("limit", [0, 1, 5, BURST, BURST + 3])
def test_a_limit_holds(limit: int) -> None:
    loader = Numbers(100)
    source = quick(loader)
    assert len(numbers(inline(source, limit=limit))) == loader.read == limit
    assert len(numbers(inline(source, limit=3))) == 3


@pytest.mark.parametrize("taken", [1, 3, BURST, BURST + 2])
def test_what_was_read_and_not_used_is_given_back(taken: int) -> None:
    source = quick(Numbers(3 * BURST))
    ahead = inline(source)
    first = [next(ahead) for _ in range(taken)]
    ahead.close()
    assert source.position.batches == taken
    rest = numbers(inline(source))
    assert numbers(first) + rest == [(number, number + 1) for number in range(3 * BURST)]


@pytest.mark.parametrize("fails_at", [0, 3, BURST - 1, BURST, BURST + 4])
def test_an_error_of_the_loader_comes_after_the_batches_before_it(fails_at: int) -> None:
    source = quick(Numbers(100, fails_at))
    ahead, found = inline(source), []
    with pytest.raises(OSError, match="planted") as caught:
        for batch, _ in ahead:
            found.append(int(batch[0]))
    assert found == list(range(fails_at))
    assert caught.value.__notes__ == [f"while reading batch {fails_at + 1} of the 'train' loader"]
    assert source.position.batches == fails_at


@pytest.mark.parametrize("bad", [0, 3, BURST])
def test_a_batch_that_cannot_be_prepared_is_given_back(bad: int) -> None:
    def prepare(batch: Any) -> Any:
        if batch[0] == bad:
            raise StopIteration if bad == 3 else ValueError("planted")
        return batch

    source = quick(Numbers(100))
    ahead, found = inline(source, prepare), []
    with pytest.raises(RuntimeError if bad == 3 else ValueError) as caught:
        for batch, _ in ahead:
            found.append(int(batch[0]))
    assert found == list(range(bad))
    assert caught.value.__notes__ == [f"while reading batch {bad + 1} of the 'train' loader"]
    assert numbers(inline(source))[0] == (bad, bad + 1)


def test_after_a_slow_batch_a_thread_reads_ahead_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_SLOW_S", -1.0)  # every batch is slow
    monkeypatch.setattr(prefetch, "_QUICK_S", -1.0)
    readers: list[str] = []

    def prepare(batch: Any) -> Any:
        readers.append(threading.current_thread().name)
        return batch

    source = quick(Numbers(50))
    ahead = inline(source, prepare)
    assert numbers(ahead) == [(number, number + 1) for number in range(50)]
    assert readers == [threading.current_thread().name] + ["prefetch-train"] * 49
    assert not source.is_quick


def test_a_thread_that_finds_its_loader_quick_leaves_the_rest_to_the_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prefetch, "_QUICK_S", 1e6)
    readers: list[str] = []

    def prepare(batch: Any) -> Any:
        readers.append(threading.current_thread().name)
        return batch

    source = LoaderSource(Numbers(100), "train")
    found = numbers(inline(source, prepare))
    assert found == [(number, number + 1) for number in range(100)]
    me, tried = threading.current_thread().name, prefetch._TRIED
    assert readers == ["prefetch-train"] * tried + [me] * (100 - tried)


def test_nobody_else_reads_the_loader_meanwhile() -> None:
    source = quick(Numbers(100))
    ahead = inline(source)
    next(ahead)
    for disturb in (source.peek, source.new_pass, lambda: next(inline(source))):
        with pytest.raises(LoaderError, match="read by the prefetcher of the 'train' loader"):
            disturb()
    ahead.close()
    assert int(source.peek()[0]) == 1


def test_the_end_is_known_when_it_is_asked_for() -> None:
    ahead = inline(quick(Numbers(2)))
    assert not ahead.ended()
    next(ahead)
    assert not ahead.ended()
    next(ahead)
    assert ahead.ended()
    assert next(ahead, None) is None


def test_a_closed_prefetcher_says_so() -> None:
    ahead = inline(quick(Numbers(9)))
    next(ahead)
    ahead.close()
    with pytest.raises(LoaderError, match="was closed"):
        next(ahead)
