"""How many steps are taken at once, so that each ends where something is due?"""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtrainer.loop import Agenda, every

RHYTHMS = st.lists(st.integers(1, 60), max_size=3)
LENGTHS = st.integers(1, 300)
LOOKS_AHEAD = 1000


def left_at(step: int, last: int | None, per_epoch: int | None) -> int | None:
    """Returns the steps until the epoch or the run ends, as the loop counts them."""
    ends = [] if last is None else [last - step]
    ends += [] if per_epoch is None else [per_epoch - step % per_epoch]
    return min(ends, default=None)


def run(agenda: Agenda, first: int, last: int, per_epoch: int | None = None) -> list[int]:
    """Returns the sizes of the dispatches of a run from one step to another."""
    sizes, step = [], first
    while step < last:
        sizes.append(agenda.size(step, left_at(step, last, per_epoch)))
        step += sizes[-1]
    return sizes


def ends(sizes: list[int], first: int) -> list[int]:
    """Returns the steps after which dispatches of some sizes end."""
    return [first + sum(sizes[: index + 1]) for index in range(len(sizes))]


# Any run.


@given(RHYTHMS, st.integers(1, 40), st.integers(0, 50), LENGTHS, st.none() | st.integers(1, 70))
def test_no_dispatch_crosses_a_step_at_which_something_is_due(
    rhythms: list[int], most: int, first: int, length: int, per_epoch: int | None
) -> None:
    last = first + length
    agenda = Agenda([every(n) for n in rhythms], most, first, last, per_epoch)
    found = set(ends(run(agenda, first, last, per_epoch), first))
    due = [*rhythms, per_epoch] if per_epoch else rhythms
    for step in range(first + 1, last + 1):
        if step == last or any(step % n == 0 for n in due):
            assert step in found


@given(RHYTHMS, st.integers(1, 40), st.integers(0, 50), LENGTHS, st.none() | st.integers(1, 70))
def test_the_sizes_foreseen_are_those_met_and_no_others(
    rhythms: list[int], most: int, first: int, length: int, per_epoch: int | None
) -> None:
    last = first + length
    agenda = Agenda([every(n) for n in rhythms], most, first, last, per_epoch)
    met = run(agenda, first, last, per_epoch)
    assert sorted(set(met), reverse=True) == list(agenda.sizes)
    assert sum(met) == length
    assert max(met) <= most


@given(RHYTHMS, st.integers(1, 200), st.integers(0, 50), st.none() | st.integers(1, 3000))
def test_there_are_few_sizes(rhythms: list[int], most: int, first: int, length: int | None) -> None:
    last = None if length is None else first + length
    agenda = Agenda([every(n) for n in rhythms], most, first, last)
    assert 1 <= len(agenda.sizes) <= max(4, math.floor(math.log2(most)) + 1)


@given(RHYTHMS, st.integers(1, 40), st.integers(0, 50), st.none() | st.integers(1, 70))
def test_of_a_run_without_an_end_the_sizes_are_foreseen_as_well(
    rhythms: list[int], most: int, first: int, per_epoch: int | None
) -> None:
    agenda = Agenda([every(n) for n in rhythms], most, first, None, per_epoch)
    met, step = set(), first
    for _ in range(LOOKS_AHEAD if most > 1 else 10):
        met.add(agenda.size(step, left_at(step, None, per_epoch)))
        step += agenda.size(step, left_at(step, None, per_epoch))
    assert sorted(met, reverse=True) == list(agenda.sizes)


@given(RHYTHMS, st.integers(1, 40), st.integers(0, 50), LENGTHS)
def test_between_two_events_there_are_as_few_dispatches_as_can_be(
    rhythms: list[int], most: int, first: int, length: int
) -> None:
    last = first + length
    agenda = Agenda([every(n) for n in rhythms], most, first, last)
    if len(agenda.sizes) > 1 and all(size & (size - 1) == 0 for size in agenda.sizes):
        return  # powers of two, of which more may be needed
    events = sorted({last, *(s for n in rhythms for s in range(first + 1, last) if s % n == 0)})
    found = ends(run(agenda, first, last), first)
    for begin, end in zip([first, *events], events, strict=False):
        number = sum(begin < step <= end for step in found)
        assert number == math.ceil((end - begin) / most)


# Examples.


@pytest.mark.parametrize(
    ("due", "most", "last", "expected"),
    [
        ([50], 32, 100, [25, 25, 25, 25]),
        ([50], 50, 100, [50, 50]),
        ([50], 64, 100, [50, 50]),
        ([10], 32, 25, [10, 10, 5]),
        ([6, 8], 4, 12, [3, 3, 2, 4]),
        ([7], 3, 7, [3, 2, 2]),
        ([1], 32, 3, [1, 1, 1]),
        ([], 4, 10, [4, 3, 3]),
        ([50], 1, 3, [1, 1, 1]),
    ],
    ids=str,
)
def test_a_run_is_divided_like_this(
    due: list[int], most: int, last: int, expected: list[int]
) -> None:
    agenda = Agenda([every(n) for n in due], most, last=last)
    assert run(agenda, 0, last) == expected
    assert agenda.sizes == tuple(sorted(set(expected), reverse=True))


def test_an_epoch_ends_a_dispatch() -> None:
    agenda = Agenda([every(100)], most=8, last=20, per_epoch=10)
    assert run(agenda, 0, 20, 10) == [5, 5, 5, 5]
    assert agenda.sizes == (5,)


def test_a_run_that_goes_on_meets_what_is_due_where_it_would_have_been() -> None:
    agenda = Agenda([every(10)], most=8, first=7, last=30)
    assert ends(run(agenda, 7, 30), 7) == [10, 15, 20, 25, 30]


def test_rhythms_that_would_need_many_sizes_use_powers_of_two() -> None:
    agenda = Agenda([every(7), every(11), every(13)], most=16, last=200)
    assert agenda.sizes == (4, 2, 1)
    assert run(agenda, 0, 11) == [4, 2, 1, 4]


@pytest.mark.parametrize(("step", "expected"), [(0, 4), (3, 4), (4, 6), (6, 8), (7, 8), (8, 12)])
def test_the_next_event_is_the_first_of_all(step: int, expected: int) -> None:
    agenda = Agenda([every(4), every(6), lambda step: None])
    assert agenda.next_after(step) == expected


def test_where_nothing_is_ever_due_there_is_no_next_event() -> None:
    assert Agenda([]).next_after(3) is None
    assert Agenda([lambda step: None]).next_after(3) is None


def test_what_is_due_but_once_ends_a_dispatch_there() -> None:
    agenda = Agenda([lambda step: 5 if step < 5 else None], most=4, last=13)
    assert ends(run(agenda, 0, 13), 0) == [3, 5, 9, 13]


def test_a_run_that_is_over_has_no_sizes() -> None:
    assert Agenda([every(5)], most=4, first=8, last=8).sizes == ()


def test_a_step_at_a_time_asks_nothing() -> None:
    def fail(step: int) -> int:
        raise AssertionError(step)

    agenda = Agenda([fail], most=1, last=5)
    assert (agenda.sizes, agenda.size(3, None)) == ((1,), 1)


@pytest.mark.parametrize("left", [0, 1])
def test_a_batch_that_is_there_is_taken_whatever_is_said_to_be_left(left: int) -> None:
    assert Agenda([every(50)], most=8).size(0, left) == 1
