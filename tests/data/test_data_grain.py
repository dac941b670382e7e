import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import grain
import numpy as np
import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st

from xtrainer.data import Batch, GrainLoader, LoaderPosition, LoaderSource, Prefetcher
from xtrainer.errors import LoaderError, MissingDependencyError
from xtrainer.types import DataShard


class Numbers:
    """A source whose samples are their own index; ``bad`` cannot be read."""

    def __init__(self, count, bad=None):
        self.count = count
        self.bad = bad

    def __len__(self):
        return self.count

    def __repr__(self):  # Grain's DataLoader compares it
        return f"Numbers({self.count})"

    def __getitem__(self, index):
        if index == self.bad:
            raise OSError(f"no file for {index}")
        return {"x": np.asarray(index)}


class Augment(grain.transforms.RandomMap):
    def random_map(self, element, rng):
        return {**element, "random": rng.integers(0, 1 << 40)}


def make(count=10, batch_size=4, **kwargs):
    kwargs.setdefault("num_threads", 0)
    return GrainLoader(Numbers(count), batch_size, **kwargs)


def values(batches, name="x"):
    return [batch[name].tolist() for batch in batches]


def endless(loader):
    return itertools.chain.from_iterable(itertools.repeat(loader))


def together(make_loader, count, batches, state=None, name="x"):
    """Returns the next batches of as many loaders, put together again, and the state of all."""
    read, states = [], []
    for index in range(count):
        loader = make_loader()
        loader.set_shard(DataShard(index, count))
        if state is not None:
            loader.set_state(state)
        read.append(values(itertools.islice(endless(loader), batches), name))
        states.append(json.loads(json.dumps(loader.get_state())))
        loader.close()
    assert all(each == states[0] for each in states)
    return [sum(parts, []) for parts in zip(*read, strict=True)], states[0]


# One process


def test_a_pass_has_every_sample_once_and_a_ragged_end():
    loader = make()
    assert values(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(loader) == 3


def test_drop_remainder_leaves_the_ragged_end_of_each_epoch_out():
    loader = make(drop_remainder=True, num_epochs=2)
    assert values(loader) == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2
    assert len(loader) == 4


def test_shuffled_epochs_differ_and_are_given_by_the_seed():
    first, again, other = make(shuffle=True), make(shuffle=True), make(shuffle=True, seed=1)
    passes = [sum(values(first), []) for _ in range(2)]
    assert passes[0] != passes[1] and sorted(passes[0]) == sorted(passes[1]) == list(range(10))
    assert passes == [sum(values(again), []) for _ in range(2)]
    # Grain adds the epoch to the seed: seeds next to each other must not share orders.
    assert sum(values(other), []) not in passes


def test_a_loader_without_an_end_goes_on_and_has_no_length():
    loader, finite = make(shuffle=True, num_epochs=None), make(shuffle=True)
    assert values(itertools.islice(loader, 9)) == values(itertools.islice(endless(finite), 9))
    with pytest.raises(TypeError, match="no length"):
        len(loader)


def test_a_pass_that_is_left_is_not_continued():
    loader, whole = make(shuffle=True), make(shuffle=True)
    next(iter(loader))
    list(whole)
    assert values(loader) == values(whole)


def test_iter_without_a_batch_taken_does_not_use_up_a_pass():
    loader = make(shuffle=True)
    iter(loader)
    assert values(loader) == values(make(shuffle=True))


def test_threads_read_ahead_without_moving_the_position():
    loader = make(40, num_threads=3, read_ahead=5)
    batches = iter(loader)
    assert next(batches)["x"].tolist() == [0, 1, 2, 3]
    assert loader.get_state()["next_sample"] == 4
    assert values(batches) == values(itertools.islice(make(40), 1, None))
    loader.close()


def test_an_iterator_from_before_ends_with_an_error():
    loader = make()
    old = iter(loader)
    next(old)
    loader.set_state(make().get_state())
    with pytest.raises(LoaderError, match="before its last iter"):
        next(old)


def test_a_map_dataset_keeps_its_own_order_and_transforms():
    dataset = grain.MapDataset.source(Numbers(6)).map(lambda e: {"x": e["x"] * 10})[1:5]
    assert values(GrainLoader(dataset, 3)) == [[10, 20, 30], [40]]


def test_a_dataset_repeated_without_end_is_read_without_end():
    loader = GrainLoader(grain.MapDataset.source(Numbers(3)).repeat(), 2)
    assert values(itertools.islice(loader, 3)) == [[0, 1], [2, 0], [1, 2]]
    assert values(itertools.islice(loader, 1)) == [[0, 1]]
    with pytest.raises(TypeError, match="no length"):
        len(loader)


def test_batches_are_of_the_trees_that_transforms_and_collate_give():
    class Double(grain.transforms.Map):
        def map(self, element):
            return element["x"] * 2

    loader = make(transforms=[Double(), lambda x: Batch(inputs=x, targets=-x)])
    batch = next(iter(loader))
    assert batch.inputs.tolist() == [0, 2, 4, 6] and batch.targets.tolist() == [0, -2, -4, -6]
    listed = make(collate=lambda samples: {"x": np.array([s["x"] + 1 for s in samples])})
    assert values(listed)[-1] == [9, 10]


def test_an_example_is_a_whole_batch_and_leaves_the_position():
    loader = make(shuffle=True)
    loader.set_shard(DataShard(1, 2))
    assert loader.example()["x"].tolist() == values(make(shuffle=True))[0]
    assert loader.get_state()["next_sample"] == 0


# Several processes, positions


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 70),
    shuffle=st.booleans(),
    drop_remainder=st.booleans(),
    num_epochs=st.sampled_from([1, 2, None]),
    before=st.sampled_from([1, 2, 3, 4, 8]),
    after=st.sampled_from([1, 2, 3, 4, 8]),
    used=st.integers(0, 8),
)
def test_parts_are_the_batches_of_one_process_also_on_another_count(
    count, shuffle, drop_remainder, num_epochs, before, after, used
):
    def make_loader():
        return make(
            max(count, 24) if drop_remainder else count,
            24,
            shuffle=shuffle,
            drop_remainder=drop_remainder,
            num_epochs=num_epochs,
        )

    whole, _ = together(make_loader, 1, used + 4)
    head, state = together(make_loader, before, used)
    tail, _ = together(make_loader, after, 4, state)
    assert head + tail == whole


