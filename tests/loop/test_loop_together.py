"""What does a process say with its batches, and what do all make of it in the end?"""

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtrainer.data import LoaderPosition, LoaderSource, batch_spec, encode_spec
from xtrainer.errors import CheckpointError, LoaderError, PeerError
from xtrainer.loop import StopReason, together
from xtrainer.loop.together import (
    Together,
    agree_on_first_batch,
    fetch_said,
    raise_evaluation_failure,
)
from xtrainer.step import FAIL, LAST, STOP, StepReport

AT = LoaderPosition(batches=4)
BATCH = {"inputs": np.zeros((3, 2), np.float32)}


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """This is process 0 of two; ``others`` is what the second says, ``log`` what was done."""
    case = types.SimpleNamespace(others=None, log=[], said=None)

    def gather(own: Any, name: str) -> list[Any]:
        case.said = own
        return [own, case.others]

    def gather_results(make: Any, name: str) -> list[Any]:
        own = make()
        if isinstance(case.others, Exception):
            raise PeerError("the other one has failed") from case.others
        return [own, case.others]

    monkeypatch.setattr(together.jax, "process_count", lambda: 2)
    monkeypatch.setattr(together, "gather", gather)
    monkeypatch.setattr(together, "gather_results", gather_results)
    monkeypatch.setattr(together.peers, "settle", lambda: case.log.append("settled"))
    monkeypatch.setattr(together.peers, "announce", lambda error: case.log.append(error))
    return case


def says(**values: Any) -> dict[str, Any]:
    told = {"stop": None, "error": None, "saves": True, "batches": 4, "last": False}
    return {**told, **values}


def test_a_process_alone_says_nothing_and_raises_its_errors() -> None:
    alone = Together()
    assert alone.bits(stop=True, last=True) == 0
    assert alone.agree("x", True) and not alone.agree("x", False)
    assert alone.all_ended(StepReport(1, 0, 0, 0))
    with pytest.raises(ValueError, match="broken"):
        alone.fail(ValueError("broken"))


@pytest.mark.parametrize(
    ("stop", "last", "error", "bits"),
    [
        (False, False, False, 0),
        (True, False, False, STOP),
        (False, True, False, LAST),
        (True, True, True, STOP | LAST | FAIL),
    ],
)
def test_bits_tell_of_stop_end_and_error(
    two: Any, stop: bool, last: bool, error: bool, bits: int
) -> None:
    here = Together()
    if error:
        here.fail(ValueError("broken"))
    assert here.bits(stop, last) == bits


def test_the_first_error_is_kept_and_told_at_once(two: Any) -> None:
    here, first = Together(), ValueError("first")
    here.fail(first)
    here.fail(ValueError("second"))
    assert here.error is first and two.log == [first]
    assert here.bits(stop=False, last=False) == FAIL
    assert here.bits(stop=False, last=False) == FAIL  # until all have heard it


@pytest.mark.parametrize(("agreed", "ended"), [(0, False), (LAST, True), (STOP, False)])
def test_all_passes_have_ended_only_where_all_said_so(two: Any, agreed: int, ended: bool) -> None:
    assert Together().all_ended(StepReport(4, 0, 0, 0, agreed=agreed)) is ended


@pytest.mark.parametrize("other", [True, False])
def test_something_is_so_where_it_is_on_all(two: Any, other: bool) -> None:
    two.others = other
    assert Together().agree("x", True) is other
    assert not Together().agree("x", False)


def conclude(here: Together, ended: int, stop: Any = None) -> tuple[StopReason, str]:
    return here.conclude(StepReport(4, 0, 0, 0, ended=ended), stop, AT)


def test_a_stop_names_the_process_that_asked(two: Any) -> None:
    two.others = says(stop=["REQUESTED", "enough"])
    found = conclude(Together(), STOP)
    assert found == (StopReason.REQUESTED, "Process 1 asked for it. enough")
    assert two.log == ["settled"]


def test_of_two_that_ask_the_first_process_is_named(two: Any) -> None:
    two.others = says(stop=["REQUESTED", "enough"])
    assert conclude(Together(), STOP, (StopReason.REQUESTED, ""))[1] == "Process 0 asked for it."


def test_the_own_error_is_raised_and_told_with_its_traceback(two: Any) -> None:
    here, two.others = Together(), says()
    try:
        raise ValueError("broken")
    except ValueError as error:
        here.fail(error)
    with pytest.raises(ValueError, match="broken"):
        conclude(here, FAIL)
    assert two.said["error"].startswith("Traceback")
    assert two.log[-1] == "settled"


