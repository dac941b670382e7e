"""The device's side of a run: what is compiled, and what may be transferred."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.loop import StopReason


def implicit(*args: Any) -> None:
    """Moves a host array to the device without saying so."""
    jax.jit(lambda x: x + 1)(np.ones(3, np.float32))


def place_batches(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a trainer place every batch and guard transfers, as it does on an accelerator."""
    for prepare in (trainer.prepare_train_batch, trainer.prepare_eval_batch):
        monkeypatch.setattr(prepare, "feeds_host", False)


class Spoiled:
    """An executor with an implicit transfer in front of each step."""

    def __init__(self, executor: Any) -> None:
        self.executor, self.new_window = executor, executor.new_window
        self.programs, self.ahead = executor.programs, executor.ahead
        self.flatten = executor.flatten

    def __call__(self, *args: Any) -> Any:
        implicit()
        return self.executor(*args)


def test_an_implicit_transfer_between_steps_is_an_error(
    stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    implicit()  # compiled here, so that only the transfer is left
    trainer = stage.begin()
    place_batches(trainer, monkeypatch)
    monkeypatch.setattr(trainer, "compiled_train_step", Spoiled(trainer.compiled_train_step))
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        trainer.train_model(probes.numbered(3), num_epochs=1)


def test_an_implicit_transfer_between_evaluation_steps_is_an_error(
    stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    implicit()
    trainer = stage.begin()
    place_batches(trainer, monkeypatch)
    monkeypatch.setattr(trainer, "compiled_eval_step", Spoiled(trainer.compiled_eval_step))
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        trainer.eval_model(probes.numbered(3))


@pytest.mark.parametrize("hook", [hook for hook in probes.HOOKS if hook != "on_exception"])
def test_callbacks_may_transfer_at_every_moment(stage: probes.Repeatable, hook: str) -> None:
    trainer = stage.begin(probes.acting(hook, implicit), check_val_every_n_steps=2)
    trainer.train_model(probes.numbered(3), probes.numbered(1), probes.numbered(1), num_epochs=2)
    assert trainer.stop_reason is StopReason.FINISHED
    assert trainer.callbacks[0].calls


def test_loggers_may_transfer(stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = stage.begin(check_val_every_n_steps=2)
    monkeypatch.setattr(trainer.logger, "log_metrics", implicit)
    trainer.train_model(probes.numbered(3), probes.numbered(1), num_epochs=1)
    assert trainer.stop_reason is StopReason.FINISHED


def test_loaders_may_give_arrays_that_are_on_a_device(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    trainer.train_model([jax.tree.map(jnp.asarray, probes.one(1))], num_epochs=2)
    assert trainer.stop_reason is StopReason.FINISHED


def test_the_guard_is_entered_once_for_an_epoch(
    stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[str] = []
    guard = jax.transfer_guard

    @contextmanager
    def counted(level: str) -> Iterator[None]:
        entered.append(level)
        with guard(level):
            yield

    monkeypatch.setattr("jax.transfer_guard", counted)
    place_batches(stage.trainer, monkeypatch)
    trainer = stage.begin(every=1000)
    trainer.train_model(probes.numbered(4), num_epochs=2)
    # Those that allow are the two ends of epochs, where no row is due, and the last row.
    assert entered.count("disallow") == 2
    assert entered.count("allow") == 1


def test_the_guard_is_gone_after_training(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    trainer.train_model(probes.numbered(2), num_epochs=1)
    implicit()


def test_debug_leaves_steps_uncompiled_and_unguarded() -> None:
    calls: list[bool] = []

    class Looking(xt.TrainerModule):
        model_class = nn.Dense

        def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
            calls.append(train)
            implicit()
            return apply_fn({"params": params}, batch["inputs"])[:, 0], ({}, {})

    quiet = {"log_grad_norm": False, "log_param_norm": False}  # each operation is compiled alone
    trainer = zoo.make_trainer(
        Looking,
        model={"features": 1},
        optimizer=optax.sgd(0.1),
        batch=probes.one(0),
        mesh=zoo.devices(1),
        debug=True,
        **quiet,
    )
    calls.clear()
    with zoo.compilations() as compiled:
        trainer.train_model(probes.numbered(1), probes.numbered(1), num_epochs=1)
    assert compiled["train_step"] == compiled["eval_step"] == 0
    assert calls == [False, True, False]  # the trial of the evaluation, the step, the evaluation


class Counting(zoo.Classifier):
    """Counts how often the loss is traced."""

    traces = 0

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        type(self).traces += 1
        return super().loss_function(params, apply_fn, batch, rng, train)


def test_a_whole_run_compiles_one_training_and_one_evaluation_step(tmp_path: Any) -> None:
    trainer = zoo.make_trainer(
        Counting,
        model={"dropout": 0.2},
        logger=zoo.file_logger(tmp_path, 2),
        callbacks=[
            xt.ModelCheckpointConfig(monitor="loss", every_n_steps=2),
            xt.LearningRateMonitorConfig(),
        ],
        check_val_every_n_steps=3,
    )
    trainer.callbacks.append(probes.Recorder(trainer))
    ragged, held_out = zoo.loader(rows=56), zoo.loader(rows=40)
    Counting.traces = 0
    with zoo.compilations() as compiled:
        trainer.train_model(ragged, held_out, held_out, num_epochs=2)
        trainer.train_model(ragged, held_out, held_out, num_epochs=3)
        trainer.train_model(zoo.loader(), zoo.loader(rows=8), num_epochs=4)
    assert (compiled["train_step"], compiled["eval_step"]) == (1, 1)
    assert trainer.global_step == 16
    traced = Counting.traces
    trainer.train_model(zoo.loader(), zoo.loader(), num_epochs=5)
    assert Counting.traces == traced


def test_going_on_after_a_refused_step_compiles_nothing(stage: probes.Repeatable) -> None:
    trainer, batches = stage.begin(), probes.numbered(4, bad=[3])
    trainer.train_model(batches, num_epochs=1)
    batches[2] = probes.one(3)
    with zoo.compilations() as compiled:
        trainer.train_model(batches, num_epochs=1)
    assert trainer.stop_reason is StopReason.FINISHED
    assert compiled["train_step"] == compiled["eval_step"] == 0


def test_a_run_on_all_devices_stops_and_goes_on_like_one_on_one_device() -> None:
    orders = []
    for mesh in (zoo.devices(1), zoo.devices(8)):
        batches = probes.numbered(4, rows=8, bad=[3])
        trainer = probes.traced(mesh=mesh, batch=probes.one(0, 8), model={"width": 4})
        trainer.logger = probes.Memory()
        trainer.train_model(batches, num_epochs=1)
        assert (trainer.stop_reason, trainer.global_step) == (StopReason.NONFINITE, 2)
        batches[2] = probes.one(3, 8)
        trainer.train_model(batches, batches, num_epochs=2)
        orders.append(trainer.logger.rows("train_epoch"))
    for (step, row), (other_step, other) in zip(*orders, strict=True):
        assert step == other_step
        assert row == pytest.approx(other, rel=1e-5)