@pytest.mark.parametrize("count", [1, 2, 4])
def test_random_transforms_draw_by_sample_not_by_process(count):
    def make_loader():
        return make(shuffle=True, transforms=[Augment()])

    whole, _ = together(make_loader, 1, 6, name="random")
    assert len(set(sum(whole, []))) == 20
    head, state = together(make_loader, count, 2, name="random")
    tail, _ = together(make_loader, 2, 4, state, name="random")
    assert head + tail == whole


def test_random_transforms_differ_by_seed():
    first, other = (make(transforms=[Augment()], seed=seed) for seed in (0, 1))
    assert values(first, "random") != values(other, "random")


def test_a_position_is_valid_for_another_batch_size():
    loader = make(shuffle=True, drop_remainder=True)
    first = values(itertools.islice(loader, 1))
    smaller = make(batch_size=2, shuffle=True, drop_remainder=True)
    smaller.set_state(loader.get_state())
    assert sum(first + values(smaller), []) == sum(values(make(shuffle=True)), [])


@pytest.mark.parametrize("num_epochs", [1, None])
def test_what_is_left_of_an_epoch_may_be_too_little_for_a_larger_batch(num_epochs):
    smaller = make(batch_size=2, num_epochs=num_epochs)
    list(itertools.islice(smaller, 4))
    larger = make(drop_remainder=True, num_epochs=num_epochs)
    larger.set_state(smaller.get_state())
    ahead = values(itertools.islice(larger, 1))
    assert ahead == ([] if num_epochs else [[0, 1, 2, 3]])
    assert values(itertools.islice(larger, 1)) == [[0, 1, 2, 3]]


def test_a_new_part_holds_from_the_next_batch_of_an_iterator_on():
    loader = make(16, num_threads=2)
    batches = iter(loader)
    next(batches)
    loader.set_shard(DataShard(1, 2))
    assert values(batches) == [[6, 7], [10, 11], [14, 15]]
    loader.close()


def test_a_part_has_no_rows_where_the_last_batch_ends_before():
    loader = make(9)
    loader.set_shard(DataShard(1, 2))
    assert values(loader) == [[2, 3], [6, 7], []]


def test_a_batch_size_that_does_not_divide_into_parts_is_an_error():
    with pytest.raises(LoaderError, match="batch_size=4 for 3"):
        make().set_shard(DataShard(0, 3))


@pytest.mark.parametrize(
    "state",
    [None, {"next_sample": 3}, {"next_sample": -1, "num_samples": 10, "pass_ended": False},
     {"next_sample": 1.0, "num_samples": 10, "pass_ended": False}, {"pass": 0, "batch": 1}],
)  # fmt: skip
def test_foreign_state_is_refused(state):
    with pytest.raises(LoaderError, match="Found the loader state"):
        make().set_state(state)


def test_the_position_in_other_data_is_refused():
    with pytest.raises(LoaderError, match="loader of 11 samples, expected one of 10"):
        make().set_state(make(11).get_state())


