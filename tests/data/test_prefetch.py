import logging
import threading
import time

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtrainer.data import (
    ArrayLoader,
    LoaderPosition,
    LoaderSource,
    Prefetcher,
    pad_rows,
    prefetch,
)
from xtrainer.errors import BatchError, LoaderError

WAIT_S = 10.0


def batches(count):
    return [np.full(2, float(i)) for i in range(count)]


def value(batch):
    return int(batch[0])


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("prefetch-")]


def until(condition):
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


class Counting:
    """An iterator that knows how many batches were read from it."""

    def __init__(self, count):
        self.items, self.read = batches(count), 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.read == len(self.items):
            raise StopIteration
        self.read += 1
        return self.items[self.read - 1]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    until(lambda: not threads())


@pytest.mark.parametrize("size", [1, 2, 8])
def test_batches_come_in_order_with_their_positions(size):
    source = LoaderSource(batches(5), "train")
    with Prefetcher(source, jax.device_put, size=size) as ready:
        taken = [(value(batch), position.batches) for batch, position in ready]
    assert taken == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert source.position == LoaderPosition(0, 5)


def test_thread_is_named_after_the_loader_is_a_daemon_and_ends():
    with Prefetcher(LoaderSource(batches(5), "val"), value) as ready:
        next(ready)
        assert [(t.name, t.daemon) for t in threads()] == [("prefetch-val", True)]
    assert not threads()


def test_prepare_runs_in_the_thread():
    names = []

    def prepare(batch):
        names.append(threading.current_thread().name)
        return batch

    with Prefetcher(LoaderSource(batches(2), "train"), prepare) as ready:
        list(ready)
    assert names == ["prefetch-train"] * 2


def test_padding_and_placement_in_prepare():
    loader = ArrayLoader({"x": np.arange(5.0)}, 2)

    def prepare(batch):
        return jax.device_put(pad_rows(batch, 2))

    with Prefetcher(LoaderSource(loader, "val"), prepare) as ready:
        taken = [(batch["x"].tolist(), mask.tolist()) for (batch, mask), _ in ready]
    assert taken[-1] == ([4.0, 4.0], [True, False])


def test_position_is_that_of_the_used_batch_not_of_those_read_ahead():
    loader = ArrayLoader(np.arange(12), 2, shuffle=True)
    source = LoaderSource(loader, "train")
    with Prefetcher(source, jax.device_put, size=2) as ready:
        for used in range(1, 4):
            _, position = next(ready)
            until(lambda used=used: loader.get_state()["batch"] == used + 2)
            assert source.position == position
            assert position == LoaderPosition(0, used, {"pass": 0, "batch": used})


@pytest.mark.parametrize("size", [1, 2, 5])
def test_no_more_than_size_batches_are_read_ahead(size):
    loader = Counting(20)
    with Prefetcher(LoaderSource(loader, "train"), value, size=size) as ready:
        until(lambda: loader.read == size)
        next(ready)
        until(lambda: loader.read == size + 1)
        time.sleep(0.05)
        assert loader.read == size + 1


def test_no_more_than_limit_batches_are_read_in_all():
    loader = Counting(20)
    source = LoaderSource(loader, "train")
    for epoch in range(3):
        with Prefetcher(source, value, size=4, limit=3) as ready:
            assert [v for v, _ in ready] == [3 * epoch, 3 * epoch + 1, 3 * epoch + 2]
        assert loader.read == 3 * (epoch + 1) == source.position.batches


def test_limit_of_zero_reads_nothing():
    loader = Counting(3)
    with Prefetcher(LoaderSource(loader, "train"), value, limit=0) as ready:
        assert list(ready) == []
    assert loader.read == 0


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.lists(st.integers(0, 4), min_size=1, max_size=5), st.booleans())
def test_closing_in_the_middle_loses_no_batch_of_an_iterator(size, takes, new_pass):
    source = LoaderSource(iter(batches(12)), "train")
    taken = []
    for count in takes:
        with Prefetcher(source, value, size=size) as ready:
            for _, (batch, position) in zip(range(count), ready, strict=False):
                taken.append(batch)
                assert position.batches == len(taken) == source.position.batches
        if new_pass:
            source.new_pass()
    with Prefetcher(source, value, size=size) as ready:
        taken += [batch for batch, _ in ready]
    assert taken == list(range(12))


