"""Does a memory of several copies of the parameters lie where the parameters lie?"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from xtrainer.optim import OptimizerConfig, build_optimizer
from xtrainer.parallel import ParallelConfig, build_mesh, state_shardings
from xtrainer.state import TrainState
from xtrainer.tree import flatten_with_paths

CONFIG = ParallelConfig(data_axis_size=1, fsdp_axis_size=8, fsdp_min_weight_size=64)
PARAMS = {"dense": {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(3)}, "scale": jnp.ones(())}


def specs(mutable: Any = None) -> dict[str, PartitionSpec]:
    optimizer = build_optimizer(OptimizerConfig(name="lbfgs", memory_size=4)).transform
    state = jax.eval_shape(
        lambda: TrainState.create(PARAMS, optimizer, jax.random.key(0), mutable or {})
    )
    found = state_shardings(state, build_mesh(CONFIG), CONFIG)
    return {path: leaf.spec for path, leaf in flatten_with_paths(found).items()}


def test_the_memory_of_lbfgs_follows_its_parameters_behind_its_first_axis() -> None:
    found = specs()
    assert found["params/dense/kernel"] == PartitionSpec("fsdp", None)
    inside = "opt_state/optimizer"
    for name in ("diff_params_memory", "diff_updates_memory"):
        assert found[f"{inside}/{name}/dense/kernel"] == PartitionSpec(None, "fsdp", None)
        assert set(found[f"{inside}/{name}/dense/bias"]) <= {None}
        assert set(found[f"{inside}/{name}/scale"]) <= {None}
    assert found[f"{inside}/params/dense/kernel"] == PartitionSpec("fsdp", None)
    assert found[f"{inside}/weights_memory"] == PartitionSpec()


def test_only_what_belongs_to_the_optimizer_is_a_memory() -> None:
    mutable = {"cache": {"dense": {"kernel": jnp.ones((4, 64, 32))}}}
    assert specs(mutable)["mutable_variables/cache/dense/kernel"] == PartitionSpec()
