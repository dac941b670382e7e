"""Does the optimizer state lie where its parameters lie, and does FSDP save its memory?"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from xtrainer.errors import ConfigError
from xtrainer.optim import OptimizerConfig, build_optimizer
from xtrainer.parallel import ParallelConfig, build_mesh, copy_tree, state_shardings
from xtrainer.parallel.annotations import AxisNames
from xtrainer.parallel.partition import param_shardings
from xtrainer.state import TrainState
from xtrainer.tree import flatten_with_paths

CONFIG = ParallelConfig(data_axis_size=1, fsdp_axis_size=8, fsdp_min_weight_size=64)
MESH = build_mesh(CONFIG)
PARAMS = {
    "dense": {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)},
    "out": {"kernel": jnp.ones((32, 16)), "bias": jnp.ones(64)},
    "kernel": jnp.ones((16, 64)),
}
SPECS = {
    "dense/kernel": PartitionSpec("fsdp", None),
    "dense/bias": PartitionSpec(),
    "out/kernel": PartitionSpec("fsdp", None),
    "out/bias": PartitionSpec("fsdp"),
    "kernel": PartitionSpec(None, "fsdp"),
}


def specs(optimizer: optax.GradientTransformation, config: Any = CONFIG) -> dict[str, Any]:
    """Returns the partition of each leaf of a state, by path."""
    state = jax.eval_shape(
        lambda: TrainState.create(
            PARAMS, optimizer, jax.random.key(0), {"batch_stats": {"mean": jnp.ones(64)}}
        )
    )
    shardings = state_shardings(state, MESH, config)
    return {path: leaf.spec for path, leaf in flatten_with_paths(shardings).items()}


def moments(found: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns the partitions below ``/name/`` of the optimizer state, by parameter."""
    return {
        path.split(f"/{name}/", 1)[1]: spec
        for path, spec in found.items()
        if path.startswith("opt_state") and f"/{name}/" in path
    }


LABELS = {"dense": "a", "out": "b", "kernel": "a"}
KERNELS = {"dense": {"kernel": True, "bias": False}, "out": {"kernel": True, "bias": False}}


@pytest.mark.parametrize(
    ("optimizer", "names"),
    [
        (optax.adamw(1e-3), ["mu", "nu"]),
        (optax.sgd(1e-3, momentum=0.9), ["trace"]),
        (optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)), ["mu", "nu"]),
        (optax.MultiSteps(optax.adamw(1e-3), 2), ["mu", "nu", "acc_grads"]),
        (optax.apply_if_finite(optax.adam(1e-3), 3), ["mu", "nu"]),
        (build_optimizer(OptimizerConfig(grad_clip_norm=1.0)).transform, ["mu", "nu"]),
    ],
)
def test_moments_lie_where_their_parameters_lie(optimizer: Any, names: list[str]) -> None:
    found = specs(optimizer)
    assert {path: found[f"params/{path}"] for path in SPECS} == SPECS
    for name in names:
        assert moments(found, name) == SPECS


def test_moments_of_a_multi_transform_lie_where_their_parameters_lie() -> None:
    optimizer = optax.multi_transform({"a": optax.adam(1e-3), "b": optax.sgd(1e-3, 0.9)}, LABELS)
    found = specs(optimizer)
    of_a = {path: spec for path, spec in SPECS.items() if not path.startswith("out")}
    of_b = {path: spec for path, spec in SPECS.items() if path.startswith("out")}
    assert moments(found, "mu") == moments(found, "nu") == of_a
    assert moments(found, "trace") == of_b


def test_moments_of_masked_parameters_lie_where_their_parameters_lie() -> None:
    found = specs(optax.masked(optax.adam(1e-3), {**KERNELS, "kernel": False}))
    kernels = {path: SPECS[path] for path in ("dense/kernel", "out/kernel")}
    assert moments(found, "mu") == moments(found, "nu") == kernels


def test_what_belongs_to_no_parameter_is_on_every_device() -> None:
    found = specs(optax.adamw(optax.constant_schedule(1e-3)))
    rest = {
        path: spec
        for path, spec in found.items()
        if not path.startswith("params") and not any(f"/{name}/" in path for name in ("mu", "nu"))
    }
    assert {"step", "rng", "guard/counts", "batch_stats"} <= {
        path.removeprefix("mutable_variables/").removesuffix("/mean") for path in rest
    }
    assert any(path.endswith("count") for path in rest)
    assert set(rest.values()) == {PartitionSpec()}