# As the trainer reads it


@pytest.mark.parametrize("used", [0, 2, 3, 4, 7])
@pytest.mark.parametrize("threads", [0, 2])
def test_a_source_goes_on_exactly_where_it_was_committed(used, threads):
    def stream(source):
        while True:
            try:
                yield source.next_host()
            except StopIteration:
                source.new_pass()

    def read(source, count):
        return [batch["x"].tolist() for batch, _ in itertools.islice(stream(source), count)]

    whole = read(LoaderSource(make(shuffle=True), "train"), used + 5)
    first = LoaderSource(make(shuffle=True, num_threads=threads), "train")
    head = read(first, used)
    try:
        first.pull()  # read ahead, never used
    except StopIteration:
        pass
    saved = json.loads(json.dumps(first.position.to_json()))
    second = LoaderSource(make(shuffle=True, num_threads=threads), "train")
    second.restore(LoaderPosition.from_json(saved))
    assert head + read(second, 5) == whole
    for source in (first, second):
        source.loader.close()


def iter_dataset():
    return grain.MapDataset.source(Numbers(20)).seed(3).shuffle().batch(4).to_iter_dataset()


def data_loader(index=0, count=1):
    sharding = grain.sharding.ShardOptions(index, count)
    return grain.DataLoader(
        data_source=Numbers(20),
        sampler=grain.samplers.IndexSampler(
            20, shard_options=sharding, shuffle=True, num_epochs=1, seed=3
        ),
        operations=[grain.transforms.Batch(4)],
    )


@pytest.mark.parametrize("make_loader", [iter_dataset, data_loader])
def test_a_ready_loader_of_grain_needs_no_wrapper(make_loader):
    def read(source, count):
        return values([source.next_host()[0] for _ in range(count)])

    whole = values(make_loader())
    first = LoaderSource(make_loader(), "train")
    head = read(first, 2)
    first.pull()  # read ahead, never used
    saved = json.loads(json.dumps(first.position.to_json()))
    assert saved["state"] is not None
    second = LoaderSource(make_loader(), "train")
    second.restore(LoaderPosition.from_json(saved))
    assert head + read(second, 3) == whole


def test_the_state_of_a_sharded_data_loader_is_refused_on_another_count():
    source = LoaderSource(data_loader(0, 2), "train")
    source.next_host()
    with pytest.raises(ValueError, match="Sampler in checkpoint does not match"):
        LoaderSource(data_loader(), "train").restore(source.position)


@pytest.mark.parametrize("make_loader", [iter_dataset, data_loader])
def test_a_ready_loader_as_a_source_is_an_error_that_says_what_to_do(make_loader):
    with pytest.raises(LoaderError, match="loader by itself: give it to the trainer as it is"):
        GrainLoader(make_loader(), 4)


# Mistakes


@pytest.mark.parametrize("threads", [0, 2])
def test_a_sample_that_cannot_be_read_is_named_and_can_be_read_again(threads):
    source = Numbers(10, bad=6)
    loader = GrainLoader(source, 4, num_threads=threads)
    batches = iter(loader)
    next(batches)
    with pytest.raises(LoaderError, match="OSError: no file for 6 on reading sample 6") as failure:
        next(batches)
    assert isinstance(failure.value.__cause__, OSError)
    source.bad = None
    assert next(batches)["x"].tolist() == [4, 5, 6, 7]
    loader.close()


def test_the_index_of_a_sample_is_that_of_the_source_where_it_is_shuffled():
    loader = GrainLoader(Numbers(50, bad=17), 4, shuffle=True, num_threads=0)
    with pytest.raises(LoaderError, match="no file for 17 on reading sample 17 of the source"):
        list(loader)


def test_a_filter_is_refused():
    class Odd(grain.transforms.Filter):
        def filter(self, element):
            return element["x"] % 2

    with pytest.raises(LoaderError, match="one sample becomes one sample"):
        make(transforms=[Odd()])
    filtered = grain.MapDataset.source(Numbers(4)).filter(Odd())
    with pytest.raises(LoaderError, match="Found None .as a filter gives it. on reading sample 0"):
        next(iter(GrainLoader(filtered, 2, num_threads=0)))


@pytest.mark.parametrize("transform", [3, grain.transforms.Batch(2)])
def test_a_transform_that_is_none_is_refused(transform):
    with pytest.raises(LoaderError, match="Found the transform"):
        make(transforms=[transform])


