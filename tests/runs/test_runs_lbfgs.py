"""Does L-BFGS solve a convex problem in the steps of a loop by hand, on any devices?"""

import dataclasses
import functools
from pathlib import Path
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

ROWS, FEATURES, NEAR = 64, 6, 1e-6
CONFIG = xt.OptimizerConfig(name="lbfgs", memory_size=5)


class Linear(nn.Module):
    """One layer: its least squares are convex."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return nn.Dense(1)(x)[:, 0]


class Regression(xt.TrainerModule):
    """Least squares."""

    model_class = Linear

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        output = apply_fn({"params": params}, batch.inputs, train=train)
        return (output - batch.targets) ** 2, ({}, {})


@functools.cache
def data() -> xt.Batch:
    """Returns rows that a layer fits exactly, with features of different sizes."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(ROWS, FEATURES)) * 1.3 ** np.arange(FEATURES)
    targets = inputs @ generator.normal(size=FEATURES) + 0.5
    return xt.Batch(inputs=inputs.astype(np.float32), targets=targets.astype(np.float32))


def loader() -> xt.ArrayLoader:
    return xt.ArrayLoader(data(), batch_size=ROWS)


def make(devices: int = 1, optimizer: Any = CONFIG, **config: Any) -> Any:
    """Returns a trainer that begins at given parameters."""
    trainer = zoo.make_trainer(
        Regression, optimizer=optimizer, batch=data(), mesh=zoo.devices(devices), **config
    )
    state = trainer.state
    zeros = jax.tree.map(lambda p: jax.device_put(jnp.zeros_like(p), p.sharding), state.params)
    trainer.state = state.replace(params=zeros)
    return trainer


@functools.cache
def by_hand(steps: int = 20, fixed: bool = False) -> tuple[list[float], Any]:
    """Returns the loss before each step of a loop by hand, and the last parameters."""
    bias = {"bias": jnp.zeros(1)}

    def value_fn(p: Any) -> jax.Array:
        whole = {"Dense_0": p | bias if fixed else p}
        output = Linear().apply({"params": whole}, data().inputs)
        return jnp.mean((output - data().targets) ** 2)  # type: ignore[operator]

    optimizer = optax.lbfgs(memory_size=5)

    @jax.jit
    def step(p: Any, state: Any) -> Any:
        value, grad = jax.value_and_grad(value_fn)(p)
        extra = {"value": value, "grad": grad, "value_fn": value_fn}
        updates, state = optimizer.update(grad, state, p, **extra)
        return optax.apply_updates(p, updates), state, value

    p = {"kernel": jnp.zeros((FEATURES, 1))} | ({} if fixed else bias)
    state, losses = optimizer.init(p), []
    for _ in range(steps):
        p, state, value = step(p, state)
        losses.append(float(value))
    return losses, p


def solved_at(losses: list[float]) -> int:
    """Returns the first step before which the loss is solved."""
    return next(index for index, loss in enumerate(losses) if loss <= NEAR)


def course(trainer: Any, steps: int) -> list[float]:
    """Returns the logged loss before each step of a run."""
    trainer = probes.Repeatable(trainer).begin()
    trainer.train_model(loader(), None, num_train_steps=steps)
    assert trainer.progress.skipped == 0
    return trainer.logger.column("loss_mean")


@pytest.mark.parametrize(("devices", "count"), [(1, 1), (8, 4)])
def test_a_convex_problem_is_solved_in_the_steps_of_a_loop_by_hand(devices, count) -> None:
    losses, _ = by_hand()
    wanted = solved_at(losses)
    assert 5 < wanted < 20
    found = course(make(devices, gradient_accumulate_steps=count), wanted + 1)
    assert solved_at(found) == wanted
    np.testing.assert_allclose(found[:4], losses[:4], rtol=1e-4)


def test_frozen_parameters_stay_and_the_others_go_as_by_hand() -> None:
    trainer = make(optimizer=dataclasses.replace(CONFIG, freeze=("*/bias",)))
    found = course(trainer, 10)
    losses, last = by_hand(10, fixed=True)
    np.testing.assert_allclose(found, losses, rtol=1e-4)
    zoo.assert_same(trainer.state.params["Dense_0"]["bias"], jnp.zeros(1))
    zoo.assert_close(trainer.state.params["Dense_0"]["kernel"], last["kernel"], 1e-3, 1e-4)


def test_it_goes_on_from_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    saving = xt.ModelCheckpointConfig(monitor="loss")
    stage = probes.Repeatable(make())

    def train(trainer: Any) -> Any:
        trainer.train_model(loader(), loader(), num_train_steps=8)
        return probes.learned(trainer)

    end = train(stage.begin(saving, folder=tmp_path / "whole"))
    train(stage.begin(saving, probes.stop_at(4), folder=tmp_path / "parts"))
    second = stage.begin(saving, folder=tmp_path / "parts")
    assert second.load_model() == 4
    probes.assert_same_course(train(second), end)
