"""How long a run is, in epochs, iterations and parts of an epoch."""

from typing import Any

import numpy as np
import probes
import pytest

import xtrainer as xt
from xtrainer.errors import ConfigError

EPOCH, ITERATION = xt.TrainingUnit.EPOCH, xt.TrainingUnit.ITERATION
BATCHES = 5


@pytest.mark.parametrize(
    ("label", "unit"), [("epoch", EPOCH), ("iteration", ITERATION), (" Epoch\n", EPOCH)]
)
def test_a_unit_is_known_by_its_name(label: str, unit: xt.TrainingUnit) -> None:
    assert xt.TrainingUnit.from_str(label) is unit


@pytest.mark.parametrize(
    ("label", "hint"),
    [("epochs", "Did you mean 'epoch'"), ("step", "Known names: epoch, iter"), (3, "found 3")],
)
def test_another_name_is_an_error(label: Any, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        xt.TrainingUnit.from_str(label)


@pytest.mark.parametrize(
    ("unit", "total", "length", "totals"),
    [
        (EPOCH, 3, None, {"num_epochs": 3}),
        (EPOCH, 3.0, 7, {"num_epochs": 3}),
        (EPOCH, np.int64(2), None, {"num_epochs": 2}),
        (EPOCH, 2.5, 4, {"num_train_steps": 10}),
        (EPOCH, 2.5, 5, {"num_train_steps": 13}),  # rounded up: no part is left out
        (EPOCH, 0.1, 30, {"num_train_steps": 3}),  # 0.1 * 30 is more than 3 in binary
        (EPOCH, np.float64(0.5), np.int64(8), {"num_train_steps": 4}),
        (ITERATION, 100, None, {"num_train_steps": 100}),
        (ITERATION, 1e3, 5, {"num_train_steps": 1000}),
        (ITERATION, 0, None, {"num_train_steps": 0}),
    ],
)
def test_a_total_is_what_train_model_takes(
    unit: xt.TrainingUnit, total: Any, length: Any, totals: dict[str, int]
) -> None:
    found = unit.totals(total, length)
    assert found == totals and type(next(iter(found.values()))) is int


@pytest.mark.parametrize(
    ("unit", "total", "length", "message"),
    [
        (EPOCH, 1.5, None, "found 1.5 epochs and no epoch_length"),
        (EPOCH, 1.5, 0, "found 0 for epoch_length, expected a whole number >= 1"),
        (EPOCH, 0.5, 2**33, "for epoch_length, expected a whole number <= 2147483647"),
        (EPOCH, 10.5, 2**30, "found 10.5 for num_train_steps, expected .* <= 2147483647"),
        (EPOCH, -0.5, 4, "found -0.5 for num_train_steps, expected a whole number >= 0"),
        (EPOCH, float("nan"), 4, "found nan for num_epochs"),
        (EPOCH, float("inf"), 4, "found inf for num_epochs"),
        (EPOCH, "2", 4, "found '2' for num_epochs"),
        (EPOCH, True, 4, "found True for num_epochs"),
        (ITERATION, 2.5, 4, "found 2.5 for num_train_steps, expected a whole number"),
        (ITERATION, -1, None, "found -1 for num_train_steps, expected a whole number >= 0"),
    ],
)
def test_what_is_no_length_is_an_error(
    unit: xt.TrainingUnit, total: Any, length: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        unit.totals(total, length)


def test_a_unit_is_saved_in_a_config_by_its_name() -> None:
    assert xt.Config.from_dict(xt.TrainingUnit, "epoch") is EPOCH


def test_a_run_of_one_and_a_half_epochs_goes_on_after_a_stop(stage: probes.Repeatable) -> None:
    totals = EPOCH.totals(1.5, BATCHES)

    def run(*callbacks: Any, **asked: int) -> Any:
        trainer, loader = stage.begin(*callbacks), probes.numbered(BATCHES)
        trainer.train_model(loader, **asked)
        if trainer.stop_reason is xt.StopReason.REQUESTED:
            trainer.train_model(loader, **asked)
        return trainer

    trainer = run(probes.stop_at(6), **totals)
    assert trainer.stop_reason is xt.StopReason.FINISHED
    progress = trainer.progress
    assert (progress.step, progress.epochs_done, progress.step_in_epoch) == (8, 1, 3)
    learned = probes.learned(trainer)
    probes.assert_same_course(learned, probes.learned(run(num_train_steps=8)))
