import copy
import itertools
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtrainer.data import ArrayLoader, LoaderPosition, LoaderSource
from xtrainer.errors import BatchError, LoaderError


def batches(count, start=0):
    return [np.full(2, float(i)) for i in range(start, start + count)]


def value(batch):
    return int(batch[0])


def drain(source, count=None):
    """Uses up to ``count`` batches of the present pass."""
    taken = []
    for _ in itertools.count() if count is None else range(count):
        try:
            taken.append(value(source.next_host()[0]))
        except StopIteration:
            break
    return taken


class GrainLike:
    """A loader whose iterators have the state, as Grain's have."""

    def __init__(self, count=6):
        self.count = count

    def __iter__(self):
        return GrainLikeIterator(self.count)


class GrainLikeIterator:
    def __init__(self, count):
        self.count, self.state = count, {"next": 0}

    def __iter__(self):
        return self

    def __next__(self):
        if self.state["next"] >= self.count:
            raise StopIteration
        self.state["next"] += 1
        return np.full(2, float(self.state["next"] - 1))

    def get_state(self):
        return self.state  # the live dict: whoever keeps it must copy

    def set_state(self, state):
        self.state = state


class GeneratorLoader:
    """A loader with a state of its own, whose ``__iter__`` is a generator; passes differ."""

    def __init__(self, count=4):
        self.count, self.epoch, self.index, self.resumed = count, -1, 0, False

    def __iter__(self):
        if not self.resumed:
            self.epoch, self.index = self.epoch + 1, 0
        self.resumed = False
        while self.index < self.count:
            self.index += 1
            yield np.full(2, float(100 * self.epoch + self.index))

    def get_state(self):
        return {"epoch": self.epoch, "index": self.index}

    def set_state(self, state):
        self.epoch, self.index = state["epoch"], state["index"]
        self.resumed = self.epoch >= 0


class Restarting:
    """An iterator that ``iter()`` starts again."""

    def __iter__(self):
        self.index = 0
        return self

    def __next__(self):
        if self.index == 3:
            raise StopIteration
        self.index += 1
        return np.full(2, float(self.index))


class WithLength(list):
    def __init__(self, items, length):
        super().__init__(items)
        self.length = length

    def __len__(self):
        if isinstance(self.length, Exception):
            raise self.length
        return self.length


# reading ---------------------------------------------------------------------------------------


def test_pass_is_read_in_order_with_the_position_behind_each_batch():
    source = LoaderSource(batches(2), "train")
    assert source.position == LoaderPosition()
    assert source.next_host()[1] == LoaderPosition(0, 1) == source.position
    source.next_host()
    with pytest.raises(StopIteration):
        source.next_host()
    assert source.position == LoaderPosition(0, 2)


def test_new_pass_starts_the_loader_again_and_counts():
    source = LoaderSource(batches(2), "train")
    assert drain(source) == [0, 1]
    source.new_pass()
    assert source.position == LoaderPosition(1, 0)
    assert drain(source) == [0, 1] and source.position == LoaderPosition(1, 2)


def test_new_pass_leaves_no_pass_of_which_nothing_was_used():
    loader = ArrayLoader(np.arange(8), 2, shuffle=True)
    source = LoaderSource(loader, "train")
    first = source.peek()
    source.new_pass()
    source.new_pass()
    assert source.position.pass_index == 0
    np.testing.assert_array_equal(source.next_host()[0], first)


def test_new_pass_in_the_middle_drops_the_rest():
    source = LoaderSource(batches(4), "train")
    drain(source, 2)
    source.peek()
    source.new_pass()
    assert drain(source) == [0, 1, 2, 3]


def test_empty_loader_ends_every_pass():
    source = LoaderSource([], "train")
    for _ in range(3):
        source.new_pass()
        assert drain(source) == []


def test_peek_does_not_use_the_batch_up():
    source = LoaderSource(iter(batches(3)), "train")
    assert value(source.peek()) == value(source.peek()) == 0
    assert source.position.batches == 0
    assert drain(source) == [0, 1, 2]
    with pytest.raises(StopIteration):
        source.peek()


def test_pulled_and_pushed_back_batches_come_first_and_in_order():
    source = LoaderSource(iter(batches(4)), "train")
    ahead = [source.pull() for _ in range(3)]
    assert source.position.batches == 0
    source.commit(ahead[0][1])
    source.push_back(ahead[1:])
    assert drain(source) == [1, 2, 3] and source.position.batches == 4


