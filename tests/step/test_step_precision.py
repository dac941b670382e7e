"""Is each thing kept and computed in the dtype that was asked for?"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from step_zoo import Data, Net, assert_close, example_loss, make_data, make_state

from xtrainer.config import check_configs
from xtrainer.errors import ConfigError
from xtrainer.metrics import HostWindow, finish
from xtrainer.step import PrecisionConfig, StepSettings, cast_floating, make_train_step
from xtrainer.step.gradients import make_gradient_fn

BF16 = PrecisionConfig(compute_dtype="bfloat16")
ROWS = 16


def test_unknown_dtypes_are_reported_together() -> None:
    with pytest.raises(ConfigError) as error:
        check_configs(precision=PrecisionConfig(param_dtype="float31", output_dtype="bf16"))
    assert len(error.value.problems) == 2
    assert "precision.param_dtype: found 'float31'. Did you mean 'float3" in str(error.value)
    assert "precision.output_dtype: found 'bf16'" in str(error.value)


@pytest.mark.parametrize(
    ("config", "casts"),
    [
        (PrecisionConfig(), False),
        (BF16, True),
        (PrecisionConfig(param_dtype="bfloat16"), True),
        (PrecisionConfig(output_dtype="bfloat16"), True),
    ],
)
def test_only_another_dtype_than_float32_needs_a_cast(config: PrecisionConfig, casts: bool) -> None:
    assert config.casts is casts


def test_only_floating_arrays_are_cast() -> None:
    tree = {
        "f": np.ones(2, np.float32),
        "h": jnp.ones(2, jnp.float16),
        "i": jnp.arange(2),
        "b": jnp.ones(2, bool),
        "key": jax.random.key(0),
        "python": 1.5,
        "text": "a",
    }
    cast = cast_floating(tree, "bfloat16")
    assert cast["f"].dtype == cast["h"].dtype == jnp.bfloat16
    for name in ("i", "b", "key", "python", "text"):
        assert cast[name] is tree[name]


class Watched(nn.Module):
    """Notes the dtype in which it computes."""

    note: Callable[[Any], None]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        hidden = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        self.note((x.dtype, hidden.dtype))
        return nn.Dense(3)(hidden)


@pytest.mark.parametrize("pieces", [1, 4])
def test_bfloat16_computes_small_and_keeps_the_state_as_it_is(pieces: int) -> None:
    seen: list[Any] = []
    model = Watched(seen.append)
    outputs: list[Any] = []

    def loss(params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True) -> Any:
        output = apply_fn({"params": params}, batch["x"], train=train)
        outputs.append((output.dtype, batch["x"].dtype))
        return ((output - batch["y"]) ** 2).mean(-1), ({}, {})

    variables = dict(Watched(lambda dtypes: None).init(jax.random.key(0), jnp.ones((1, 4))))
    state = make_state().replace(params=variables.pop("params"), mutable_variables=variables)
    adam = optax.adam(1e-2)
    state = state.replace(opt_state=adam.init(state.params))
    settings = StepSettings(precision=BF16, accumulate_steps=pieces)
    step = make_train_step(loss, model.apply, adam, settings)
    new, window, _ = jax.eval_shape(step, state, make_data(ROWS))
    assert set(seen) == {(jnp.dtype("bfloat16"),) * 2}
    assert set(outputs) == {(jnp.dtype("float32"),) * 2}
    assert [x.dtype for x in jax.tree.leaves(new)] == [x.dtype for x in jax.tree.leaves(state)]
    assert window.packed.dtype == jnp.float32
    gradient = make_gradient_fn(loss, model.apply, settings)
    mask = jnp.ones(ROWS, bool)
    args = (state.params, state.mutable_variables, make_data(ROWS), mask, state.rng)
    result = jax.eval_shape(gradient, *args)
    assert {leaf.dtype for leaf in jax.tree.leaves(result.grads)} == {jnp.dtype("float32")}
    assert result.terms.sums.dtype == jnp.float32


def test_bfloat16_gives_nearly_the_same_gradient() -> None:
    model, batch = Net(), make_data(ROWS)
    state = make_state()
    grads = []
    for precision in (PrecisionConfig(), BF16):
        settings = StepSettings(precision=precision, accumulate_steps=2)
        gradient = jax.jit(make_gradient_fn(example_loss, model.apply, settings))
        mask = jnp.ones(ROWS, bool)
        args = (state.params, state.mutable_variables, batch, mask, state.rng)
        grads.append(gradient(*args).grads)
    assert_close(grads[1], grads[0], 0.03)
    different = [
        (np.asarray(a) != np.asarray(b)).any()
        for a, b in zip(jax.tree.leaves(grads[0]), jax.tree.leaves(grads[1]), strict=True)
    ]
    assert all(different)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "optimizer", [optax.adamw(1e-2), optax.sgd(1e-2, momentum=0.9), optax.lamb(1e-2)]
)
def test_parameters_and_moments_in_a_small_dtype_stay_there(dtype: str, optimizer: Any) -> None:
    state = make_state()
    params = cast_floating(state.params, dtype)
    state = state.replace(params=params, opt_state=optimizer.init(params))
    settings = StepSettings(precision=PrecisionConfig(param_dtype=dtype, compute_dtype=dtype))
    step = make_train_step(example_loss, Net().apply, optimizer, settings)
    new, _, _ = jax.eval_shape(step, state, make_data(ROWS))
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
        assert (after.shape, after.dtype) == (before.shape, before.dtype)


def test_a_small_dtype_learns() -> None:
    adam = optax.adam(1e-2)
    params = cast_floating(make_state().params, "bfloat16")
    state = make_state().replace(params=params, opt_state=adam.init(params))
    settings = StepSettings(
        precision=PrecisionConfig(param_dtype="bfloat16", compute_dtype="bfloat16")
    )
    step = jax.jit(make_train_step(example_loss, Net().apply, adam, settings))
    losses = []
    for _ in range(40):
        state, window, _ = step(state, make_data(ROWS))
        losses.append(finish(HostWindow.fetch(window))["loss_mean"])
    assert losses[-1] < 0.9 * losses[0]
    assert step._cache_size() == 1  # type: ignore[attr-defined]


def test_losses_are_summed_in_float32() -> None:
    def loss(params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True) -> Any:
        value = jnp.full(4096, 1.0, jnp.bfloat16) * params["w"].astype(jnp.bfloat16)
        return value, ({}, {})

    settings = StepSettings(precision=PrecisionConfig(compute_dtype="bfloat16"))
    gradient = make_gradient_fn(loss, lambda variables: None, settings)
    args = ({"w": jnp.ones(())}, {}, np.ones(4096), jnp.ones(4096, bool), jax.random.key(0))
    assert float(jax.jit(gradient)(*args).terms.value) == 4096.0


@pytest.mark.parametrize("scan", [True, False])
def test_gradients_of_micro_batches_are_summed_in_float32(scan: bool) -> None:
    def loss(params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True) -> Any:
        return params["w"] * batch["x"].astype(jnp.bfloat16), ({}, {})

    x = np.ones(8, np.float32)
    x[0] = 256.0  # in bfloat16, 256 + 1 is 256
    settings = StepSettings(precision=BF16, accumulate_steps=8, accumulate_scan=scan)
    gradient = make_gradient_fn(loss, lambda variables: None, settings)
    args = ({"w": jnp.ones(())}, {}, {"x": x}, jnp.ones(8, bool), jax.random.key(0))
    assert float(jax.jit(gradient)(*args).grads["w"]) == 263.0 / 8