def test_a_leaf_of_another_shape_than_its_parameter_is_on_every_device() -> None:
    found = specs(optax.adafactor(1e-3, min_dim_size_to_factor=8))
    factored = {**moments(found, "v_row"), **moments(found, "v_col")}
    assert factored and factored["dense/kernel"] == PartitionSpec()


def test_rules_reach_the_moments() -> None:
    config = ParallelConfig(**{**vars(CONFIG), "param_rules": (("dense/*", (None,)),)})
    found = specs(optax.adam(1e-3), config)
    assert found["params/dense/kernel"] == PartitionSpec(None)
    assert moments(found, "mu")["dense/kernel"] == PartitionSpec(None)
    assert moments(found, "mu")["out/kernel"] == SPECS["out/kernel"]


@flax.struct.dataclass
class Averaged:
    """A state with averaged parameters beside the trained ones."""

    params: Any
    ema: Any


def test_averages_lie_where_their_parameters_lie() -> None:
    state = Averaged(params=PARAMS, ema={"decay": jnp.ones(()), "params": PARAMS})
    shardings = flatten_with_paths(state_shardings(state, MESH, CONFIG))
    found = {path: leaf.spec for path, leaf in shardings.items()}
    assert {path: found[f"ema/params/{path}"] for path in SPECS} == SPECS
    assert found["ema/decay"] == PartitionSpec()


def test_metadata_reaches_the_moments() -> None:
    state = jax.eval_shape(
        lambda: TrainState.create(PARAMS, optax.adam(1e-3), jax.random.key(0), {})
    )
    names = {"dense/kernel": AxisNames((None, "fsdp"), logical=False)}
    found = flatten_with_paths(state_shardings(state, MESH, CONFIG, names))
    for field in ("params", "opt_state/0/mu", "opt_state/0/nu"):
        assert found[f"{field}/dense/kernel"].spec == PartitionSpec(None, "fsdp")
        assert found[f"{field}/out/kernel"].spec == SPECS["out/kernel"]


def test_rules_that_do_not_fit_are_an_error() -> None:
    config = ParallelConfig(**{**vars(CONFIG), "param_rules": (("dense/bias", (None, "fsdp")),)})
    with pytest.raises(ConfigError, match=r"'dense/bias': 2 entries for an array of shape \(32,\)"):
        specs(optax.sgd(1e-3), config)


def test_parameters_alone_get_the_same_partition() -> None:
    found = flatten_with_paths(param_shardings(PARAMS, MESH, CONFIG))
    assert {path: leaf.spec for path, leaf in found.items()} == SPECS


def bytes_per_device(tree: Any) -> set[int]:
    """Returns how many bytes the devices hold; one number where all hold the same."""
    held: dict[Any, int] = dict.fromkeys(jax.devices(), 0)
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return set(held.values())


def test_eight_devices_hold_an_eighth_of_parameters_and_moments() -> None:
    params = {"dense": {"kernel": jnp.ones((256, 128)), "bias": jnp.ones(128)}}
    state = TrainState.create(params, optax.adam(1e-3), jax.random.key(0))
    placed = copy_tree(state, state_shardings(state, MESH, CONFIG))
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    for tree in (placed.params, placed.opt_state[0].mu, placed.opt_state[0].nu):
        assert bytes_per_device(tree) == {whole // 8}
    replicated = copy_tree(state, state_shardings(state, build_mesh(), ParallelConfig()))
    assert bytes_per_device(replicated.params) == {whole}


def test_placing_a_state_keeps_its_values() -> None:
    values = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    state = TrainState.create({"w": jnp.asarray(values)}, optax.adam(1e-3), jax.random.key(3))
    placed = copy_tree(state, state_shardings(state, MESH, CONFIG))
    np.testing.assert_array_equal(placed.params["w"], values)
    parts = [np.asarray(shard.data) for shard in placed.params["w"].addressable_shards]
    assert [part.shape for part in parts] == [(8, 32)] * 8
    np.testing.assert_array_equal(np.concatenate(parts), values)
    np.testing.assert_array_equal(jax.random.key_data(placed.rng), jax.random.key_data(state.rng))