def test_close_gives_host_batches_back_not_prepared_ones():
    source = LoaderSource(iter(batches(4)), "train")
    seen = []

    def prepare(batch):
        seen.append(batch)
        return "prepared"

    with Prefetcher(source, prepare) as ready:
        next(ready)
        until(lambda: len(seen) == 3)
    assert isinstance(source.peek(), np.ndarray)
    assert [value(source.next_host()[0]) for _ in range(3)] == [1, 2, 3]


def test_close_twice_and_without_a_start():
    source = LoaderSource(batches(3), "train")
    ready = Prefetcher(source, value)
    ready.close()
    ready.close()
    with Prefetcher(source, value) as again:
        assert next(again)[0] == 0
        again.close()
        again.close()
    assert value(source.next_host()[0]) == 1


def test_closed_prefetcher_is_not_taken_for_the_end():
    ready = Prefetcher(LoaderSource(batches(3), "train"), value)
    ready.close()
    with pytest.raises(LoaderError, match="prefetcher of the 'train' loader was closed"):
        next(ready)


def test_end_stays_the_end_and_frees_the_source():
    source = LoaderSource(batches(2), "train")
    ready = Prefetcher(source, value)
    assert [v for v, _ in ready] == [0, 1]
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(ready)
    source.new_pass()
    assert value(source.next_host()[0]) == 0


def test_two_prefetchers_of_one_source_are_refused():
    source = LoaderSource(batches(9), "train")
    with Prefetcher(source, value), pytest.raises(LoaderError, match="one reader at a time"):
        next(Prefetcher(source, value))


@pytest.mark.parametrize("sizes", [{"size": 0}, {"size": 2, "limit": -1}])
def test_sizes_out_of_range_are_refused(sizes):
    with pytest.raises(LoaderError, match="expected size >= 1 and limit >= 0"):
        Prefetcher(LoaderSource(batches(1), "train"), value, **sizes)


# errors ----------------------------------------------------------------------------------------


def test_error_of_the_loader_comes_at_its_batch_with_a_note():
    def failing():
        yield from batches(2)
        raise OSError("disk gone")

    source = LoaderSource(failing(), "train")
    with Prefetcher(source, value, size=5) as ready:
        assert [next(ready)[0], next(ready)[0]] == [0, 1]
        with pytest.raises(OSError, match="disk gone") as info:
            next(ready)
    assert info.value.__notes__ == ["while reading batch 3 of the 'train' loader"]
    assert source.position.batches == 2


def test_error_of_prepare_comes_at_its_batch_with_a_note_and_loses_no_batch():
    def prepare(batch):
        if value(batch) == 1:
            raise ValueError("cannot be placed")
        return value(batch)

    source = LoaderSource(iter(batches(3)), "train")
    with Prefetcher(source, prepare) as ready:
        assert next(ready)[0] == 0
        for _ in range(2):
            with pytest.raises(ValueError, match="cannot be placed") as info:
                next(ready)
    assert info.value.__notes__ == ["while reading batch 2 of the 'train' loader"]
    assert [value(source.next_host()[0]) for _ in range(2)] == [1, 2]


def test_stop_iteration_of_prepare_is_not_taken_for_the_end():
    def prepare(batch):
        return next(iter(()))

    with Prefetcher(LoaderSource(batches(3), "train"), prepare) as ready:
        with pytest.raises(RuntimeError, match="raised StopIteration") as info:
            next(ready)
    assert "batch 1 of the 'train' loader" in info.value.__notes__[0]


def test_bad_batch_is_named_through_the_thread():
    source = LoaderSource([{"x": np.zeros(2), "y": np.zeros(3)}], "val")
    with Prefetcher(source, value) as ready, pytest.raises(BatchError, match=r"y: \(3,\)") as info:
        next(ready)
    assert info.value.__notes__ == ["while reading batch 1 of the 'val' loader"]