def test_one_shot_iterator_loses_nothing_at_a_new_pass():
    source = LoaderSource((batch for batch in batches(5)), "train")
    assert source.is_one_shot
    taken = drain(source, 2)
    source.peek()
    source.new_pass()
    assert taken + drain(source) == [0, 1, 2, 3, 4]
    assert source.position == LoaderPosition(0, 5)
    source.new_pass()
    assert drain(source) == [] and source.position == LoaderPosition(0, 5)


def test_iterator_that_iter_starts_again_has_further_passes():
    source = LoaderSource(Restarting(), "train")
    assert drain(source) == [1, 2, 3]
    source.new_pass()
    assert drain(source) == [1, 2, 3] and source.position == LoaderPosition(1, 3)


@pytest.mark.parametrize("loader", [batches(2), ArrayLoader(np.arange(4), 2), GrainLike()])
def test_loaders_that_can_be_iterated_again_are_not_one_shot(loader):
    assert not LoaderSource(loader, "train").is_one_shot


@pytest.mark.parametrize(
    "length", [float("inf"), 2.0, -1, "3", NotImplementedError("no"), RuntimeError("no")]
)
def test_bad_length_is_no_length(length):
    assert LoaderSource(WithLength(batches(2), length), "train").length is None


def test_length_where_known():
    assert LoaderSource(batches(2), "train").length == 2
    assert LoaderSource(iter(batches(2)), "train").length is None
    assert LoaderSource(ArrayLoader(np.arange(4), 2, endless=True), "train").length is None


def test_what_cannot_be_iterated_is_refused():
    with pytest.raises(LoaderError, match="Found a int as the 'val' loader"):
        LoaderSource(3, "val")  # type: ignore[arg-type]


# copies and errors -----------------------------------------------------------------------------


def test_reused_buffer_is_copied_before_the_loader_goes_on():
    def reusing():
        buffer = np.zeros(2)
        for i in range(4):
            buffer[:] = i
            yield {"x": buffer}

    source = LoaderSource(reusing(), "train")
    kept = [source.pull()[0] for _ in range(4)]
    assert [batch["x"][0] for batch in kept] == [0, 1, 2, 3]


def test_unequal_leading_axes_name_leaves_and_batch():
    good, bad = {"x": np.zeros(4), "y": np.zeros(4)}, {"x": np.zeros(4), "y": np.zeros(3)}
    source = LoaderSource([good, bad], "train")
    source.next_host()
    with pytest.raises(BatchError, match=r"x: \(4,\), y: \(3,\)") as info:
        source.next_host()
    assert info.value.__notes__ == ["while reading batch 2 of the 'train' loader"]


def test_error_of_the_loader_has_a_note_and_is_not_taken_for_the_end_later():
    def failing():
        yield np.zeros(2)
        raise OSError("disk gone")

    source = LoaderSource(failing(), "train")
    source.next_host()
    for _ in range(3):
        with pytest.raises(OSError, match="disk gone") as info:
            source.next_host()
        assert info.value.__notes__ == ["while reading batch 2 of the 'train' loader"]
    assert source.position.batches == 1


def test_loader_that_failed_can_be_started_again_with_a_new_pass():
    class Failing(GrainLike):
        fail = True

        def __iter__(self):
            yield np.zeros(2)
            if self.fail:
                raise OSError("disk gone")

    loader = Failing()
    source = LoaderSource(loader, "train")
    source.next_host()
    with pytest.raises(OSError):
        source.next_host()
    loader.fail = False
    source.new_pass()
    assert drain(source) == [0]


def test_claimed_source_refuses_other_readers():
    source, reader = LoaderSource(batches(2), "train"), object()
    source.claim(reader)
    for call in (source.pull, source.peek, source.new_pass, lambda: source.claim(object())):
        with pytest.raises(LoaderError, match="one reader at a time"):
            call()
    with pytest.raises(LoaderError, match="one reader at a time"):
        source.restore(LoaderPosition())
    source.pull(reader)
    source.release(reader)
    assert drain(source) == [1]


# positions -------------------------------------------------------------------------------------

