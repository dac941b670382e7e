"""Do all processes hear the same with a step, and does a step that ends the run change nothing?"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

import xtrainer as xt
from xtrainer.parallel import copy_tree, put_global
from xtrainer.state import GuardState
from xtrainer.step import FAIL, LAST, STOP, StepReport
from xtrainer.step.guard import guard_step
from xtrainer.step.signals import (
    SignalPlacer,
    Signals,
    ends_after,
    ends_before,
    reduce_signals,
)

EVERY = range(8)
"""All sums of the three bits."""


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("one", EVERY)
def test_what_one_and_what_all_processes_said_is_known(one: int, devices: int) -> None:
    for other in EVERY:
        sent = np.repeat(np.array([one, other, other], np.int32), devices)
        said = reduce_signals(jnp.asarray(sent))
        assert (int(said.any), int(said.all)) == (one | other, one & other)
        assert said.any.dtype == said.all.dtype == jnp.int32


@pytest.mark.parametrize("one", EVERY)
def test_a_stop_and_an_error_forbid_the_step_and_an_uneven_end_the_next(one: int) -> None:
    for every in (bits for bits in EVERY if one & bits == bits):
        said = Signals(jnp.int32(one), jnp.int32(every))
        assert int(ends_before(said)) == one & (STOP | FAIL)
        assert int(ends_after(said)) == (LAST if one & LAST and not every & LAST else 0)


def test_each_device_carries_the_bits_of_its_process() -> None:
    place = SignalPlacer(xt.build_mesh(xt.ParallelConfig(fsdp_axis_size=2)))
    placed = place(STOP)
    assert placed.shape == (8,) and placed.dtype == np.int32
    assert {shard.data.shape for shard in placed.addressable_shards} == {(1,)}
    np.testing.assert_array_equal(placed, np.full(8, STOP))
    assert place(STOP) is placed  # a step costs no transfer


# The latch in the compiled step.


def speaking() -> Any:
    """Returns a new trainer on eight devices whose step takes signals, as with processes."""
    trainer = zoo.make_trainer(model={"dropout": 0.2}, optimizer=zoo.optimizer("adam", 0.05))
    executor = trainer.compiled_train_step
    executor._signals = _Placer(trainer.mesh)
    return trainer


class _Placer(SignalPlacer):
    """Places the bits of two processes, of which the second has four of the eight devices."""

    def __call__(self, bits: Any) -> jax.Array:
        return put_global(np.repeat(np.array(bits, np.int32), 4), self.sharding)


@functools.cache
def trainer() -> Any:
    return speaking()


def run(*said: tuple[int, int], bad: int = -1) -> tuple[list[StepReport], Any]:
    """Returns the reports of steps with which two processes said bits, and the last state."""
    made = trainer()
    executor = made.compiled_train_step
    state = copy_tree(made.state, jax.tree.map(lambda x: x.sharding, made.state))
    window, reports = executor.new_window(), []
    for number, bits in enumerate(said):
        data = zoo.classification_data(16, seed=number)
        if number == bad:
            data = dataclasses.replace(data, inputs=np.full_like(data.inputs, np.nan))
        state, window, report = executor(state, made.prepare_train_batch(data), window, bits)
        reports.append(StepReport.fetch(report))
    return reports, state


QUIET = (0, 0)


@pytest.mark.parametrize("bits", [(STOP, 0), (0, STOP), (0, FAIL), (STOP, FAIL), (STOP, STOP)])
def test_a_step_with_a_stop_or_an_error_and_all_later_ones_are_not_taken(
    bits: tuple[int, int],
) -> None:
    reports, state = run(QUIET, QUIET, bits, QUIET, (LAST, LAST))
    _, expected = run(QUIET, QUIET)
    assert [report.step for report in reports] == [1, 2, 2, 2, 2]
    assert [report.ended for report in reports] == [0, 0, *[bits[0] | bits[1]] * 3]
    assert [report.examples for report in reports] == [16, 16, 0, 0, 0]
    assert [report.skipped for report in reports] == [0] * 5
    for part in ("params", "opt_state", "step", "mutable_variables"):
        zoo.assert_same(getattr(state, part), getattr(expected, part))


@pytest.mark.parametrize("bits", [(LAST, 0), (0, LAST)])
def test_an_uneven_end_lets_the_step_stand_and_forbids_the_next(bits: tuple[int, int]) -> None:
    reports, state = run(QUIET, bits, QUIET, QUIET)
    assert [report.step for report in reports] == [1, 2, 2, 2]
    assert [report.ended for report in reports] == [0, LAST, LAST, LAST]
    zoo.assert_same(state.params, run(QUIET, QUIET)[1].params)


def test_passes_that_end_together_end_nothing() -> None:
    reports, _ = run(QUIET, (LAST, LAST), QUIET)
    assert [report.step for report in reports] == [1, 2, 3]
    assert [report.ended for report in reports] == [0, 0, 0]
    assert [report.agreed for report in reports] == [0, LAST, 0]


def test_the_first_end_is_the_one_that_is_kept() -> None:
    reports, _ = run((STOP, 0), (0, FAIL))
    assert [report.ended for report in reports] == [STOP, STOP]


def test_a_bad_batch_behind_the_end_is_no_refused_step() -> None:
    reports, _ = run(QUIET, (0, STOP), QUIET, bad=2)
    assert [report.skipped for report in reports] == [0, 0, 0]
    assert reports[-1].consecutive == 0


def test_a_bad_step_that_halts_the_run_outranks_a_later_stop() -> None:
    reports, _ = run(QUIET, QUIET, (STOP, 0), bad=1)
    assert [(report.step, report.consecutive) for report in reports] == [(1, 0), (1, 1), (1, 1)]


def test_without_signals_a_step_is_decided_by_the_guard_alone() -> None:
    made = trainer()
    state, accepted = guard_step(made.state, made.state, jnp.array(True), limit=1)
    assert bool(accepted) and isinstance(state.guard, GuardState)
    assert int(state.guard.ended) == 0


# What it costs.


def all_reduces(made: Any, bits: Any = None) -> int:
    """Returns how often a compiled step sums over devices."""
    executor = made.compiled_train_step
    batch = made.prepare_train_batch(zoo.classification_data(16))
    arguments = executor._named(made.state, batch, executor.new_window(), bits)
    text = executor._function(16, 1).lower(*arguments.values()).compile().as_text()
    return text.count(" all-reduce(") + text.count(" all-reduce-start(")


def test_signals_add_at_most_one_sum_over_devices_to_a_step() -> None:
    without = all_reduces(zoo.make_trainer(model={"dropout": 0.2}))
    assert 0 < without <= all_reduces(speaking(), QUIET) <= without + 1
