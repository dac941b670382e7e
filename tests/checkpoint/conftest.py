"""A small sharded state, its template on any mesh, and what is saved with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xtrainer.checkpoint import CheckpointItems, CheckpointManager, gather_meta
from xtrainer.checkpoint.commit import RunId, read_commit, seal
from xtrainer.state import TrainState


def build_mesh(*sizes: int) -> Mesh:
    names = ("dp", "fsdp")[-len(sizes) :]
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(sizes), devices=devices)


def init(seed: int, optimizer: optax.GradientTransformation) -> TrainState:
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "dense": {
            "kernel": jax.random.normal(keys[0], (16, 8)),
            "bias": jax.random.normal(keys[1], (16,), jnp.bfloat16),
        },
        "head": {"scale": jnp.full((3,), 0.1)},
    }
    statistics = {"batch_stats": {"mean": jnp.arange(16.0)}}
    state = TrainState.create(params, optimizer, keys[2], statistics)
    return state.replace(step=jnp.int32(seed))


def build_template(mesh: Mesh, optimizer: optax.GradientTransformation | None = None) -> TrainState:
    """Shards every leaf whose first axis divides, as FSDP would."""
    abstract = jax.eval_shape(lambda: init(0, optimizer or optax.adamw(1e-3)))
    size = mesh.shape["fsdp"]

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        split = leaf.ndim > 0 and leaf.shape[0] % size == 0
        spec = PartitionSpec("fsdp") if split else PartitionSpec()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, abstract)


def build_state(
    mesh: Mesh, seed: int = 7, optimizer: optax.GradientTransformation | None = None
) -> TrainState:
    optimizer = optimizer or optax.adamw(1e-3)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, build_template(mesh, optimizer))
    return jax.jit(lambda: init(seed, optimizer), out_shardings=shardings)()


def to_numpy(tree: Any) -> list[np.ndarray]:
    def fetch(leaf: jax.Array) -> np.ndarray:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.array(leaf)  # a copy, the buffer may be donated later

    return [fetch(leaf) for leaf in jax.tree.leaves(tree)]


def equal(left: Any, right: Any) -> bool:
    pairs = zip(to_numpy(left), to_numpy(right), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def tree_of(folder: Path) -> list[tuple[str, int, int]]:
    """Everything a reader could have changed."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return [(str(p), p.lstat().st_mtime_ns, p.lstat().st_size) for p in paths]


def build_items(state: Any, **changes: Any) -> CheckpointItems:
    values: dict[str, Any] = {
        "progress": {"epoch": 1, "step": 7},
        "loaders": {"train": {"position": 3}},
        "callbacks": {},
        "config": {"trainer": {"seed": 0}},
        "batch_spec": {"inputs": [[16, 4], "float32"]},
        "mesh": build_mesh(8),
        "metrics": {"loss": 0.5},
    }
    return CheckpointItems(state, gather_meta(state, **{**values, **changes}))


def reseal(step_folder: Path) -> None:
    """Writes the record of a step anew, as if what lies there now had been saved."""
    commit = read_commit(step_folder)
    (step_folder / "COMMIT.json").unlink()
    run = RunId(commit.run_id, commit.attempt)
    seal(step_folder, commit.step, run, lambda: commit.fingerprints)


class Kit:
    """The builders above, reachable from tests without importing a conftest."""

    mesh = staticmethod(build_mesh)
    template = staticmethod(build_template)
    state = staticmethod(build_state)
    items = staticmethod(build_items)
    numpy = staticmethod(to_numpy)
    equal = staticmethod(equal)
    tree_of = staticmethod(tree_of)
    reseal = staticmethod(reseal)


@pytest.fixture
def kit() -> type[Kit]:
    return Kit


@pytest.fixture
def small(kit: type[Kit]) -> CheckpointItems:
    """Items that are quick to save, for tests in which the state does not matter."""
    return kit.items({"w": jnp.arange(8.0)})


@pytest.fixture
def save_steps(tmp_path: Path, small: CheckpointItems) -> Callable[..., Path]:
    """Writes steps with the given metrics by one manager and returns the folder."""

    def save(metrics: dict[int, float | None], folder: Path = tmp_path, **options: Any) -> Path:
        with CheckpointManager(folder, **options) as manager:
            for step, metric in metrics.items():
                manager.save(step, small, metric)
        return folder

    return save


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one step, 7, of the state of seed 7 on eight devices; only to be read."""
    folder = tmp_path_factory.mktemp("run")
    with CheckpointManager(folder / "checkpoints", monitor_mode="min") as manager:
        manager.save(7, build_items(build_state(build_mesh(8))), 0.5)
    return folder