LOADERS = {
    "list": lambda: batches(6),
    "array": lambda: ArrayLoader(np.arange(11), 2, shuffle=True),
    "endless": lambda: ArrayLoader(np.arange(11), 2, shuffle=True, endless=True),
    "grain": GrainLike,
    "grain iterator": lambda: iter(GrainLike(40)),
    "generator loader": GeneratorLoader,
    "generator": lambda: iter(batches(40)),
}


def steps(source, count, position_after=None):
    """Uses ``count`` batches, with a new pass where one ends; epochs as a loop has them."""
    taken = []
    while len(taken) < count:
        try:
            batch, _ = source.next_host()
        except StopIteration:
            before = source.position.batches
            assert before > 0, "an empty pass"
            source.new_pass()
            continue
        taken.append(batch.tolist())
    return taken


@pytest.mark.parametrize("kind", LOADERS)
@settings(deadline=None, max_examples=25)
@given(used=st.integers(0, 20), ahead=st.integers(0, 3), peek=st.booleans())
def test_restore_in_a_new_process_is_exact(kind, used, ahead, peek):
    whole = steps(LoaderSource(LOADERS[kind](), "train"), used + 12)
    first = LoaderSource(LOADERS[kind](), "train")
    head = steps(first, used)
    for _ in range(ahead):  # read but not used: must not count
        try:
            first.pull()
        except StopIteration:
            break
    saved = json.loads(json.dumps(first.position.to_json()))
    second = LoaderSource(LOADERS[kind](), "train")
    if peek:
        second.peek()
    second.restore(LoaderPosition.from_json(saved))
    assert second.position == first.position
    assert head + steps(second, 12) == whole


@pytest.mark.parametrize("kind", [k for k in LOADERS if k != "generator"])
@settings(deadline=None, max_examples=25)
@given(used=st.integers(0, 20), more=st.integers(0, 9))
def test_going_back_in_the_same_process_is_exact(kind, used, more):
    source = LoaderSource(LOADERS[kind](), "train")
    source.new_pass()
    steps(source, used)
    position = copy.deepcopy(source.position)
    after = steps(source, more + 5)
    source.restore(position)
    assert source.position == position
    assert steps(source, more + 5) == after


@pytest.mark.parametrize("kind", ["list", "array", "grain", "generator loader"])
@pytest.mark.parametrize("used", [2, 4, 6])
def test_new_pass_after_a_restore_is_the_pass_after_the_restored_one(kind, used):
    first = LoaderSource(LOADERS[kind](), "train")
    drain(first, used)
    saved = first.position
    first.new_pass()
    second = LoaderSource(LOADERS[kind](), "train")
    second.restore(saved)
    second.new_pass()
    assert (second.position.pass_index, second.position.batches) == (1, 0)
    assert drain(second) == drain(first)


@pytest.mark.parametrize("kind", ["list", "array", "grain", "generator loader"])
def test_position_between_two_passes_restores_the_second(kind):
    first = LoaderSource(LOADERS[kind](), "train")
    drain(first)
    first.new_pass()
    second = LoaderSource(LOADERS[kind](), "train")
    second.restore(first.position)
    second.new_pass()
    expected = drain(first)
    assert expected and drain(second) == expected
    assert second.position.pass_index == 1


def test_state_is_a_snapshot_of_the_used_batch():
    source = LoaderSource(GrainLike(), "train")
    positions = [source.next_host()[1] for _ in range(3)]
    assert [position.state for position in positions] == [{"next": 1}, {"next": 2}, {"next": 3}]


def test_state_of_the_iterator_goes_before_that_of_the_loader():
    class Both(GrainLike):
        def get_state(self):
            raise AssertionError("the loader's state was asked for")

        def set_state(self, state):
            raise AssertionError("the loader's state was set")

    source = LoaderSource(Both(), "train")
    source.restore(LoaderPosition(0, 2, {"next": 2}))
    assert drain(source) == [2, 3, 4, 5]


def test_fast_forward_warns_with_batches_and_seconds(caplog):
    source = LoaderSource(batches(6), "train")
    source.restore(LoaderPosition(0, 4))
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert drain(source) == [4, 5]
    assert "'train' loader (it needs get_state() and set_state())" in caplog.text
    assert "dropping 4 batches" in caplog.text
    assert "Dropped 4 batches of the 'train' loader in 0.0" in caplog.text


