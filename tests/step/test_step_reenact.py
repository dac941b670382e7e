import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import step_zoo

from xtrainer.parallel import ParallelConfig
from xtrainer.step import PrecisionConfig, StepReport, StepSettings, make_train_step
from xtrainer.step.reenact import StepDiagnosis, diagnose_step

ROWS = 8


@jax.custom_jvp
def bad_slope(x: jax.Array) -> jax.Array:
    return x


bad_slope.defjvp(lambda primals, tangents: (primals[0], tangents[0] * jnp.nan))


class Blocks(nn.Module):
    """Blocks of which one does what ``fault`` says."""

    fault: str = ""
    at: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for index in range(3):
            fault = self.fault if index == self.at else ""
            x = Block(fault, name=f"block_{index}")(x)
        return nn.Dense(step_zoo.TOKENS)(x)


class Block(nn.Module):
    fault: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(step_zoo.WIDTH, name="dense")(x)
        if self.fault == "value":
            x = jnp.log(x - 1e3)
        if self.fault == "slope":
            x = bad_slope(x)
        return x


def diagnose(
    model: Any = None, data: Any = None, optimizer: Any = None, state: Any = None, **settings: Any
) -> StepDiagnosis:
    """Diagnoses a step that the guard refuses exactly if something is found."""
    model, optimizer = model or Blocks(), optimizer or optax.sgd(0.1)
    state = state or step_zoo.make_state(model, optimizer)
    data = step_zoo.make_data(ROWS) if data is None else data
    parts = (step_zoo.example_loss, model.apply, optimizer, StepSettings(**settings))
    _, _, report = jax.jit(make_train_step(*parts))(state, data)
    result = diagnose_step(*parts, state, data)
    assert (StepReport.fetch(report).skipped == 1) == bool(result.phase)
    return result


@pytest.mark.parametrize("at", [0, 2])
def test_the_module_of_a_bad_value_is_named(at: int) -> None:
    result = diagnose(Blocks("value", at))
    assert result.phase == "forward pass" and np.isnan(result.loss)
    assert result.finding is not None and result.finding.place is not None
    place = result.finding.place
    assert (place.module, place.primitive) == (f"Blocks/block_{at}", "log")
    assert str(result) == (
        f"The first non-finite value appears in the forward pass, in module Blocks/block_{at}, "
        f"primitive log, output (8, 5) float32: 40 NaN ({place.source})."
    )


@pytest.mark.parametrize("at", [0, 2])
def test_the_module_of_a_bad_gradient_is_named(at: int) -> None:
    result = diagnose(Blocks("slope", at))
    assert result.phase == "backward pass" and np.isfinite(result.loss)
    assert result.finding is not None and result.finding.place is not None
    assert result.finding.place.module == f"Blocks/block_{at}"
    bad = {name for name, norm in result.grad_norms.items() if np.isnan(norm)}
    assert bad == {f"block_{i}/dense/{leaf}" for i in range(at + 1) for leaf in ("bias", "kernel")}


@pytest.mark.parametrize("steps", [1, 4])
def test_a_bad_row_is_named_by_its_place_in_the_batch(steps: int) -> None:
    data = step_zoo.make_data(ROWS)
    data["x"][6, 3] = np.nan
    result = diagnose(data=data, accumulate_steps=steps)
    assert result.finding is not None
    assert (result.finding.argument, result.finding.entry) == ("batch/x", (6, 3))
    assert result.micro_batch == (None if steps == 1 else 2)  # rows 2 and 6 of 8
    where = "the forward pass" + ("" if steps == 1 else " of micro-batch 2")
    given = "in what the step is given: batch/x, first at [6, 3]"
    assert str(result) == f"The first non-finite value is {given}. It reaches {where}."


def test_a_bad_parameter_is_named() -> None:
    model = Blocks()
    state = step_zoo.make_state(model)
    params = jax.tree.map(lambda x: x, state.params)
    params["block_2"]["dense"]["kernel"] = params["block_2"]["dense"]["kernel"].at[1, 4].set(np.nan)
    result = diagnose(model, state=state.replace(params=params))
    assert result.finding is not None
    assert result.finding.argument == "params/block_2/dense/kernel"
    assert result.finding.entry == (1, 4)


