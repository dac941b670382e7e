"""How a state comes back."""

import gc
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xtrainer.checkpoint import CheckpointManager, find_step, restore_partial, restore_state
from xtrainer.checkpoint import restore as restore_module
from xtrainer.errors import CheckpointError, CheckpointNotFoundError

MESHES = [(8,), (4,), (1,), (2, 4), (4, 2), (8, 1)]


@pytest.mark.parametrize("sizes", MESHES)
def test_a_state_comes_back_exactly_on_every_mesh(kit, run_folder, sizes):
    template = kit.template(kit.mesh(*sizes))
    state = restore_state(find_step(run_folder), template)
    assert kit.equal(state, kit.state(kit.mesh(8)))
    assert jax.tree.structure(state) == jax.tree.structure(template)
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(template), strict=True):
        assert leaf.sharding == wanted.sharding
        assert leaf.dtype == wanted.dtype


def test_a_state_may_come_back_onto_more_devices(kit, tmp_path):
    state = kit.state(kit.mesh(1))
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, kit.items(state))
    assert kit.equal(restore_state(tmp_path / "1", kit.template(kit.mesh(2, 4))), state)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_typed_keys_come_back_as_keys_of_their_kind(kit, tmp_path, impl):
    state = {"one": jax.random.key(3, impl=impl), "many": jax.random.split(jax.random.key(4), 5)}
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, kit.items(state))
    restored = restore_state(tmp_path / "1", state)
    assert restored["one"].dtype == state["one"].dtype
    assert kit.equal(restored, state)
    assert jax.random.uniform(restored["one"]) == jax.random.uniform(state["one"])


OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
    "masked": optax.masked(
        optax.adam(1e-3), lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)
    ),
    "multi_transform": optax.multi_transform(
        {"a": optax.adam(1e-3), "b": optax.set_to_zero()}, {"dense": "a", "head": "b"}
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_states_with_empty_parts_come_back(kit, tmp_path, name):
    mesh, optimizer = kit.mesh(8), OPTIMIZERS[name]
    state = kit.state(mesh, optimizer=optimizer)
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, kit.items(state))
    restored = restore_state(tmp_path / "1", kit.template(mesh, optimizer))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert kit.equal(restored, state)


def addresses(tree):
    def shards(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return [shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards]

    return [pointer for leaf in jax.tree.leaves(tree) for pointer in shards(leaf)]


@jax.jit
def _advance(state):
    def change(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(jax.random.key_data(leaf) + 1)
        return leaf + jnp.ones((), leaf.dtype)

    return jax.tree.map(change, state)


def test_every_restored_buffer_is_donated_and_used_again(kit, run_folder):
    template = kit.template(kit.mesh(8))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, template)
    state = restore_state(find_step(run_folder), template)
    step = jax.jit(_advance, donate_argnums=0, out_shardings=shardings)
    analysis = step.lower(state).compile().memory_analysis()
    assert analysis.alias_size_in_bytes == analysis.argument_size_in_bytes > 0
    before = addresses(state)
    after = step(state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert set(addresses(after)) == set(before)


def test_a_large_state_is_copied_in_groups(kit, run_folder, monkeypatch):
    monkeypatch.setattr(restore_module, "_COPY_BYTES", 256)
    state = restore_state(find_step(run_folder), kit.template(kit.mesh(8)))
    assert kit.equal(state, kit.state(kit.mesh(8)))


def test_leaves_on_different_devices_come_back_together(kit, run_folder):
    template = kit.template(kit.mesh(8))
    alone = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    template = template.replace(step=jax.ShapeDtypeStruct((), jnp.int32, sharding=alone))
    state = restore_state(find_step(run_folder), template)
    assert state.step.sharding == alone
    assert kit.equal(state, kit.state(kit.mesh(8)))


def test_arrays_serve_as_template_and_are_left_alone(kit, run_folder):
    template = kit.state(kit.mesh(4), seed=1)
    before = kit.numpy(template)
    assert kit.equal(restore_state(find_step(run_folder), template), kit.state(kit.mesh(8)))
    assert all(np.array_equal(a, b) for a, b in zip(before, kit.numpy(template), strict=True))


def test_a_state_that_differs_is_refused_with_every_path(kit, run_folder):
    template = kit.template(kit.mesh(8))
    sharding = template.rng.sharding
    params = {
        "dense": {
            "kernel": jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=sharding),
            "bias": jax.ShapeDtypeStruct((16,), jnp.float32, sharding=sharding),
        },
        "tail": {"scale": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=sharding)},
    }
    with pytest.raises(CheckpointError) as caught:
        restore_state(find_step(run_folder), template.replace(params=params))
    message = str(caught.value)
    assert "4 places" in message
    assert "params/dense/kernel: shape (16, 8) in the checkpoint, (16, 4) wanted" in message
    assert "params/dense/bias: dtype bfloat16 in the checkpoint, float32 wanted" in message
    assert "params/head/scale: unexpected" in message
    assert "params/tail/scale: missing" in message


def test_a_key_of_another_kind_is_refused(kit, run_folder):
    template = kit.template(kit.mesh(8))
    rng = jax.random.key(0, impl="rbg")
    with pytest.raises(CheckpointError, match="rng: dtype key<fry> in the checkpoint, key<rbg>"):
        restore_state(find_step(run_folder), template.replace(rng=rng))