def test_fast_forward_in_a_later_pass_says_that_a_new_iter_is_taken(caplog):
    source = LoaderSource(batches(6), "train")
    source.restore(LoaderPosition(2, 4))
    assert drain(source) == [4, 5] and source.position == LoaderPosition(2, 6)
    assert "taking a new iter() for pass 3" in caplog.text


def test_new_pass_after_a_restore_by_count_costs_nothing(caplog):
    source = LoaderSource(batches(6), "train")
    source.restore(LoaderPosition(0, 6))
    source.new_pass()
    assert drain(source, 1) == [0] and source.position == LoaderPosition(1, 1)
    assert not caplog.records


def test_restore_with_state_skips_nothing(caplog):
    source = LoaderSource(GrainLike(), "train")
    source.restore(LoaderPosition(0, 4, {"next": 4}))
    assert drain(source) == [4, 5]
    assert not caplog.records


def test_saved_state_without_set_state_is_fast_forwarded(caplog):
    source = LoaderSource(batches(6), "train")
    source.restore(LoaderPosition(0, 4, {"next": 4}))
    assert drain(source) == [4, 5]
    assert "Dropped 4 batches" in caplog.text


def test_fast_forward_beyond_the_end_is_an_error():
    source = LoaderSource(batches(3), "train")
    source.restore(LoaderPosition(0, 5))
    with pytest.raises(LoaderError, match="ended after 3 of the 5 batches"):
        source.next_host()
    with pytest.raises(LoaderError, match="ended after 3 of the 5 batches"):
        source.next_host()


def test_iterator_without_state_goes_forward_by_the_difference_only():
    source = LoaderSource(iter(batches(6)), "train")
    drain(source, 2)
    source.peek()
    source.restore(LoaderPosition(0, 4))
    assert drain(source) == [4, 5]


def test_iterator_without_state_cannot_go_back():
    source = LoaderSource(iter(batches(6)), "train")
    drain(source, 3)
    with pytest.raises(LoaderError, match="iterator behind batch 3; found batch 1"):
        source.restore(LoaderPosition(0, 1))
    assert drain(source) == [3, 4, 5]


@pytest.mark.parametrize(
    "state",
    [{"a": np.arange(2)}, {"a": np.int64(1)}, {1: 2}, {"a": [{2: 3}]}, {"a": float("nan")},
     object(), b"\xff\x00", {"a": {1, 2}}],
)  # fmt: skip
def test_state_that_is_not_json_is_an_error_at_the_first_batch(state):
    class Bad(GrainLike):
        def get_state(self):
            return state

        def set_state(self, state):
            pass

    class Plain(Bad):
        def __iter__(self):
            return (batch for batch in batches(2))

    with pytest.raises(LoaderError, match="get_state.. of the 'train' loader gave a .*not JSON"):
        LoaderSource(Plain(), "train").next_host()
    with pytest.raises(LoaderError, match="not JSON"):
        LoaderSource(Plain(), "train").new_pass()


def test_state_in_bytes_of_text_is_kept():
    class InBytes(GrainLikeIterator):
        def get_state(self):
            return json.dumps(self.state).encode()

        def set_state(self, state):
            self.state = json.loads(state.decode())

    source = LoaderSource(InBytes(5), "train")
    drain(source, 2)
    saved = json.loads(json.dumps(source.position.to_json()))
    second = LoaderSource(InBytes(5), "train")
    second.restore(LoaderPosition.from_json(saved))
    assert drain(second) == [2, 3, 4]


def test_get_state_that_is_not_implemented_is_no_state(caplog):
    class Interface(GrainLikeIterator):
        def get_state(self):
            raise NotImplementedError

    source = LoaderSource(Interface(5), "train")
    assert source.next_host()[1] == LoaderPosition(0, 1, None)


def test_failing_set_state_is_raised_with_the_loader_s_name_and_stays():
    source = LoaderSource(ArrayLoader(np.arange(4), 2), "train")
    with pytest.raises(LoaderError, match="loader state") as info:
        source.restore(LoaderPosition(0, 9, {"pass": 0, "batch": 9}))
    assert "while restoring the position of the 'train' loader" in info.value.__notes__
    with pytest.raises(LoaderError, match="loader state"):
        source.next_host()


def test_device_batches_pass_through():
    source = LoaderSource([jnp.ones(2)], "train")
    batch, _ = source.next_host()
    assert isinstance(batch, jax.Array)