def test_a_bad_state_of_the_optimizer_is_named() -> None:
    optimizer = optax.adam(0.1)
    state = step_zoo.make_state(Blocks(), optimizer)
    adam, rest = state.opt_state
    adam = adam._replace(mu=jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), adam.mu))
    result = diagnose(optimizer=optimizer, state=state.replace(opt_state=(adam, rest)))
    assert result.phase == "update"
    assert result.finding is not None
    assert result.finding.argument.startswith("opt_state/0/mu/")


def test_a_gradient_whose_norm_overflows_is_an_update_that_is_not_finite() -> None:
    data = step_zoo.make_data(ROWS)
    data["x"] *= 1e11  # a loss and a gradient of about 1e22, whose square is too large
    result = diagnose(data=data)
    assert result.phase == "update"
    assert result.finding is not None and result.finding.place is not None
    assert result.finding.place.infs > 0


def test_a_finite_step_is_told_as_finite_with_its_loss_and_norms() -> None:
    data = step_zoo.make_data(ROWS)
    model, optimizer = Blocks(), optax.sgd(0.1)
    whole = diagnose(model, data)
    parts = diagnose(model, data, accumulate_steps=4, accumulate_scan=False)
    for result in (whole, parts):
        assert (result.phase, result.finding, result.micro_batch) == ("", None, None)
        assert str(result).startswith("The step is finite")
    state = step_zoo.make_state(model, optimizer)
    loss = lambda p: step_zoo.example_loss(p, model.apply, data, state.rng)[0].mean()  # noqa: E731
    value, grads = jax.value_and_grad(loss)(state.params)
    norm = float(jnp.linalg.norm(grads["block_0"]["dense"]["kernel"]))
    for result in (whole, parts):
        assert result.loss == pytest.approx(float(value), rel=1e-5)
        assert result.grad_norms["block_0/dense/kernel"] == pytest.approx(norm, rel=1e-5)


def test_random_numbers_are_those_of_the_step() -> None:
    class Gamble(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
            x = nn.Dense(step_zoo.TOKENS)(x)
            drawn = jax.random.uniform(self.make_rng("dropout"), ())
            return x * jnp.where(drawn < 0.5, jnp.nan, 1.0)

    optimizer = optax.sgd(0.1)
    state = step_zoo.make_state(step_zoo.Net(), optimizer)
    params = {"Dense_0": state.params["Dense_1"]}
    state = state.replace(params=params, opt_state=optimizer.init(params))
    data = step_zoo.make_data(ROWS)
    data["x"] = np.ones((ROWS, step_zoo.WIDTH), np.float32)
    found = {
        bool(diagnose(Gamble(), data, optimizer, state.replace(step=jnp.int32(step)), **more).phase)
        for step in range(4)
        for more in ({}, {"accumulate_steps": 2})
    }
    assert found == {False, True}  # each as the step itself has it


def test_a_state_on_several_devices_is_diagnosed_as_it_lies() -> None:
    optimizer = optax.adam(0.1)
    state, layout = step_zoo.on_devices(
        step_zoo.make_state(Blocks("value", 1), optimizer),
        ParallelConfig(fsdp_axis_size=4, fsdp_min_weight_size=1),
    )
    shardings = jax.tree.map(lambda x: x.sharding, state.params)
    settings = StepSettings(layout=layout, param_shardings=shardings, remat=("Block",))
    parts = (step_zoo.example_loss, Blocks("value", 1).apply, optimizer, settings)
    result = diagnose_step(*parts, state, step_zoo.make_data(ROWS))
    assert result.finding is not None and result.finding.place is not None
    assert result.finding.place.module == "Blocks/block_1"
    assert dataclasses.is_dataclass(result)


@pytest.mark.parametrize("scale", [None, 2.0**24])
def test_the_scale_of_the_loss_is_that_of_the_step(scale: float | None) -> None:
    precision = PrecisionConfig(compute_dtype="float16", loss_scale=scale)
    result = diagnose(precision=precision)
    assert result.phase == ("" if scale is None else "backward pass")
    if scale is not None:
        assert result.finding is not None and result.finding.place is not None
        assert result.finding.place.dtype == "float16" and result.finding.place.backward
