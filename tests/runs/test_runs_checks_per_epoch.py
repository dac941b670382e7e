"""When is a run validated that asks for so many validations in each epoch?"""

from pathlib import Path
from typing import Any

import probes
import pytest

import xtrainer as xt
from xtrainer.config import check_configs
from xtrainer.errors import ConfigError
from xtrainer.loop import Plan, make_plan
from xtrainer.state import Progress

VAL = probes.numbered(1, first=100)
TEN = probes.numbered(10)


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    """Gives a trainer that is compiled once for all tests of this file."""
    return probes.Repeatable(probes.traced())


# The plan alone.


@pytest.mark.parametrize(
    ("plan", "checks", "length", "points"),
    [
        (make_plan(num_epochs=2), 3, 10, (3, 7, 10)),
        (make_plan(num_epochs=2), 4, 10, (3, 5, 8, 10)),
        (make_plan(num_epochs=2), 1, 10, (10,)),
        (make_plan(num_epochs=2), 5, 2, (1, 2)),
        (make_plan(num_epochs=2, steps_per_epoch=6), 2, None, (3, 6)),
        (make_plan(num_epochs=2, steps_per_epoch=6), 2, 4, (2, 4)),
        (make_plan(num_train_steps=9, steps_per_epoch=6), 2, 4, (3, 6)),
        (make_plan(num_train_steps=9), 2, 4, (2, 4)),
        (make_plan(num_epochs=2), -1, None, ()),
    ],
)
def test_checks_are_spread_evenly_and_end_with_the_epoch(
    plan: Plan, checks: int, length: int | None, points: tuple[int, ...]
) -> None:
    found = plan.with_checks(checks, length)
    assert found.val_points == points and found.validates


def test_the_end_of_an_epoch_is_left_to_its_own_validation() -> None:
    in_epoch = lambda step: Progress(step=20 + step, epochs_done=2, step_in_epoch=step)  # noqa: E731
    due = lambda plan: [n for n in range(1, 11) if plan.checks_now(in_epoch(n))]  # noqa: E731
    for every, expected in ((1, [3, 7]), (2, [3, 7, 10]), (3, [3, 7]), (-1, [3, 7, 10])):
        plan = make_plan(num_epochs=4, check_val_every_n_epoch=every)
        assert due(plan.with_checks(3, 10)) == expected
        assert due(plan) == []


def test_the_next_check_is_found_from_where_the_epoch_began() -> None:
    plan = make_plan(num_epochs=9).with_checks(3, 10)
    at = Progress(step=14, epochs_done=1, step_in_epoch=2)  # an epoch that began after step 12
    assert [plan.next_check(step, at) for step in (14, 15, 18, 19, 21, 22, 25)] == [
        15, 19, 19, 22, 22, 25, 29
    ]  # fmt: skip
    assert make_plan(num_epochs=9).next_check(3, at) is None


def test_an_epoch_of_unknown_length_is_a_mistake() -> None:
    for plan in (make_plan(num_epochs=1), make_plan(num_train_steps=9)):
        with pytest.raises(ConfigError, match="checks_per_epoch: found 3 .* steps_per_epoch"):
            plan.with_checks(3, None)


def test_two_rhythms_within_an_epoch_are_a_mistake() -> None:
    config = xt.TrainerConfig(checks_per_epoch=2, check_val_every_n_steps=5)
    with pytest.raises(ConfigError, match="checks_per_epoch: found 2 with check_val_every_n_steps"):
        check_configs(trainer=config)


# In a run.


def test_three_checks_of_ten_steps_over_two_epochs(stage: probes.Repeatable) -> None:
    trainer = stage.begin(checks_per_epoch=3, every=5)
    results = trainer.train_model(TEN, VAL, num_epochs=2)
    assert list(results) == [
        "val_step_3", "val_step_7", "val_epoch_1", "val_step_13", "val_step_17", "val_epoch_2"
    ]  # fmt: skip
    assert trainer.logger.steps("val") == [3, 7, 10, 13, 17, 20]


def test_without_validations_by_epoch_the_last_check_is_at_the_end(
    stage: probes.Repeatable,
) -> None:
    trainer = stage.begin(checks_per_epoch=2, check_val_every_n_epoch=-1)
    results = trainer.train_model(probes.numbered(5), VAL, num_epochs=2)
    assert list(results) == ["val_step_3", "val_step_5", "val_step_8", "val_step_10"]


def test_epochs_that_end_early_begin_their_checks_anew(stage: probes.Repeatable) -> None:
    short = xt.ArrayLoader(probes.examples(8), batch_size=4, endless=True)
    trainer = stage.begin(checks_per_epoch=2)
    trainer.train_model(short, VAL, num_train_steps=9, steps_per_epoch=4)
    assert trainer.logger.steps("val") == [2, 4, 6, 8, 9]
    lying = Short(probes.numbered(3))  # says 6, gives 3
    trainer = stage.begin(checks_per_epoch=3)
    trainer.train_model(lying, VAL, num_epochs=2)
    assert trainer.logger.steps("val") == [2, 3, 5, 6]


class Short:
    """A loader that promises twice as many batches as it has."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return 2 * len(self.batches)

    def __iter__(self) -> Any:
        return iter(self.batches)


@pytest.mark.parametrize("stop", [2, 3, 8])
def test_a_resumed_run_is_validated_at_the_same_steps(
    stage: probes.Repeatable, tmp_path: Path, stop: int
) -> None:
    checkpoint = xt.ModelCheckpointConfig(log_path=str(tmp_path))
    first = stage.begin(probes.stop_at(stop), checkpoint, checks_per_epoch=3)
    first.train_model(probes.numbered(6), VAL, num_epochs=2)
    before = first.logger.steps("val")
    second = stage.begin(checkpoint, checks_per_epoch=3)
    second.train_model(probes.numbered(6), VAL, num_epochs=2)
    assert second.global_step == 12
    assert before + second.logger.steps("val") == [2, 4, 6, 8, 10, 12]


def test_several_steps_in_a_dispatch_end_at_a_check() -> None:
    trainer = probes.traced(steps_per_dispatch=4, checks_per_epoch=3)
    trainer.logger = probes.Memory()
    results = trainer.train_model(TEN, VAL, num_epochs=2)
    assert trainer.logger.steps("val") == [3, 7, 10, 13, 17, 20]
    assert len(results) == 6
    assert trainer.agenda(make_plan(num_epochs=3).with_checks(3, 10), 10).sizes == (4, 3)


def test_a_loader_without_a_length_is_refused_before_anything_is_compiled(
    stage: probes.Repeatable,
) -> None:
    trainer = stage.begin(checks_per_epoch=3)
    with pytest.raises(ConfigError, match="does not know its length"):
        trainer.train_model(probes.generate(TEN), VAL, num_epochs=1)
    assert trainer.global_step == 0 and trainer.logger.statuses == ["failed"]
