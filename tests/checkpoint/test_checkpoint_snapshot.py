"""How a state leaves the devices without holding up the next step."""

import gc
import logging
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from jax.sharding import NamedSharding, PartitionSpec

from xtrainer.checkpoint import CheckpointManager, restore_state
from xtrainer.checkpoint import snapshot as snapshot_module
from xtrainer.checkpoint.backend import ArrayWriter
from xtrainer.checkpoint.shards import shards_of
from xtrainer.checkpoint.snapshot import HostCopy, free_bytes
from xtrainer.errors import CheckpointError

DTYPES = ["float32", "bfloat16", "float16", "float8_e4m3fn", "int32", "uint8", "int4", "bool"]


def every_kind(kit, alone=True):
    """Each dtype replicated, sharded, split in two axes and on one device, and two kinds of key."""
    mesh = kit.mesh(2, 4)
    specs = [PartitionSpec(), PartitionSpec("fsdp"), PartitionSpec("dp", "fsdp")]
    places = {str(spec): NamedSharding(mesh, spec) for spec in specs}
    if alone:
        places["alone"] = jax.sharding.SingleDeviceSharding(jax.devices()[3])

    def fill(name):
        return lambda: (jnp.arange(64).reshape(8, 8) % 7).astype(name)

    state = {
        name: {where: jax.jit(fill(name), out_shardings=at)() for where, at in places.items()}
        for name in DTYPES
    }
    keys = {
        impl: jax.device_put(jax.random.split(jax.random.key(3, impl=impl), 8), places[str(spec)])
        for impl, spec in zip(("threefry2x32", "rbg"), specs, strict=False)
    }
    return {**state, "keys": keys}


def addresses(tree):
    parts = [part for leaf in jax.tree.leaves(tree) for _, part in shards_of(leaf)]
    return [part.unsafe_buffer_pointer() for part in parts]


def advance(state):
    def change(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                jax.random.key_data(leaf) + 1, impl=jax.random.key_impl(leaf)
            )
        return ~leaf if leaf.dtype == bool else leaf + jnp.ones((), leaf.dtype)

    return jax.tree.map(change, state)


def donated_step(state):
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = jax.jit(advance, donate_argnums=0, out_shardings=shardings)
    step.lower(state).compile()
    return step


@pytest.fixture(autouse=True)
def no_leaf_is_small(request, monkeypatch):
    if "small" not in request.node.name:
        monkeypatch.setattr(snapshot_module, "_SMALL_BYTES", 0)


@pytest.fixture
def handed(monkeypatch):
    """The states given to Orbax, each held as a writer holds it that never comes to an end."""
    states, held, start = [], [], ArrayWriter.start

    def start_save(writer, step_folder, state):
        states.append(state)
        parts = [part for leaf in jax.tree.leaves(state) for _, part in shards_of(leaf)]
        held.extend((part, np.asarray(part)) for part in parts)
        return start(writer, step_folder, state)

    monkeypatch.setattr(ArrayWriter, "start", start_save)
    return states


def test_the_step_after_a_save_works_in_place(kit, tmp_path, handed):
    state = kit.state(kit.mesh(8))
    step = donated_step(state)
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, kit.items(state))
        before = addresses(state)
        after = step(state)
        assert set(addresses(after)) == set(before)
        assert not set(addresses(handed[0])) & set(before)


def test_a_writer_that_reads_the_state_itself_stops_that(kit, tmp_path, handed):
    state = kit.state(kit.mesh(8))
    step = donated_step(state)
    with CheckpointManager(tmp_path, async_save=False) as manager:
        manager.save(1, kit.items(state))
        before = addresses(state)
        assert set(addresses(step(state))) != set(before)


def test_every_kind_of_leaf_is_saved_as_it_was_before_the_next_step(kit, tmp_path):
    state = every_kind(kit, alone=False)
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    step, expected = donated_step(state), []
    with CheckpointManager(tmp_path) as manager:
        for number in (1, 2):
            expected.append(kit.numpy(state))
            manager.save(number, kit.items(state))
            state = step(state)
    for number, values in enumerate(expected, start=1):
        restored = kit.numpy(restore_state(tmp_path / str(number), template))
        for one, other in zip(restored, values, strict=True):
            assert one.dtype == other.dtype
            assert np.array_equal(one, other)


def test_a_copy_has_the_shardings_of_the_state_and_none_of_its_memory(kit):
    state = every_kind(kit)
    copy = HostCopy().take(state)
    assert kit.equal(copy, state)
    assert not set(addresses(copy)) & set(addresses(state))
    for one, other in zip(jax.tree.leaves(copy), jax.tree.leaves(state), strict=True):
        assert one.sharding == other.sharding
        assert one.dtype == other.dtype


def test_replicas_share_their_memory(kit):
    everywhere = NamedSharding(kit.mesh(8), PartitionSpec())
    state = {"w": jax.device_put(jnp.ones((64, 64)), everywhere)}
    copy = HostCopy()
    taken = copy.take(state)
    assert len(set(addresses(taken))) == 1
    assert copy.num_bytes < 2 * state["w"].nbytes


def test_all_saves_use_the_memory_of_the_first(kit, tmp_path, handed):
    state = kit.state(kit.mesh(8))
    step, seen = donated_step(state), []
    with CheckpointManager(tmp_path) as manager:
        for number in (1, 2, 3):
            manager.save(number, kit.items(state))
            seen.append(addresses(handed[-1]))
            state = step(state)
    assert seen[0] == seen[1] == seen[2]


