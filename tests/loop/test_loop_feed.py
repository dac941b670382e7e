"""In which groups are batches taken, without a trainer?"""

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtrainer.data import LoaderPosition
from xtrainer.loop.feed import Feed, Item

A, B = object(), object()
KINDS = {"a": A, "b": B}


class Taken(NamedTuple):
    """What a fake batch is: its number and its kind."""

    number: int
    kind: object


def feed(length: int | None = None, of_epoch: int | None = None) -> Feed:
    """Returns a feed of a loader with a length, for an epoch that can still take so many."""
    source: Any = SimpleNamespace(length=length)
    plan: Any = SimpleNamespace(batches_left=lambda progress: of_epoch)
    trainer: Any = SimpleNamespace(progress=None)
    together: Any = SimpleNamespace(several=False)
    return Feed(trainer, source, plan, together, lambda: None)  # type: ignore[arg-type, return-value]


def items(
    text: str, error: Exception | None = None, read: list[int] | None = None
) -> Iterator[Item | None]:
    """Gives a batch for each letter, of that kind, and None for a dot; then maybe an error."""
    number = 0
    for letter in text:
        if letter == ".":
            yield None
            continue
        number += 1
        if read is not None:
            read.append(number)
        batch: Any = Taken(number, KINDS[letter])
        yield Item(batch, LoaderPosition(0, number), False)
    if error is not None:
        raise error


def grouped(
    text: str, size: int | Callable[[int | None], int] = 3, made: Feed | None = None
) -> list[list[int]]:
    """Returns the numbers of the batches of each group."""
    choose = size if callable(size) else lambda left: size
    groups = (made or feed()).groups(items(text), choose)
    return [numbers(group) for group in groups]


def numbers(group: Sequence[Item]) -> list[int]:
    return [item.batch.number for item in group]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("aaaaaa", [[1, 2, 3], [4, 5, 6]]),
        ("", []),
        (".", []),
        ("a.", [[1]]),
        ("aaaaa", [[1, 2, 3], [4], [5]]),
        ("aaaaa.", [[1, 2, 3], [4], [5]]),
        ("aa.aaa", [[1], [2], [3, 4, 5]]),
        ("aaa.aaa", [[1, 2, 3], [4, 5, 6]]),
        ("aab", [[1], [2], [3]]),
        ("aabbb", [[1], [2], [3, 4, 5]]),
        ("abababb", [[1], [2], [3], [4], [5], [6], [7]]),
        ("aaabbb", [[1, 2, 3], [4, 5, 6]]),
        ("a..a", [[1], [2]]),
    ],
)
def test_groups_are_full_and_what_is_left_comes_one_by_one(
    text: str, expected: list[list[int]]
) -> None:
    assert grouped(text) == expected


@given(st.text("ab.", max_size=40), st.integers(1, 6))
def test_every_batch_comes_once_and_in_order_and_groups_are_of_one_kind(
    text: str, size: int
) -> None:
    kinds = text.replace(".", "")
    groups = grouped(text, size)
    assert [number for group in groups for number in group] == list(range(1, len(kinds) + 1))
    for group in groups:
        assert len(group) in (1, size)
        assert len({kinds[number - 1] for number in group}) == 1


@given(st.text("ab.", max_size=40), st.integers(1, 6))
def test_what_came_before_a_none_is_taken_before_more_is_asked_for(text: str, size: int) -> None:
    taken: list[int] = []

    def watched() -> Iterator[Item | None]:
        given = 0
        for item in items(text):
            yield item
            given += item is not None
            if item is None:  # asked for the next one
                assert len(taken) == given

    for group in feed().groups(watched(), lambda left: size):
        taken += numbers(group)


def test_a_group_is_given_before_the_batch_behind_it_is_asked_for() -> None:
    read: list[int] = []
    groups = feed().groups(items("aaaaaa", read=read), lambda left: 2)
    for count in (2, 4, 6):
        next(groups)
        assert read == list(range(1, count + 1))


def test_each_group_asks_for_its_own_size() -> None:
    sizes = iter([1, 3, 2])
    assert grouped("aaaaaa", lambda left: next(sizes)) == [[1], [2, 3, 4], [5, 6]]


@pytest.mark.parametrize(
    ("length", "of_epoch", "expected"),
    [
        (None, None, [None, None, None]),
        (5, None, [5, 3, 1]),
        (None, 4, [4, 4, 4]),
        (5, 4, [4, 3, 1]),
    ],
)
def test_a_size_is_asked_for_with_the_batches_that_are_left(
    length: int | None, of_epoch: int | None, expected: list[int | None]
) -> None:
    seen: list[int | None] = []

    def size(left: int | None) -> int:
        seen.append(left)
        return 2

    grouped("aaaaa", size, feed(length, of_epoch))
    assert seen == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("aaaaa", [[1, 2, 3], [4], [5]]), ("aaa", [[1, 2, 3]]), ("", []), ("aab", [[1], [2], [3]])],
)
def test_an_error_comes_after_the_group_that_was_begun(
    text: str, expected: list[list[int]]
) -> None:
    error, found = OSError("planted"), []
    groups = feed().groups(items(text, error), lambda left: 3)
    with pytest.raises(OSError, match="planted") as info:
        for group in groups:
            found.append(numbers(group))
    assert found == expected
    assert info.value is error
    assert list(groups) == []


def test_an_interruption_takes_nothing_more() -> None:
    def interrupted() -> Iterator[Item | None]:
        yield from items("aa")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(feed().groups(interrupted(), lambda left: 3))


def test_closing_the_groups_gives_nothing_more() -> None:
    groups = feed().groups(items("aaaaa"), lambda left: 2)
    assert numbers(next(groups)) == [1, 2]
    groups.close()  # type: ignore[attr-defined]
    assert list(groups) == []