@pytest.mark.parametrize(
    ("wrong", "found"),
    [({"batch_size": 0}, "batch_size=0"), ({"seed": -1}, "seed=-1"), ({"seed": 2**32}, "seed=4"),
     ({"num_epochs": 0}, "num_epochs=0"), ({"num_workers": -1}, "num_workers=-1"),
     ({"num_threads": -1}, "num_threads=-1"), ({"read_ahead": -1}, "read_ahead=-1")],
)  # fmt: skip
def test_wrong_sizes_are_refused(wrong, found):
    with pytest.raises(LoaderError, match=found):
        make(**wrong)


def test_sources_without_a_batch_are_refused():
    with pytest.raises(LoaderError, match="3 samples for batch_size=4 and drop_remainder=True"):
        make(3, drop_remainder=True)
    with pytest.raises(LoaderError, match="Found 0 samples"):
        make(0)


def test_a_dataset_without_an_end_cannot_be_shuffled():
    with pytest.raises(LoaderError, match="Leave repeat.. to num_epochs"):
        GrainLoader(grain.MapDataset.source(Numbers(3)).repeat(), 2, shuffle=True)


def test_missing_grain_is_an_error_with_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "xtrainer\[grain\]"'):
        make()


# Worker processes


@pytest.mark.processes
def test_workers_give_the_same_batches_and_positions_over_passes():
    def make_loader(num_workers):
        transforms = [Augment(), lambda element: {**element, "y": element["x"] + 1}]
        return make(9, shuffle=True, transforms=transforms, num_workers=num_workers)

    whole, _ = together(lambda: make_loader(0), 1, 6, name="random")
    loader = make_loader(2)
    loader.set_shard(DataShard(1, 2))
    loader.set_state({"next_sample": 4, "num_samples": 9, "pass_ended": False})
    flags.FLAGS.unparse_flags()  # as in a script without any
    batches = endless(loader)
    try:
        found = values(itertools.islice(batches, 1), "random")
        workers = multiprocessing.active_children()
        for worker in workers:
            os.kill(worker.pid, signal.SIGINT)  # Ctrl-C reaches every process of the terminal
        found += values(itertools.islice(batches, 4), "random")
    finally:
        loader.close()
    assert found == [batch[2:] for batch in whole[1:]]
    assert found[1] == []  # the last batch of an epoch has one row, which is the other part's
    assert loader.get_state() == {"next_sample": 18, "num_samples": 9, "pass_ended": True}
    assert flags.FLAGS.is_parsed()
    assert len(workers) == 2 and not any(worker.is_alive() for worker in workers)


@pytest.mark.processes
def test_an_error_in_a_worker_comes_back_with_the_index():
    loader = GrainLoader(Unpicklable(8, bad=6), 4, num_workers=1)
    try:
        batches = iter(loader)
        assert next(batches)["x"].tolist() == [0, 1, 2, 3]
        with pytest.raises(LoaderError, match="Stubborn: no 6 on reading sample 6 of the source"):
            next(batches)
    finally:
        loader.close()


class Slow(Numbers):
    def __getitem__(self, index):
        time.sleep(0.02)
        return super().__getitem__(index)


@pytest.mark.processes
def test_a_worker_that_is_killed_is_an_error_with_its_batch_and_not_a_hang():
    loader = GrainLoader(Slow(64), 2, num_workers=1)
    source = LoaderSource(loader, "train")
    try:
        with Prefetcher(source, lambda batch: batch) as batches:
            next(batches)
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)
            start = time.monotonic()
            with pytest.raises(RuntimeError, match="Worker process was terminated") as caught:
                list(batches)
        assert time.monotonic() - start < 10.0
        read = source.position.batches
        assert f"while reading batch {read + 1} of the 'train' loader" in caught.value.__notes__
    finally:
        loader.close()


class Stubborn(Exception):
    """An error that cannot leave the process in which it was raised."""

    def __init__(self, index, more):
        super().__init__(f"no {index}")
        self.lock = threading.Lock()


class Unpicklable(Numbers):
    def __getitem__(self, index):
        if index == self.bad:
            raise Stubborn(index, None)
        return super().__getitem__(index)


SCRIPT = """
import itertools, multiprocessing, time
from xtrainer.data import GrainLoader

if __name__ == "__main__":
    batches = iter(GrainLoader([{"x": index} for index in range(8)], 2, num_workers=1))
    next(batches)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(600)
"""


@pytest.mark.processes
def test_workers_end_with_a_process_that_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    run = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert run.stdout is not None
        workers = [int(pid) for pid in run.stdout.readline().split()]
        assert workers
        run.send_signal(signal.SIGKILL)
        run.wait(10)
        deadline = time.monotonic() + 20
        while any(map(alive, workers)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(alive, workers))
    finally:
        run.kill()
        run.wait(10)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
