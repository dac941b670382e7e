"""Do loaders give larger batches from the next pass on, and go on with them from a saved place?"""

from typing import Any

import numpy as np
import pytest

import xtrainer as xt
from xtrainer.errors import LoaderError
from xtrainer.types import DataShard, ResizableLoader

KINDS = ["arrays", "grain"]
ROWS = 11


def make(kind: str, batch_size: int = 2, **kwargs: Any) -> Any:
    """Returns a loader of the numbers below ``ROWS``, each pass in an order of its own."""
    kwargs = {"shuffle": True, "seed": 7, **kwargs}
    if kind == "arrays":
        return xt.ArrayLoader({"x": np.arange(ROWS)}, batch_size, **kwargs)
    source = [{"x": number} for number in range(ROWS)]
    return xt.GrainLoader(source, batch_size, num_threads=0, **kwargs)


def read(loader: Any, count: int | None = None) -> list[list[int]]:
    """Returns some batches of the next pass, or all of them."""
    iterator = iter(loader)
    batches = iterator if count is None else (next(iterator) for _ in range(count))
    return [batch["x"].tolist() for batch in batches]


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_size_begins_with_the_next_pass(kind: str) -> None:
    loader, plain = make(kind), make(kind)
    assert isinstance(loader, ResizableLoader)
    iterator = iter(loader)
    first = [next(iterator)["x"].tolist() for _ in range(2)]
    loader.set_batch_size(4)
    first += [batch["x"].tolist() for batch in iterator]
    assert (loader.batch_size, len(loader)) == (2, 6)
    assert first == read(plain)
    second = read(loader)
    assert (loader.batch_size, len(loader)) == (4, 3)
    assert [len(batch) for batch in second] == [4, 4, 3]
    assert sum(second, []) == sum(read(plain), [])  # the same rows in the same order


@pytest.mark.parametrize("kind", KINDS)
def test_a_loader_goes_on_within_a_pass_of_larger_batches(kind: str) -> None:
    loader = make(kind)
    read(loader)
    loader.set_batch_size(4)
    iterator = iter(loader)
    next(iterator)
    state = loader.get_state()
    rest = [batch["x"].tolist() for batch in iterator]
    again = make(kind)
    again.set_state(state)
    assert (again.batch_size, len(again)) == (4, 3)
    assert read(again) == rest
    assert read(again) == read(loader)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_names_the_size_only_where_it_has_changed(kind: str) -> None:
    loader = make(kind)
    read(loader)
    before = loader.get_state()
    loader.set_batch_size(4)
    assert loader.get_state() == before and "batch_size" not in before
    read(loader)
    assert loader.get_state()["batch_size"] == 4
    loader.set_state(before)  # and takes the first size back where none is named
    assert (loader.batch_size, len(loader)) == (2, 6)
    assert [len(batch) for batch in read(loader)] in ([], [2, 2, 2, 2, 2, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_asked_for_last_counts(kind: str) -> None:
    loader = make(kind)
    loader.set_batch_size(5)
    loader.set_batch_size(np.int64(3))
    assert [len(batch) for batch in read(loader)] == [3, 3, 3, 2]
    loader.set_batch_size(6)
    loader.set_batch_size(3)
    assert [len(batch) for batch in read(loader)] == [3, 3, 3, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_each_process_gives_its_part_of_larger_batches(kind: str) -> None:
    whole = make(kind)
    whole.set_batch_size(4)
    parts = []
    for index in range(2):
        part = make(kind)
        part.set_shard(DataShard(index, 2))
        part.set_batch_size(4)
        parts.append(read(part))
    assert [a + b for a, b in zip(*parts, strict=True)] == read(whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 12, 2.0, True])
def test_sizes_that_cannot_be_are_refused_at_once(kind: str, size: Any) -> None:
    loader = make(kind)
    with pytest.raises(LoaderError, match=f"batch_size={size!r} for 11 rows"):
        loader.set_batch_size(size)
    assert [len(batch) for batch in read(loader)] == [2] * 5 + [1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_size_that_does_not_divide_into_the_parts_is_refused(kind: str) -> None:
    loader = make(kind)
    loader.set_shard(DataShard(0, 2))
    with pytest.raises(LoaderError, match="batch_size=5 for 2 data-parallel parts"):
        loader.set_batch_size(5)


@pytest.mark.parametrize(("kind", "endless"), [("arrays", "endless"), ("grain", "num_epochs")])
def test_a_pass_without_an_end_keeps_its_size(kind: str, endless: str) -> None:
    loader = make(kind, **{endless: kind == "arrays" or None})
    with pytest.raises(LoaderError, match="whose pass has no end"):
        loader.set_batch_size(4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 12, "4", True])
def test_a_state_of_a_size_that_cannot_be_is_refused(kind: str, size: Any) -> None:
    loader = make(kind)
    with pytest.raises(LoaderError, match="Found the loader state"):
        loader.set_state({**loader.get_state(), "batch_size": size})
