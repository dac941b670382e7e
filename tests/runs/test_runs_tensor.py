"""The byte LM divided by the rules of its config alone: its numbers and its memory."""

import inspect
from typing import Any

import byte_lm
import jax
import lm.model
import numpy as np
import optax
import pytest
import zoo
from jax.sharding import PartitionSpec

import xtrainer as xt
from xtrainer.parallel import BatchLayout
from xtrainer.trainer.assemble import build_model, init_state, init_variables, model_layout

ROWS, LENGTH = 16, 12
SMALL = {"num_layers": 2, "embed_dim": 32, "num_heads": 4, "mlp_dim": 64, "context_length": LENGTH}
INPUTS = jax.ShapeDtypeStruct((ROWS, LENGTH), np.uint8)


def model_config(model: dict[str, Any], **sizes: int) -> xt.ModelConfig:
    """Returns the model of the experiment's config with the overrides of a command line."""
    arguments = [f"--config.model.model_config.{name}={value}" for name, value in model.items()]
    arguments += [f"--config.model.parallel.{name}={value}" for name, value in sizes.items()]
    config = xt.parse_config(byte_lm.get_config(), arguments)
    return xt.Config.from_config_dict(xt.ModelConfig, config.model)


def init(model: Any) -> Any:
    return lambda x, rng: init_variables(model, x, {"params": rng, "dropout": rng})


def batch(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, 256, (ROWS, LENGTH + 1)).astype(np.uint8)
    mask = (generator.random((ROWS, LENGTH)) < 0.7).astype(np.float32)
    return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "mask": mask}


def train(steps: int = 4, **sizes: int) -> tuple[Any, Any]:
    """Returns the state after some steps, on the host, and the losses."""
    config = model_config({**SMALL, "dropout_rate": 0.1}, **sizes)
    alone = sizes == {"data_axis_size": 1}
    mesh = xt.build_mesh(config.parallel, jax.devices()[:1] if alone else None)
    model, optimizer = build_model(config), optax.sgd(0.1, momentum=0.9)
    state = init_state(init(model), INPUTS, optimizer, mesh=mesh, parallel=config.parallel)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    layout = BatchLayout.of(mesh, config.parallel)
    settings = xt.StepSettings(
        accumulate_steps=2,
        layout=layout,
        param_shardings=shardings.params,
        train_log_modes=("sum",),
    )
    loss_function = byte_lm.ByteLM.loss_function
    step = xt.make_train_step(
        lambda *args, **kwargs: loss_function(None, *args, **kwargs),  # type: ignore[arg-type]
        model.apply,
        optimizer,
        settings,
    )
    compiled = jax.jit(step, out_shardings=(shardings, None, None))
    sums = []
    for seed in range(steps):
        state, metrics, _ = compiled(state, jax.device_put(batch(seed), layout.sharding(ROWS)))
        sums.append(np.asarray(metrics.packed))
    return zoo.host((state.params, state.opt_state)), np.array(sums)


@pytest.fixture(scope="module")
def alone() -> tuple[Any, Any]:
    return train(data_axis_size=1)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({"model_axis_size": 2}, marks=pytest.mark.slow),
        {"model_axis_size": 2, "fsdp_axis_size": 2, "data_axis_size": 2},
        pytest.param({"fsdp_axis_size": 8}, marks=pytest.mark.slow),
    ],
    ids=["4dp 2tp", "2dp 2fsdp 2tp", "8fsdp"],
)
def test_divided_by_its_rules_the_byte_lm_gives_the_numbers_of_one_device(
    alone: tuple[Any, Any], sizes: dict[str, int]
) -> None:
    state, sums = train(**sizes)
    np.testing.assert_allclose(sums, alone[1], rtol=1e-4, atol=1e-5)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(alone[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * max(np.abs(b).max(), 1e-6))


def test_every_matrix_of_the_byte_lm_is_divided_over_both_axes() -> None:
    config = model_config(SMALL, model_axis_size=2, fsdp_axis_size=2)
    mesh = xt.build_mesh(config.parallel)
    layout = model_layout(init(build_model(config)), INPUTS, mesh, config.parallel)
    matrices = {path: spec for path, spec in layout.specs.items() if spec != PartitionSpec()}
    assert matrices.pop("Embed_0/embedding") == PartitionSpec("tp", "fsdp")
    assert matrices.pop("head/kernel") == PartitionSpec("fsdp", "tp")
    assert matrices == {
        f"block_{index}/{name}/kernel": PartitionSpec(*axes)
        for index in range(2)
        for name, axes in {
            "attention/qkv": ("fsdp", "tp"),
            "attention/out": ("tp", "fsdp"),
            "up": ("fsdp", "tp"),
            "down": ("tp", "fsdp"),
        }.items()
    }
    assert layout.unused == ()


def bytes_per_device(tree: Any) -> int:
    """Returns the most bytes that one device holds."""
    held = dict.fromkeys(jax.devices(), 0)
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return max(held.values())


def test_over_eight_devices_parameters_and_moments_take_a_seventh() -> None:
    held = {}
    for size in (1, 8):
        config = model_config({}, fsdp_axis_size=size)
        mesh = xt.build_mesh(config.parallel)
        state = init_state(
            init(build_model(config)), INPUTS, optax.adam(1e-3), mesh=mesh, parallel=config.parallel
        )
        moments = state.opt_state[0]
        held[size] = bytes_per_device((state.params, moments.mu, moments.nu))
    assert held[8] * 7 <= held[1]


def test_neither_model_nor_loss_names_an_axis() -> None:
    names = xt.ParallelConfig().axis_names
    for part in (lm.model, byte_lm.ByteLM):
        words = set(inspect.getsource(part).replace('"', " ").replace("'", " ").split())
        assert not words & set(names)
