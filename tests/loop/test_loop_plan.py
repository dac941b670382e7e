"""What was asked of a run, without a run."""

from typing import Any

import pytest

from xtrainer.errors import ConfigError
from xtrainer.loop import Plan, make_plan
from xtrainer.state import Progress


def at(step: int, epochs_done: int = 0, step_in_epoch: int = 0) -> Progress:
    return Progress(step=step, epochs_done=epochs_done, step_in_epoch=step_in_epoch)


@pytest.mark.parametrize(
    ("plan", "progress", "done"),
    [
        (make_plan(num_epochs=2), at(7, 1, 3), False),
        (make_plan(num_epochs=2), at(8, 2), True),
        (make_plan(num_epochs=2), at(12, 3), True),
        (make_plan(num_epochs=0), at(0), True),
        (make_plan(num_train_steps=5), at(4, 3), False),
        (make_plan(num_train_steps=5), at(5), True),
        (make_plan(num_train_steps=5), at(6), True),
        (make_plan(num_train_steps=0), at(0), True),
    ],
)
def test_a_plan_is_done_at_its_total(plan: Plan, progress: Progress, done: bool) -> None:
    assert plan.done(progress) is done


@pytest.mark.parametrize(
    ("plan", "progress", "left"),
    [
        (make_plan(num_epochs=2), at(3, 0, 3), None),
        (make_plan(num_epochs=2, steps_per_epoch=5), at(3, 0, 3), 2),
        (make_plan(num_epochs=2, steps_per_epoch=5), at(5, 1, 0), 5),
        (make_plan(num_train_steps=9), at(3, 0, 3), 6),
        (make_plan(num_train_steps=9, steps_per_epoch=5), at(3, 0, 3), 2),
        (make_plan(num_train_steps=9, steps_per_epoch=5), at(7, 1, 2), 2),
        (make_plan(num_train_steps=9), at(12), 0),
        (make_plan(num_epochs=2, steps_per_epoch=5), at(6, 0, 6), 0),
    ],
)
def test_batches_left_are_those_an_epoch_can_still_take(
    plan: Plan, progress: Progress, left: int | None
) -> None:
    assert plan.batches_left(progress) == left


@pytest.mark.parametrize(
    ("steps_per_epoch", "step_in_epoch", "full"), [(None, 9, False), (4, 3, False), (4, 4, True)]
)
def test_an_epoch_is_full_at_steps_per_epoch(
    steps_per_epoch: int | None, step_in_epoch: int, full: bool
) -> None:
    plan = make_plan(num_epochs=1, steps_per_epoch=steps_per_epoch)
    assert plan.epoch_is_full(at(step_in_epoch, 0, step_in_epoch)) is full


@pytest.mark.parametrize(
    ("plan", "ends", "continues"),
    [
        (make_plan(num_epochs=2), True, False),
        (make_plan(num_epochs=2, steps_per_epoch=5), True, False),
        (make_plan(num_train_steps=9), True, False),
        (make_plan(num_train_steps=9, steps_per_epoch=5), False, True),
        (make_plan(num_train_steps=9, steps_per_epoch=3), False, False),
        (make_plan(num_train_steps=3, steps_per_epoch=5), False, False),
    ],
)
def test_only_epochs_counted_in_steps_go_on_after_a_pass(
    plan: Plan, ends: bool, continues: bool
) -> None:
    assert plan.passes_end_epochs is ends
    assert plan.epoch_continues(at(3, 0, 3)) is continues


def test_validation_is_due_at_multiples() -> None:
    plan = make_plan(num_epochs=9, check_val_every_n_epoch=3, check_val_every_n_steps=4)
    assert [n for n in range(1, 10) if plan.validates_after_epoch(n)] == [3, 6, 9]
    assert [n for n in range(1, 10) if plan.validates_after_step(n)] == [4, 8]
    assert plan.validates


def test_minus_one_means_no_validation() -> None:
    plan = make_plan(num_epochs=9, check_val_every_n_epoch=-1, check_val_every_n_steps=-1)
    assert not any(plan.validates_after_epoch(n) or plan.validates_after_step(n) for n in range(20))
    assert not plan.validates


@pytest.mark.parametrize(
    ("plan", "length", "steps", "epochs"),
    [
        (make_plan(num_epochs=3), 7, 21, 3),
        (make_plan(num_epochs=3), None, None, 3),
        (make_plan(num_epochs=3, steps_per_epoch=5), None, 15, 3),
        (make_plan(num_epochs=3, steps_per_epoch=5), 4, 12, 3),
        (make_plan(num_epochs=3, steps_per_epoch=5), 9, 15, 3),
        (make_plan(num_train_steps=10), 4, 10, 3),
        (make_plan(num_train_steps=10), None, 10, None),
        (make_plan(num_train_steps=10, steps_per_epoch=5), 4, 10, 2),
    ],
)
def test_totals_are_known_where_lengths_are(
    plan: Plan, length: int | None, steps: int | None, epochs: int | None
) -> None:
    assert plan.total_steps(length) == steps
    assert plan.total_epochs(length) == epochs


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "found neither of num_epochs and num_train_steps, expected exactly one"),
        ({"num_epochs": 2, "num_train_steps": 9}, r"found both \(2 and 9\)"),
        ({"num_epochs": -1}, "num_epochs=-1, expected a whole number >= 0"),
        ({"num_train_steps": 2.5}, "num_train_steps=2.5, expected a whole number"),
        ({"num_epochs": True}, "num_epochs=True, expected a whole number"),
        ({"num_epochs": "3"}, "num_epochs='3', expected a whole number"),
        (
            {"num_epochs": 1, "steps_per_epoch": 0},
            "steps_per_epoch=0, expected a whole number >= 1",
        ),
    ],
)
def test_numbers_that_cannot_be_are_errors(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(**given)


def test_all_mistakes_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(num_epochs=-1, num_train_steps=-2, steps_per_epoch=0)
    assert len(caught.value.problems) == 4
