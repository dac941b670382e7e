"""From metrics to rows, from rows to the history and to whoever listens."""

import time

import jax.numpy as jnp
import numpy as np
import pytest

from xtrainer.errors import MetricError
from xtrainer.launch.ray_reports import Inbox, Listener, host_row


def test_numbers_of_any_kind_become_floats():
    row = host_row({"a": 1, "b": np.int32(3), "c": jnp.ones(1, "bfloat16"), "d": True})
    assert row == {"a": 1.0, "b": 3.0, "c": 1.0, "d": 1.0}
    assert {type(value) for value in row.values()} == {float}


@pytest.mark.parametrize("value", [np.ones(2), "3", None, {"a": 1}, 1j])
def test_what_is_not_one_number_is_refused(value):
    with pytest.raises(MetricError, match="The metric 'loss' is .*expected one number"):
        host_row({"loss": value})


class LocalRay:
    """Ray without processes: a call is done at once, and ``get`` gives what it returned."""

    def __init__(self) -> None:
        self.actor = Inbox()
        self.broken = False
        self.take = self

    def remote(self):
        if self.broken:
            raise RuntimeError("the actor is gone")
        return self.actor.take()

    def get(self, value, timeout):
        return value


def listened(rows, on_report=None, ray=None) -> Listener:
    """Returns a listener that has heard all rows."""
    ray = ray or LocalRay()
    with Listener(ray, ray, on_report) as listener:
        for step, row in rows:
            ray.actor.put(step, row)
    return listener


def test_what_comes_last_is_still_taken_at_the_end():
    began = time.monotonic()
    assert listened([(1, {"a": 1.0}), (2, {"a": 2.0})]).history == {1: {"a": 1.0}, 2: {"a": 2.0}}
    assert time.monotonic() - began < 5


def test_reports_of_one_step_are_one_row_and_a_repeated_one_replaces():
    rows = [(1, {"a": 1.0}), (1, {"b": 2.0}), (2, {"a": 3.0}), (1, {"a": 4.0})]
    assert listened(rows).history == {1: {"a": 4.0, "b": 2.0}, 2: {"a": 3.0}}


def test_each_report_is_told_by_itself():
    calls = []
    listened([(1, {"a": 1.0}), (1, {"b": 2.0})], lambda row, step: calls.append((row, step)))
    assert calls == [({"a": 1.0}, 1), ({"b": 2.0}, 1)]


def test_a_broken_on_report_is_shown_once_and_ends_nothing(caplog):
    calls = []

    def broken(row, step):
        calls.append(step)
        raise OSError("no display")

    assert set(listened([(1, {"a": 1.0}), (2, {"a": 2.0})], broken).history) == {1, 2}
    assert calls == [1]
    assert "on_report failed at step 1" in caplog.text and "no display" in caplog.text


def test_an_inbox_that_is_gone_is_told_and_ends_nothing(caplog):
    ray = LocalRay()
    ray.broken = True
    assert listened([(1, {"a": 1.0})], ray=ray).history == {}
    assert "cannot be read any more" in caplog.text


def test_the_inbox_gives_each_row_once_and_keeps_the_result():
    inbox = Inbox()
    inbox.put(1, {"a": 1.0})
    assert (inbox.take(), inbox.take()) == ([(1, {"a": 1.0})], [])
    assert inbox.result() == {}
    inbox.finish({"value": 3})
    assert inbox.result() == {"value": 3}