def test_another_optimizer_is_refused_with_the_leaves_it_lacks(kit, run_folder):
    template = kit.template(kit.mesh(8), optax.sgd(0.1))
    with pytest.raises(CheckpointError, match="opt_state/0/mu/dense/kernel: unexpected"):
        restore_state(find_step(run_folder), template)


def test_at_most_twenty_differences_are_listed(kit, tmp_path):
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, kit.items({f"w{i}": jnp.ones(2) for i in range(15)}))
    with pytest.raises(CheckpointError, match="in 30 places") as caught:
        restore_state(tmp_path / "1", {f"v{i}": jnp.ones(2) for i in range(15)})
    assert str(caught.value).count("\n  - ") == 21
    assert "and 10 more" in str(caught.value)


def test_a_template_without_sharding_is_refused(kit, run_folder):
    template = kit.template(kit.mesh(8)).replace(step=jax.ShapeDtypeStruct((), jnp.int32))
    with pytest.raises(CheckpointError, match="(?s)without a sharding.*- step"):
        restore_state(find_step(run_folder), template)


def test_parameters_alone_come_back_from_another_optimizer(kit, run_folder):
    template = kit.template(kit.mesh(4), optax.sgd(0.1))
    names = ["params", "mutable_variables"]
    parts = restore_partial(find_step(run_folder), names, template)
    saved = kit.state(kit.mesh(8))
    assert list(parts) == names
    assert kit.equal(parts["params"], saved.params)
    assert kit.equal(parts["mutable_variables"], saved.mutable_variables)
    assert parts["params"]["dense"]["kernel"].sharding.mesh.size == 4


def test_a_part_with_a_key_comes_back(kit, run_folder):
    parts = restore_partial(find_step(run_folder), ["rng"], kit.template(kit.mesh(8)))
    assert kit.equal(parts["rng"], kit.state(kit.mesh(8)).rng)


def test_a_part_with_empty_tuples_comes_back(kit, run_folder):
    template = kit.template(kit.mesh(8))
    parts = restore_partial(find_step(run_folder), ["opt_state"], template)
    assert jax.tree.structure(parts["opt_state"]) == jax.tree.structure(template.opt_state)
    assert kit.equal(parts["opt_state"], kit.state(kit.mesh(8)).opt_state)


def test_a_part_without_leaves_comes_back_empty(kit, tmp_path):
    mesh = kit.mesh(8)
    state = kit.state(mesh).replace(mutable_variables={})
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, kit.items(state))
    parts = restore_partial(tmp_path / "1", ["params", "mutable_variables"], state)
    assert parts["mutable_variables"] == {}
    assert kit.equal(parts["params"], state.params)
    assert restore_partial(tmp_path / "1", ["mutable_variables"], state) == {
        "mutable_variables": {}
    }
    assert restore_state(tmp_path / "1", state).mutable_variables == {}


def test_a_part_that_differs_is_refused(kit, run_folder):
    template = kit.template(kit.mesh(8)).replace(mutable_variables={})
    with pytest.raises(CheckpointError, match="mutable_variables/batch_stats/mean: unexpected"):
        restore_partial(find_step(run_folder), ["params", "mutable_variables"], template)


def test_an_unknown_part_is_refused_with_the_nearest_name(kit, run_folder):
    with pytest.raises(CheckpointError, match="found 'param'.*Did you mean 'params'"):
        restore_partial(find_step(run_folder), ["param"], kit.template(kit.mesh(8)))


def test_what_is_not_a_step_is_not_restored(kit, tmp_path):
    (tmp_path / "3").mkdir()
    with pytest.raises(CheckpointNotFoundError, match="no committed checkpoint"):
        restore_state(tmp_path / "3", kit.template(kit.mesh(8)))


def largest(folder):
    return max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's threads
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize(
    "damage",
    [
        lambda state: (state / "_METADATA").write_text("{"),
        lambda state: (state / "manifest.ocdbt").unlink(),
        lambda state: [path.write_bytes(b"") for path in (state / "d").iterdir()],
        lambda state: [shutil.rmtree(path) for path in state.rglob("d")],
    ],
    ids=["bad _METADATA", "no manifest", "empty index", "no data"],
)
@pytest.mark.parametrize("partial", [False, True], ids=["whole", "part"])
def test_damaged_arrays_are_one_clear_error(kit, run_folder, tmp_path, damage, partial):
    step_folder = tmp_path / "7"
    shutil.copytree(find_step(run_folder), step_folder)
    damage(step_folder / "state")
    kit.reseal(step_folder)
    template = kit.template(kit.mesh(8))
    with pytest.raises(CheckpointError, match="7: the state cannot be read") as caught:
        if partial:
            restore_partial(step_folder, ["params"], template)
        else:
            restore_state(step_folder, template)
    assert caught.value.__cause__ is not None
    del caught
    gc.collect()  # Orbax leaves coroutines that warn when they are collected


def test_restoring_changes_nothing_on_disk(kit, run_folder):
    before = kit.tree_of(run_folder)
    template = kit.template(kit.mesh(4))
    restore_state(find_step(run_folder), template)
    restore_partial(find_step(run_folder), ["params"], template)
    assert kit.tree_of(run_folder) == before


def test_restoring_works_inside_a_guarded_loop(kit, run_folder):
    with jax.transfer_guard("disallow"):
        state = restore_state(find_step(run_folder), kit.template(kit.mesh(8)))
    assert kit.equal(state, kit.state(kit.mesh(8)))
