"""Which calls of Orbax are used."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

import xtrainer.checkpoint
from xtrainer.checkpoint import CheckpointManager, find_step, restore_state


def test_importing_the_room_imports_no_orbax_and_starts_no_backend():
    program = """
import sys, xtrainer.checkpoint
assert "orbax.checkpoint" not in sys.modules, "orbax"
from jax._src import xla_bridge
assert not xla_bridge._backends, "backend"
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_only_the_backend_imports_orbax():
    folder = Path(xtrainer.checkpoint.__file__).parent
    users = {path.name for path in folder.glob("*.py") if "import orbax" in path.read_text()}
    assert users == {"backend.py"}


def test_orbax_v1_reads_what_is_written(kit, run_folder):
    from orbax.checkpoint import v1

    template = kit.template(kit.mesh(8))
    state = v1.load(find_step(run_folder) / "state", template, checkpointable_name=None)
    assert kit.equal(state, kit.state(kit.mesh(8)))
    assert jax.tree.structure(state) == jax.tree.structure(template)


def test_arrays_are_written_as_they_are(kit, tmp_path):
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, kit.items({"w": jnp.zeros(2**18)}))
    files = (path for path in (tmp_path / "1" / "state").rglob("*") if path.is_file())
    assert sum(path.stat().st_size for path in files) > 2**20


def test_what_orbax_compressed_is_read(kit, tmp_path):
    import orbax.checkpoint as ocp

    state = {"w": jnp.arange(2.0**18), "step": jnp.int32(3)}
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, kit.items(state))
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
        writer.save(tmp_path / "1" / "state", args=ocp.args.StandardSave(state), force=True)
    kit.reseal(tmp_path / "1")
    assert kit.equal(restore_state(tmp_path / "1", state), state)


def test_plain_orbax_reads_what_is_written_onto_another_mesh(kit, run_folder):
    import orbax.checkpoint as ocp

    template = kit.template(kit.mesh(2, 4))
    with ocp.CheckpointManager(run_folder / "checkpoints") as manager:
        args = ocp.args.Composite(state=ocp.args.StandardRestore(template))
        state = manager.restore(7, args=args)["state"]
    assert kit.equal(state, kit.state(kit.mesh(8)))