def test_a_state_that_outgrows_the_memory_gets_more():
    copy = HostCopy()
    copy.take({"w": jnp.ones(8)})
    held = copy.num_bytes
    larger = {"w": jnp.arange(1024.0), "b": jnp.ones(3)}
    assert np.array_equal(copy.take(larger)["w"], larger["w"])
    assert copy.num_bytes >= 1027 * 4 > held


def test_closing_frees_the_memory(kit, tmp_path):
    manager = CheckpointManager(tmp_path)
    manager.save(1, kit.items({"w": jnp.ones(8)}))
    memory = weakref.ref(manager._copy._memory)
    manager.close()
    gc.collect()
    assert memory() is None


def test_saving_at_once_takes_no_memory(kit, tmp_path, handed):
    items = kit.items({"w": jnp.ones(8)})
    with CheckpointManager(tmp_path, async_save=False) as manager:
        manager.save(1, items)
        assert manager._copy.num_bytes == 0
    assert handed[0] is items.state


def test_a_failed_save_is_told_once_and_its_memory_not_used_again(kit, tmp_path):
    state = {"w": jax.random.normal(jax.random.key(0), (2**16,))}
    values = np.array(state["w"])
    manager = CheckpointManager(tmp_path)
    with zoo.full_disk():
        manager.save(1, kit.items(state))
        memory = weakref.ref(manager._copy._memory)
        with pytest.raises(CheckpointError, match="save of step 1 failed"):
            manager.wait()
    manager.wait()
    assert manager._copy.num_bytes == 0
    manager.save(2, kit.items(state))
    assert manager._copy._memory is not memory()
    manager.close()
    assert np.array_equal(restore_state(tmp_path / "2", {"w": jnp.zeros(2**16)})["w"], values)


def test_where_memory_is_short_the_state_itself_is_saved(
    kit, tmp_path, handed, monkeypatch, caplog
):
    monkeypatch.setattr(snapshot_module, "free_bytes", lambda: 100)
    state = kit.state(kit.mesh(8))
    values, step, given = kit.numpy(state), donated_step(state), kit.items(state)
    with caplog.at_level(logging.WARNING), CheckpointManager(tmp_path) as manager:
        manager.save(1, given)
        assert handed[0] is given.state
        state = step(state)
        manager.save(2, kit.items(state))
    assert [record.message for record in caplog.records].count(caplog.records[0].message) == 1
    assert "A copy of the state in host memory needs" in caplog.text
    restored = kit.numpy(restore_state(tmp_path / "1", kit.template(kit.mesh(8))))
    assert all(np.array_equal(a, b) for a, b in zip(restored, values, strict=True))


def test_leaves_that_the_writer_fetches_itself_are_handed_through(monkeypatch):
    monkeypatch.setattr(snapshot_module, "_is_lent", lambda leaf: leaf.ndim == 0)
    state, copy = {"step": jnp.int32(3), "w": jnp.ones(8)}, HostCopy()
    taken = copy.take(state)
    assert taken["w"] is state["w"]
    assert taken["step"] is not state["step"]
    monkeypatch.setattr(snapshot_module, "_is_lent", lambda leaf: False)
    assert copy.take(state) is state


def test_a_limit_of_the_process_is_no_error(monkeypatch, caplog):
    def refuse(*args):
        raise MemoryError

    monkeypatch.setattr(snapshot_module.np, "empty", refuse)
    state = {"w": jnp.ones(8)}
    assert HostCopy().take(state) is state
    assert "found" in caplog.text


def test_small_leaves_are_handed_through():
    state = {"small": jnp.ones(2**15 - 1), "large": jnp.ones(2**15)}
    taken = HostCopy().take(state)
    assert taken["small"] is state["small"]
    assert taken["large"] is not state["large"]


@pytest.fixture
def compiled():
    """How many programs were compiled meanwhile."""
    seen = []

    def listen(event, duration, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def test_copying_and_restoring_compile_nothing(kit, run_folder, compiled):
    state = every_kind(kit)
    template = kit.template(kit.mesh(8))
    compiled.clear()
    HostCopy().take(state)
    restore_state(run_folder / "checkpoints" / "7", template)
    assert compiled == []
    jax.jit(lambda x: x * 3.25 + 1.125)(jnp.ones(17))  # the listener hears
    assert compiled


def write_system(root, files):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def test_free_memory_is_the_least_that_the_machine_and_all_groups_allow(tmp_path):
    files = {
        "proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    4000 kB\n",
        "proc/self/cgroup": "1:cpu:/elsewhere\n0::/jobs/mine\n",
        "sys/fs/cgroup/jobs/memory.max": "3000000\n",
        "sys/fs/cgroup/jobs/memory.current": "1000000\n",
        "sys/fs/cgroup/jobs/memory.stat": "anon 5\ninactive_file 20000\n",
        "sys/fs/cgroup/jobs/mine/memory.max": "max\n",
    }
    assert free_bytes(tmp_path) is None
    write_system(tmp_path, {"proc/meminfo": files["proc/meminfo"], "proc/self/cgroup": "0::/\n"})
    assert free_bytes(tmp_path) == 4000 * 1024
    write_system(tmp_path, files)
    assert free_bytes(tmp_path) == 2_020_000


def test_the_free_memory_of_this_machine_is_known():
    free = free_bytes()
    assert free is not None
    assert free > 0
