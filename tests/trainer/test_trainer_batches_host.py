"""Which batches go into a compiled step as host arrays, and which take the short way there?"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

import xtrainer as xt
from xtrainer.errors import BatchError
from xtrainer.parallel import BatchLayout
from xtrainer.step import PlacedBatch
from xtrainer.trainer import batches
from xtrainer.trainer.batches import BatchPreparer, feeds_host_batches

LARGE = 4096
"""Rows of a batch that is placed, whatever is in it."""


def layout(count: int = 1) -> BatchLayout:
    return BatchLayout.of(zoo.devices(count), xt.ParallelConfig())


def preparer(**options: Any) -> BatchPreparer:
    return BatchPreparer(**{"layout": layout(), "paddable": True, **options})


def batch(rows: int = 8, dtype: Any = np.float32, first: float = 0.0) -> dict[str, Any]:
    return {"inputs": (first + np.arange(2 * rows)).astype(dtype).reshape(rows, 2)}


def is_host(placed: PlacedBatch) -> bool:
    """Says whether all leaves are host arrays; they never are of both kinds."""
    kinds = {type(leaf) is np.ndarray for leaf in jax.tree.leaves(placed.data)}
    assert len(kinds) == 1
    return kinds.pop()


# Host arrays, or arrays on the devices.


@pytest.mark.parametrize("count", [1, 8])
def test_small_batches_stay_where_they_are_on_a_cpu(count: int) -> None:
    prepare, given = preparer(layout=layout(count)), batch()
    placed = prepare(given)
    assert is_host(placed)
    assert placed.data["inputs"] is given["inputs"]
    assert isinstance(placed.row_mask, jax.Array)


@pytest.mark.parametrize(("rows", "stays"), [(8, True), (LARGE, True), (LARGE + 1, False)])
def test_up_to_32_kib_stay(rows: int, stays: bool) -> None:
    prepare = preparer()
    for _ in range(2):  # found out, and then known
        assert is_host(prepare(batch(rows))) is stays


def test_the_leaves_of_a_batch_are_counted_together() -> None:
    half = batch(LARGE)["inputs"]
    assert is_host(preparer()({"a": half}))
    assert not is_host(preparer()({"a": half, "b": half[:, :1].copy()}))


@pytest.mark.parametrize(
    ("leaf", "dtype"),
    [
        (np.zeros((8, 2)), "float32"),
        (np.zeros((8, 2), np.int64), "int32"),
        (jnp.zeros((8, 2)), "float32"),
    ],
    ids=["float64", "int64", "jax.Array"],
)
def test_what_a_device_has_not_or_has_already_is_placed(leaf: Any, dtype: str) -> None:
    prepare = preparer()
    for _ in range(2):
        placed = prepare({**batch(), "other": leaf})
        assert not is_host(placed)
        assert placed.data["other"].dtype == dtype


@pytest.mark.parametrize("name", ["gpu", "tpu"])
def test_where_there_is_another_device_than_a_cpu_a_thread_places_all(name: str) -> None:
    class Devices:
        flat = [*jax.devices()[:1], type("Device", (), {"platform": name})()]

    mesh = type("Mesh", (), {"devices": Devices})()
    assert not feeds_host_batches(type("Layout", (), {"mesh": mesh})())  # type: ignore[arg-type]
    assert feeds_host_batches(layout(8))


def test_with_several_processes_all_is_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert not feeds_host_batches(layout())


@pytest.mark.parametrize("rows", [8, LARGE + 8], ids=["host", "placed"])
def test_a_smaller_batch_is_padded_wherever_it_is(rows: int) -> None:
    prepare = preparer()
    full, less = prepare(batch(rows)), prepare(batch(rows - 3))
    assert (less.rows, less.examples, is_host(less)) == (rows, rows - 3, rows == 8)
    np.testing.assert_array_equal(less.row_mask, np.arange(rows) < rows - 3)
    np.testing.assert_array_equal(less.data["inputs"][: rows - 3], batch(rows)["inputs"][:-3])
    assert less.kind is full.kind


# Kinds.


def test_equal_signatures_have_one_kind_and_others_another() -> None:
    kinds: list[dict[str, Any]] = [
        batch(),
        batch(16),
        batch(dtype=np.int32),
        {"other": batch()["inputs"]},
        {**batch(), "more": np.zeros(8, np.float32)},
        {"inputs": np.zeros((8, 3), np.float32)},
        {"inputs": jnp.zeros((8, 2))},
        batch(LARGE + 8),
    ]
    prepare = preparer(paddable=False)
    first = [prepare(each).kind for each in kinds]
    again = [prepare(each).kind for each in reversed(kinds)]
    assert len({id(kind) for kind in first}) == len(kinds)
    assert None not in first
    assert all(a is b for a, b in zip(first, reversed(again), strict=True))


def test_a_list_and_a_tuple_are_two_kinds() -> None:
    prepare = preparer()
    x = batch()["inputs"]
    assert prepare([x]).kind is not prepare((x,)).kind  # type: ignore[arg-type]
    assert prepare([x]).kind is prepare([x + 1]).kind  # type: ignore[arg-type]


def test_a_kind_is_the_same_in_a_later_run() -> None:
    prepare = preparer()
    kind = prepare(batch()).kind
    prepare.begin(full_rows=8)
    assert prepare(batch()).kind is kind


# The short way.


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the functions by which batches were looked at."""
    calls: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            calls.append(name)
            return function(*args)

        return call

    for name in ("describe_mismatch", "num_rows"):
        monkeypatch.setattr(batches, name, counted(name, getattr(batches, name)))
    return calls


