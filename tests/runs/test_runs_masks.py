"""Is the gradient that of the whole batch where devices or micro-batches have no valid token?"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mesh_zoo as mz
import numpy as np
import optax
import pytest
import zoo

import xtrainer as xt
from xtrainer.parallel import BatchLayout
from xtrainer.step.gradients import make_gradient_fn
from xtrainer.tree import flatten_with_paths

ROWS, LENGTH, FEATURES, WIDTH = 32, 3, 4, 8
TOLERANCE = 1e-5
LAYOUTS = {"1": (), **{mesh: (("w_in", ("fsdp", "tp")), ("w_out", ("tp",))) for mesh in mz.MESHES}}
ACCUMULATIONS = [1, 4]

Arrays = dict[str, np.ndarray]


def token_loss(params: Any, apply_fn: Any, batch: Any, rng: Any, train: bool = True) -> Any:
    """Returns the squared error of each token, weighted by the mask."""
    errors = apply_fn({"params": params}, batch["x"]) - batch["y"]
    return {"value": jnp.square(errors), "count": batch["mask"]}, ({}, {})


def apply(variables: Any, x: jax.Array) -> jax.Array:
    """Returns one number for each token, of two layers."""
    params = variables["params"]
    return jnp.tanh(x @ params["w_in"]) @ params["w_out"]


def parameters() -> Arrays:
    rng = np.random.default_rng(1)
    w_in, w_out = rng.normal(size=(FEATURES, WIDTH)), rng.normal(size=WIDTH)
    return {"w_in": w_in.astype(np.float32), "w_out": w_out.astype(np.float32)}


def batch_with(mask: np.ndarray) -> Arrays:
    """Returns a batch; where the mask is 0 the target is far off, which must not matter."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(ROWS, LENGTH, FEATURES)).astype(np.float32)
    y = rng.normal(size=(ROWS, LENGTH)).astype(np.float32)
    return {"x": x, "y": np.where(mask > 0, y, 1e6).astype(np.float32), "mask": mask}


def numpy_gradient(params: Arrays, batch: Arrays) -> Arrays:
    """Returns the gradient of the mean error of the valid tokens, in float64."""
    w_in, w_out = (params[name].astype(np.float64) for name in ("w_in", "w_out"))
    x, mask = batch["x"].astype(np.float64), batch["mask"].astype(np.float64)
    y = np.where(mask > 0, batch["y"], 0.0)
    hidden = np.tanh(x @ w_in)
    back = 2 * (hidden @ w_out - y) * mask / max(mask.sum(), 1e-300)
    inner = back[..., None] * w_out * (1 - hidden**2)
    return {
        "w_in": np.einsum("rtf,rtw->fw", x, inner),
        "w_out": np.einsum("rt,rtw->w", back, hidden),
    }


def masks() -> dict[str, np.ndarray]:
    """Returns masks float32 ``(ROWS, LENGTH)`` by what they leave without a valid token."""
    row = np.arange(ROWS)
    rng = np.random.default_rng(3)
    tokens = (rng.random((ROWS, LENGTH)) < 0.5).astype(np.float32)
    rows = {
        "nothing": row >= 0,
        "one device of eight": row // 4 != 5,
        "half of the devices": row // 16 != 0,
        "every device but one": row // 4 == 2,
        "one micro-batch of four": row % 4 != 1,
        "every micro-batch but one": row % 4 == 3,
        "device and micro-batch": (row // 4 > 1) & (row % 4 > 1),
    }
    found = {name: tokens * kept[:, None].astype(np.float32) for name, kept in rows.items()}
    single = np.zeros((ROWS, LENGTH), np.float32)
    single[17, 1] = 1.0
    found["everything but one token"] = single
    for seed in range(12):
        rng = np.random.default_rng(seed)
        weights = (rng.random((ROWS, LENGTH)) < rng.uniform(0.02, 0.4)) * rng.uniform(0.5, 2)
        found[f"random {seed}"] = weights.astype(np.float32)
    return found


@functools.cache
def compiled(mesh: str, accumulate: int) -> Callable[[Arrays], Any]:
    """Returns from a batch the gradient and its terms, as the training step computes them."""
    if mesh == "1":
        parallel, devices = xt.ParallelConfig(), zoo.devices(1)
    else:
        parallel = mz.parallel_config(mesh, LAYOUTS[mesh])
        devices = xt.build_mesh(parallel)
    layout = BatchLayout.of(devices, parallel)
    state = xt.init_state(
        lambda _, rng: {"params": jax.tree.map(jnp.asarray, parameters())},
        jnp.zeros((ROWS, LENGTH, FEATURES)),
        optax.sgd(0.1),
        mesh=devices,
        parallel=parallel,
    )
    shardings = jax.tree.map(lambda p: p.sharding, state.params)
    settings = xt.StepSettings(
        accumulate_steps=accumulate, layout=layout, param_shardings=shardings
    )
    gradient = make_gradient_fn(token_loss, apply, settings)
    rows = layout.sharding(ROWS)
    function = jax.jit(
        lambda params, batch, mask, rng: gradient(params, {}, batch, mask, rng),
        in_shardings=(shardings, rows, rows, layout.replicated),
    )
    valid = np.ones(ROWS, bool)
    return lambda batch: function(state.params, batch, valid, jax.random.key(0))


@pytest.mark.parametrize("accumulate", ACCUMULATIONS)
@pytest.mark.parametrize("mesh", LAYOUTS)
def test_masks_that_leave_devices_and_micro_batches_empty_give_numpys_gradient(
    mesh: str, accumulate: int
) -> None:
    for name, mask in masks().items():
        batch = batch_with(mask)
        result = compiled(mesh, accumulate)(batch)
        expected = numpy_gradient(parameters(), batch)
        assert mz.relative_difference(zoo.host(result.grads), expected) < TOLERANCE, name
        assert float(result.terms.weight) == pytest.approx(float(mask.sum()), rel=1e-6)


@pytest.mark.parametrize("accumulate", ACCUMULATIONS)
@pytest.mark.parametrize("mesh", LAYOUTS)
def test_a_batch_without_any_valid_token_has_the_gradient_zero(mesh: str, accumulate: int) -> None:
    result = compiled(mesh, accumulate)(batch_with(np.zeros((ROWS, LENGTH), np.float32)))
    zero = {name: np.zeros_like(p) for name, p in parameters().items()}
    zoo.assert_same(result.grads, zero)
    assert (float(result.terms.value), float(result.terms.weight)) == (0.0, 0.0)


def test_the_sharded_gradients_are_really_sharded() -> None:
    for mesh in ("8fsdp", "2dp_2fsdp_2tp"):
        grads = compiled(mesh, 1)(batch_with(masks()["nothing"])).grads
        assert all(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(grads)), mesh


def test_a_run_passes_over_a_batch_without_any_valid_token() -> None:
    trainer = mz.make_trainer("lm", "8fsdp", accumulate=4)
    full = mz.lm_examples(mz.ROWS)
    empty = {**full, "mask": np.zeros_like(full["mask"])}
    before = zoo.host(trainer.state.params)
    trainer.train_model([empty], num_train_steps=1)
    zoo.assert_same(trainer.state.params, before)
    trainer.train_model([full, empty, full], num_train_steps=4)
    assert trainer.global_step == 4
    assert trainer.progress.skipped == 0
    leaves = flatten_with_paths(zoo.host(trainer.state.params)).values()
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert mz.relative_difference(zoo.host(trainer.state.params), before) > 0