@pytest.mark.parametrize("ended", [FAIL, STOP, STOP | FAIL, LAST])
def test_the_error_of_another_outranks_a_stop(two: Any, ended: int) -> None:
    two.others = says(error="ValueError: broken")
    with pytest.raises(PeerError, match=r"(?s)process 1 has failed:.*ValueError: broken"):
        conclude(Together(), ended, (StopReason.REQUESTED, ""))


@pytest.mark.parametrize(
    ("error", "saves", "may"),
    [
        (None, True, True),
        (ValueError("broken"), True, True),
        (CheckpointError("not saved"), True, False),
        (None, False, False),
    ],
)
def test_all_save_after_an_error_unless_a_save_is_what_failed(
    two: Any, error: Exception | None, saves: bool, may: bool
) -> None:
    here, two.others = Together(), says(error="ValueError: broken", saves=saves)
    if error is not None:
        here.fail(error)
    assert not here.may_save
    with pytest.raises((PeerError, ValueError, CheckpointError)):
        conclude(here, FAIL)
    assert here.may_save == may


def test_an_uneven_end_says_who_has_more(two: Any) -> None:
    here, two.others = Together(), says()
    here.bits(stop=False, last=True)
    message = (
        "at step 4 process 0 is at the end of its pass after 4 batches, process 1 has more after 4"
    )
    with pytest.raises(PeerError, match=message):
        conclude(here, LAST)


# The first batches.


class Prepared:
    """Notes what it is told."""

    def begin(self, rows: int, like: Any = None) -> None:
        """Notes the rows and the shapes."""
        self.rows = rows
        self.like = jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), like)


def first_of(rows: int) -> dict[str, Any]:
    return {"rows": rows, "spec": encode_spec(batch_spec({"inputs": np.zeros((rows, 2))}))}


@pytest.mark.parametrize(("own", "other", "rows"), [(3, 5, 5), (3, 1, 3), (3, None, 3)])
def test_parts_are_as_large_as_the_largest_first_batch(
    two: Any, own: int, other: int | None, rows: int
) -> None:
    two.others = None if other is None else first_of(other)
    source, prepared = LoaderSource([BATCH], "train"), Prepared()
    agree_on_first_batch(source, prepared)  # type: ignore[arg-type]
    assert prepared.rows == rows
    assert prepared.like == {"inputs": ((3, 2), np.float32)}
    assert source.position.batches == 0  # it comes again


def test_a_process_without_a_batch_takes_the_shapes_of_another(two: Any) -> None:
    two.others = first_of(5)
    prepared = Prepared()
    agree_on_first_batch(LoaderSource([], "val"), prepared)  # type: ignore[arg-type]
    assert prepared.rows == 5
    assert prepared.like["inputs"][0] == (5, 2)


def test_rows_of_a_full_part_that_are_known_count(two: Any) -> None:
    prepared = Prepared()
    agree_on_first_batch(LoaderSource([], "train"), prepared, 8, BATCH)  # type: ignore[arg-type]
    assert (prepared.rows, prepared.like) == (8, {"inputs": ((3, 2), np.float32)})


def test_no_batch_on_any_process_is_an_error(two: Any) -> None:
    with pytest.raises(LoaderError, match="'val' loader gave no batch on any of the 2 processes"):
        agree_on_first_batch(LoaderSource([], "val"), Prepared())  # type: ignore[arg-type]


# Evaluations.


def test_what_was_said_with_an_evaluation_step_is_read() -> None:
    assert fetch_said(jnp.array([LAST, 0], jnp.int32), several=True) == (LAST, 0)
    assert fetch_said(jnp.zeros(()), several=False) == (0, 0)


def test_a_failed_evaluation_raises_the_own_error(two: Any) -> None:
    with pytest.raises(ValueError, match="broken"):
        raise_evaluation_failure(ValueError("broken"), "val")
    assert two.log == ["settled"]


def test_a_failed_evaluation_raises_the_error_of_another(two: Any) -> None:
    two.others = ValueError("broken")
    with pytest.raises(PeerError, match="the other one has failed"):
        raise_evaluation_failure(None, "val")
    assert two.log == ["settled"]


def test_a_failed_evaluation_never_goes_on(two: Any) -> None:
    with pytest.raises(PeerError, match="'val' was ended by a process that gave no error"):
        raise_evaluation_failure(None, "val")
