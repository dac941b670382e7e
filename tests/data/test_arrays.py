import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtrainer.data import ArrayLoader, Batch
from xtrainer.errors import BatchError, LoaderError
from xtrainer.types import DataShard


def values(batches):
    return [batch["x"].tolist() for batch in batches]


def make(rows=10, batch_size=3, **kwargs):
    return ArrayLoader({"x": np.arange(rows)}, batch_size, **kwargs)


def test_one_pass_has_every_row_once_and_a_ragged_end():
    loader = make()
    assert values(loader) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert len(loader) == 4


def test_drop_last_leaves_the_ragged_end_out():
    loader = make(drop_last=True)
    assert len(loader) == 3 and values(loader)[-1] == [6, 7, 8]


def test_leaves_stay_together_in_any_tree():
    loader = ArrayLoader(Batch(inputs=np.arange(8) * 2, targets=np.arange(8)), 3, shuffle=True)
    for batch in loader:
        np.testing.assert_array_equal(batch.inputs, batch.targets * 2)


def test_shuffled_passes_differ_and_are_given_by_the_seed():
    first, again, other = make(shuffle=True), make(shuffle=True), make(shuffle=True, seed=1)
    passes = [sum(values(first), []) for _ in range(2)]
    assert passes[0] != passes[1] and sorted(passes[0]) == sorted(passes[1]) == list(range(10))
    assert passes == [sum(values(again), []) for _ in range(2)]
    assert passes[0] != sum(values(other), [])


def test_endless_goes_on_with_the_next_pass_and_has_no_length():
    endless, finite = make(shuffle=True, endless=True), make(shuffle=True)
    expected = values(finite) + values(finite) + values(finite)
    assert values(itertools.islice(endless, 12)) == expected
    with pytest.raises(TypeError, match="endless"):
        len(endless)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 12),
    batch_size=st.integers(1, 5),
    endless=st.booleans(),
    used=st.integers(0, 30),
)
def test_resume_from_any_batch_is_exact(rows, batch_size, endless, used):
    def stream(loader):
        return itertools.chain.from_iterable(itertools.repeat(loader))

    whole = make(rows, batch_size, shuffle=True, endless=endless)
    expected = values(itertools.islice(stream(whole), used + 15))
    first = make(rows, batch_size, shuffle=True, endless=endless)
    head = values(itertools.islice(stream(first), used))
    second = make(rows, batch_size, shuffle=True, endless=endless)
    second.set_state(json.loads(json.dumps(first.get_state())))
    tail = values(itertools.islice(stream(second), 15))
    assert head + tail == expected


def test_an_iterator_from_before_set_state_does_not_move_the_position():
    loader = make()
    old = iter(loader)
    next(old)
    loader.set_state({"pass": 0, "batch": 3})
    next(old)
    assert loader.get_state() == {"pass": 0, "batch": 3}
    assert values(loader) == [[9]]


def test_iter_without_a_batch_taken_does_not_use_up_a_pass():
    loader = make(shuffle=True)
    iter(loader)
    assert values(loader) == values(make(shuffle=True))


@pytest.mark.parametrize(
    "state",
    [None, {}, {"pass": 0}, {"pass": -1, "batch": 0}, {"pass": 0, "batch": 5},
     {"pass": 0, "batch": 1.0}, {"pass": 0, "batch": 1, "more": 2}],
)  # fmt: skip
def test_foreign_state_is_refused(state):
    with pytest.raises(LoaderError, match="loader state"):
        make().set_state(state)


def test_wrong_sizes_are_refused():
    with pytest.raises(LoaderError, match="batch_size=0"):
        make(batch_size=0)
    with pytest.raises(LoaderError, match="2 rows for batch_size=3 and drop_last=True"):
        make(rows=2, drop_last=True)
    with pytest.raises(LoaderError, match="0 rows"):
        make(rows=0)
    with pytest.raises(BatchError, match="different leading axes"):
        ArrayLoader({"x": np.zeros(3), "y": np.zeros(4)}, 2)


def together(make_loader, count, batches, state=None):
    """Returns the next batches of as many loaders, put together again, and their states."""
    loaders = [make_loader() for _ in range(count)]
    for index, loader in enumerate(loaders):
        loader.set_shard(DataShard(index, count))
        if state is not None:
            loader.set_state(state)
    streams = [itertools.chain.from_iterable(itertools.repeat(loader)) for loader in loaders]
    taken = [values(itertools.islice(stream, batches)) for stream in streams]
    return [sum(parts, []) for parts in zip(*taken, strict=True)], [
        json.loads(json.dumps(loader.get_state())) for loader in loaders
    ]


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 60),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    before=st.sampled_from([1, 2, 3, 4, 8]),
    after=st.sampled_from([1, 2, 3, 4, 8]),
    used=st.integers(0, 8),
)
def test_parts_are_the_batches_of_one_process_also_on_another_count(
    rows, shuffle, drop_last, before, after, used
):
    def make_loader():
        rows_needed = max(rows, 24) if drop_last else rows
        return make(rows_needed, 24, shuffle=shuffle, drop_last=drop_last)

    whole, _ = together(make_loader, 1, used + 5)
    head, states = together(make_loader, before, used)
    assert all(state == states[0] for state in states)
    tail, _ = together(make_loader, after, 5, states[0])
    assert head + tail == whole


def test_a_part_has_no_rows_where_the_last_batch_ends_before():
    loader = make(rows=10, batch_size=8)
    loader.set_shard(DataShard(1, 2))
    assert values(loader) == [[4, 5, 6, 7], []]
    assert len(loader) == 2


def test_a_new_part_holds_from_the_next_batch_of_an_iterator_on():
    loader = make(rows=8, batch_size=4)
    batches = iter(loader)
    assert next(batches)["x"].tolist() == [0, 1, 2, 3]
    loader.set_shard(DataShard(1, 2))
    assert next(batches)["x"].tolist() == [6, 7]


def test_a_batch_size_that_does_not_divide_into_parts_changes_nothing():
    loader = make(batch_size=3)
    with pytest.raises(LoaderError, match="batch_size=3 for 2"):
        loader.set_shard(DataShard(0, 2))
    assert values(loader)[0] == [0, 1, 2]
