"""Do sums over processes count every token once, where some processes have none?"""

import functools
from typing import Any

import jax
import member
import numpy as np
import process_zoo
import pytest
import sums

pytestmark = pytest.mark.processes

COUNTS = (2, 3)
"""How many processes; a run of one is the reference."""


@functools.cache
def alone() -> dict[str, Any]:
    """Returns the evaluations of a run of one process, on the eight devices of the tests."""
    return sums.evaluations(member.Member(process_zoo.TESTS))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs of two processes with two devices each, and of three with one."""

    @functools.cache
    def run(count: int) -> process_zoo.Run:
        what = ["evaluations", "predictions", *(["gradients", "online"] if count == 2 else [])]
        folder = tmp_path_factory.mktemp(f"sums_{count}")
        devices = 2 if count == 2 else 1
        # As here, so that parameters begin equal to the bit.
        run = process_zoo.run_processes("sums.py", folder, count, devices, *what, optimized=True)
        return run.ended_well()

    return run


def values(run: process_zoo.Run, name: str) -> dict[str, Any]:
    """Returns what every process has found, where all agree."""
    said = run.said(name)
    assert [one["error"] for one in said] == [None] * len(said), said[0]["text"]
    assert all(one["value"] == said[0]["value"] for one in said)
    return said[0]["value"]


def gradient_by_hand(params: list[np.ndarray], batch: sums.Batch) -> list[np.ndarray]:
    """Returns the gradient of the mean loss, in float64: softmax less target, times the input."""
    bias, kernel = (np.asarray(leaf, np.float64) for leaf in params)
    inputs = batch["inputs"].astype(np.float64)
    logits = inputs @ kernel + bias
    share = np.exp(logits - logits.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    error = share - np.eye(sums.CLASSES)[batch["targets"]]
    error *= (batch["mask"] / batch["mask"].sum())[..., None]
    return [error.sum((0, 1)), np.einsum("rtf,rtc->fc", inputs, error)]


@pytest.mark.parametrize("accumulate", sums.ACCUMULATE)
@pytest.mark.parametrize("number", range(sums.NUM_MASKS))
def test_a_gradient_is_that_of_all_tokens_however_few_a_process_has(
    runs: Any, accumulate: int, number: int
) -> None:
    found, batch = values(runs(2), "gradients"), sums.masked(number)
    if number < 4:  # all tokens are on one device of one process
        assert sorted(half.any() for half in np.split(batch["mask"], 2)) == [False, True]
    shapes = [(sums.CLASSES,), (sums.FEATURES, sums.CLASSES)]
    params = [np.reshape(x, s) for x, s in zip(found["params"], shapes, strict=True)]
    gradient = found[f"{accumulate}/{number}"]
    for one, expected in zip(gradient, gradient_by_hand(params, batch), strict=True):
        scale = np.abs(expected).max()
        assert scale > 1e-3
        np.testing.assert_allclose(one, expected.ravel(), rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("deal", list(sums.DEALS))
def test_an_evaluation_of_processes_has_the_counts_and_means_of_one(
    runs: Any, count: int, deal: str
) -> None:
    found, expected = values(runs(count), "evaluations"), alone()
    assert found["params"] == expected["params"]
    for rows in range(1, sums.LARGEST + 1):
        several, one = found[f"{deal}/{rows}"], expected[f"{deal}/{rows}"]
        tokens = float(sums.examples(rows, seed=rows)["mask"].sum())
        assert one["counts"] == {"accuracy": tokens, "loss": tokens, "rows": float(rows)}
        assert several["counts"] == one["counts"], rows
        for name, mean in one["means"].items():
            assert several["means"][name] == pytest.approx(mean, rel=1e-6), (rows, name)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("deal", list(sums.DEALS))
def test_predictions_of_processes_are_the_rows_of_all_in_the_order_of_the_batches(
    runs: Any, count: int, deal: str
) -> None:
    found = values(runs(count), "predictions")  # the same on every process
    size = sums.LOCAL_ROWS
    for rows in sums.PREDICTED:
        dealt = [sums.DEALS[deal](rows, index, count) for index in range(count)]
        starts = range(0, max(map(len, dealt)), size)
        order = [row for at in starts for own in dealt for row in own[at : at + size]]
        expected = sums.examples(rows, seed=rows)["inputs"][order, 0, 0]
        assert sorted(order) == list(range(rows))
        assert found[f"{deal}/{rows}"] == expected.tolist(), rows


@pytest.mark.parametrize("count", COUNTS)
def test_data_are_prepared_by_the_main_process_while_the_others_wait(runs: Any, count: int) -> None:
    sets = len(sums.DEALS) * len(sums.PREDICTED)  # each is read by all when it has been written
    assert runs(count).said("prepared") == [sets, *[0] * (count - 1)]


def test_a_pass_over_new_data_is_that_of_an_epoch(runs: Any) -> None:
    found = values(runs(2), "online")  # the same on every process
    assert found["gradient"] == found["same"]
    assert found["counted"] == [3, 0]
    assert found["means"]["loss"] == pytest.approx(found["loss"], rel=1e-6)


def test_some_processes_have_no_row_at_all() -> None:
    for deal, count in (("all to the first", 2), ("in turn", 3)):
        dealt = [sums.DEALS[deal](2, index, count) for index in range(count)]
        assert [] in dealt and sorted(sum(dealt, [])) == [0, 1]


def test_parameters_begin_equal_on_any_number_of_devices() -> None:
    assert jax.device_count() == 8
    trainer = sums.make_trainer()
    assert member.leaves(trainer.state.params) == alone()["params"]