@pytest.mark.parametrize("rows", [8, LARGE + 8], ids=["host", "placed"])
def test_a_batch_like_the_newest_is_not_looked_at(looks: list[str], rows: int) -> None:
    prepare = preparer(accumulate_steps=1, expected=batch(4))
    prepare(batch(rows))
    assert {"describe_mismatch", "num_rows"} == set(looks)
    looks.clear()
    placed = [prepare(batch(rows, first=number)) for number in range(1, 4)]
    assert looks == []
    for number, each in enumerate(placed, start=1):
        np.testing.assert_array_equal(each.data["inputs"], batch(rows, first=number)["inputs"])
        assert (each.rows, each.examples) == (rows, rows)
        assert np.asarray(each.row_mask).all()


@pytest.mark.parametrize(
    "other",
    [
        batch(7),
        {"inputs": np.zeros((8, 2))},
        {"inputs": jnp.zeros((8, 2))},
        {"inputs": np.zeros((8, 3), np.float32)},
        {"input": np.zeros((8, 2), np.float32)},
        {"inputs": [[0.0, 0.0]] * 8},
    ],
    ids=["rows", "dtype", "type", "shape", "name", "no array"],
)
def test_a_batch_unlike_the_newest_is_looked_at(looks: list[str], other: Any) -> None:
    prepare = preparer(accumulate_steps=1, expected=batch(4))
    prepare(batch())
    looks.clear()
    with contextlib.suppress(BatchError):
        prepare(other)
    assert "describe_mismatch" in looks


@pytest.mark.parametrize("expected", [None, batch(4)], ids=["any", "like the example"])
def test_a_smaller_batch_after_full_ones_is_padded_and_masked(expected: Any) -> None:
    prepare = preparer(expected=expected)
    for _ in range(3):
        prepare(batch())
    for _ in range(2):  # the second would be like the newest, if padded ones were kept
        placed = prepare(batch(5))
        assert (placed.rows, placed.examples) == (8, 5)
        np.testing.assert_array_equal(placed.row_mask, np.arange(8) < 5)
    full = prepare(batch())
    assert (full.rows, full.examples) == (8, 8)
    assert np.asarray(full.row_mask).all()


def test_a_run_that_begins_with_the_smaller_batch_pads_and_masks_it() -> None:
    prepare = preparer(accumulate_steps=1)
    prepare.begin(full_rows=8)
    for rows in (5, 8, 8, 5, 5, 8):
        placed = prepare(batch(rows))
        assert (placed.rows, placed.examples) == (8, rows)
        np.testing.assert_array_equal(placed.row_mask, np.arange(8) < rows)
        np.testing.assert_array_equal(placed.data["inputs"][:rows], batch(rows)["inputs"])


def test_a_small_first_batch_of_unknown_full_size_does_not_stay_full() -> None:
    prepare = preparer()
    found = [prepare(batch(rows)) for rows in (5, 5, 8, 8, 5)]
    assert [(each.rows, each.examples) for each in found] == [
        (5, 5), (5, 5), (8, 8), (8, 8), (8, 5)
    ]  # fmt: skip
    np.testing.assert_array_equal(found[-1].row_mask, np.arange(8) < 5)


def test_a_run_that_begins_anew_looks_at_its_first_batch(looks: list[str]) -> None:
    prepare = preparer(accumulate_steps=1, expected=batch(4))
    prepare(batch())
    prepare.begin(full_rows=16)
    looks.clear()
    assert prepare(batch()).rows == 16
    assert looks


# Buffers that are filled again.


class Reused:
    """A loader that fills one buffer again and again, or gives copies of it."""

    def __init__(self, rows: int, count: int, copies: bool) -> None:
        self.batches = [zoo.classification_data(rows, seed) for seed in range(count)]
        self.copies = copies

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[xt.Batch]:
        buffer = jax.tree.map(np.empty_like, self.batches[0])
        for each in self.batches:
            jax.tree.map(np.copyto, buffer, each)
            yield jax.tree.map(np.copy, buffer) if self.copies else buffer


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("rows", [8, LARGE], ids=["small", "large"])
def test_a_loader_that_fills_its_buffer_again_never_changes_what_a_step_has_seen(
    rows: int, steps: int
) -> None:
    states = []
    for copies in (True, False):
        trainer = zoo.make_trainer(
            batch=zoo.classification_data(rows), mesh=zoo.devices(1), steps_per_dispatch=steps
        )
        trainer.train_model(Reused(rows, 9, copies), num_epochs=2)
        states.append(trainer.state)
    zoo.assert_same(*states)
