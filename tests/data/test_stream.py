import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtrainer.data.stream import BatchPlan, PartReader, PartSource, SampleStream, stack
from xtrainer.errors import LoaderError


def reader(samples, order=None, collate=stack):
    return PartReader(SampleStream(samples, order, len(samples)), collate)


@given(
    num_samples=st.integers(1, 30),
    batch_size=st.integers(1, 12),
    drop_remainder=st.booleans(),
    start=st.integers(0, 100),
)
def test_batches_follow_each_other_within_epochs(num_samples, batch_size, drop_remainder, start):
    plan = BatchPlan(num_samples, batch_size, drop_remainder)
    if plan.per_epoch == 0:
        return
    batches = [plan.batch(start, number) for number in range(12)]
    for number, batch in enumerate(batches):
        assert 1 <= len(batch) <= batch_size
        assert batch[0] // num_samples == batch[-1] // num_samples
        assert plan.batch(batch[0], 0) == batch
        if drop_remainder:
            assert len(batch) == batch_size
        if number:
            left_out = batch[0] - batches[number - 1].stop
            assert 0 <= left_out < (batch_size if drop_remainder else 1)
            assert not left_out or batch[0] % num_samples == 0


def test_a_position_in_the_part_that_is_left_out_is_that_of_the_next_epoch():
    plan = BatchPlan(10, 4, drop_remainder=True)
    assert plan.batch(9, 0) == range(10, 14)
    assert plan.batch(6, 0) == range(6, 10)


def test_a_part_without_rows_has_the_shapes_of_the_others():
    samples = [{"x": np.zeros(3, np.float32), "y": 1} for _ in range(5)]
    source = PartSource(reader(samples), BatchPlan(5, 4, False), 0, slice(2, 4))
    full, empty = source[0], source[1]
    assert full["x"].shape == (2, 3) and empty["x"].shape == (0, 3)
    for name in full:
        assert full[name].dtype == empty[name].dtype


def test_an_error_of_the_source_names_its_index_and_the_place_in_the_stream():
    class Source:
        def __len__(self):
            return 5

        def __getitem__(self, number):
            raise KeyError("gone")

    order = [3, 1, 0, 2, 4]
    stream = reader(Source(), order)
    with pytest.raises(LoaderError, match="KeyError: 'gone' on reading sample 2 .*sample 3 of the"):
        stream.read(BatchPlan(5, 4, False), 0, slice(3, 4))


def test_a_source_that_stops_is_an_error_not_an_end():
    class Source:
        def __len__(self):
            return 5

        def __getitem__(self, number):
            raise StopIteration

    with pytest.raises(LoaderError, match="StopIteration"):
        reader(Source()).read(BatchPlan(5, 4, False), 0, slice(0, 4))


def test_a_sample_that_is_none_is_an_error():
    with pytest.raises(LoaderError, match="Found None .as a filter gives it. on reading sample 1"):
        reader([{"x": 0}, None]).read(BatchPlan(2, 2, False), 0, slice(0, 2))


@pytest.mark.parametrize("other", [{"x": np.zeros(2)}, {"y": np.zeros(3)}])
def test_samples_that_do_not_stack_are_an_error_naming_them(other):
    samples = [{"x": np.zeros(3)}, other]
    with pytest.raises(LoaderError, match="(?s)ValueError: .*samples 0 to 1 of the stream"):
        reader(samples).read(BatchPlan(2, 2, False), 0, slice(0, 2))