def test_error_in_the_consumer_closes_the_thread():
    source = LoaderSource(iter(batches(5)), "train")
    with pytest.raises(KeyError), Prefetcher(source, value) as ready:
        next(ready)
        raise KeyError
    assert not threads() and value(source.next_host()[0]) == 1


def test_hanging_loader_is_left_with_a_warning_and_its_batch_comes_back_later(caplog):
    gate = threading.Event()

    def hanging():
        yield np.zeros(2)
        gate.wait(WAIT_S)
        yield np.ones(2)

    source = LoaderSource(hanging(), "train")
    ready = Prefetcher(source, value)
    assert next(ready)[0] == 0
    with caplog.at_level(logging.WARNING):
        ready.close(timeout_s=0.05)
    assert "'prefetch-train' did not end within 0.1 s" in caplog.text
    assert source.position.batches == 1  # a checkpoint can still be written
    with pytest.raises(LoaderError, match="prefetch-train"):
        source.next_host()
    gate.set()
    until(lambda: not threads())
    assert value(source.next_host()[0]) == 1


def test_waiting_can_be_interrupted():
    gate = threading.Event()

    def hanging():
        gate.wait(WAIT_S)
        yield np.zeros(2)

    def interrupt():
        import _thread

        time.sleep(0.1)
        _thread.interrupt_main()

    ready = Prefetcher(LoaderSource(hanging(), "train"), value)
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        next(ready)
    gate.set()
    ready.close()


# resume ----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 15), st.integers(1, 8))
def test_resume_with_batches_ahead_is_exact(used, size):
    def run(source, count):
        taken = []
        while len(taken) < count:
            with Prefetcher(source, np.asarray, size=size, limit=count - len(taken)) as ready:
                taken += [batch.tolist() for batch, _ in ready]
            if len(taken) < count:
                source.new_pass()
        return taken

    def make():
        return LoaderSource(ArrayLoader(np.arange(11), 2, shuffle=True), "train")

    whole, first, second = run(make(), used + 8), make(), make()
    head = run(first, used)
    with Prefetcher(first, np.asarray, size=size):
        saved = first.position.to_json()
    second.restore(LoaderPosition.from_json(saved))
    assert head + run(second, 8) == whole


# prefetch --------------------------------------------------------------------------------------


def aligned(shape):
    """An array that ``jax.device_put`` shares on a CPU."""
    raw = np.zeros(np.prod(shape) * 4 + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + np.prod(shape) * 4].view(np.float32).reshape(shape)


def test_loader_that_reuses_its_buffer_gives_what_one_that_copies_gives():
    def loader(copies):
        buffer = aligned((64, 8))
        for i in range(8):
            buffer[:] = i
            yield {"x": buffer.copy() if copies else buffer}

    def run(copies):
        return [batch["x"] for batch in prefetch(loader(copies), size=3)]

    for reused, copied in zip(run(False), run(True), strict=True):
        np.testing.assert_array_equal(reused, copied)


def test_prefetch_yields_device_arrays_by_default():
    taken = list(prefetch(batches(3)))
    assert all(isinstance(batch, jax.Array) for batch in taken)
    assert [value(batch) for batch in taken] == [0, 1, 2]


def test_prefetch_takes_a_preparation():
    assert list(prefetch(batches(3), value, size=1)) == [0, 1, 2]


def test_prefetch_left_early_ends_its_thread():
    generator = prefetch(batches(9))
    next(generator)
    generator.close()
    assert not threads()


def test_prefetch_of_a_source_reads_on_where_it_was_left():
    source = LoaderSource(iter(batches(5)), "train")
    first = prefetch(source, value)
    taken = [next(first)]
    first.close()
    assert taken + list(prefetch(source, value)) == [0, 1, 2, 3, 4]


def test_prefetch_refuses_at_the_call():
    with pytest.raises(LoaderError, match="size >= 1"):
        prefetch(batches(1), size=0)
    with pytest.raises(LoaderError, match="cannot|expected an iterable"):
        prefetch(7)  # type: ignore[arg-type]
