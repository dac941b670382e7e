"""Which calls of Orbax are used."""

import subprocess
import sys
from pathlib import Path

import jax

import xtrainer.checkpoint
from xtrainer.checkpoint import find_step


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
    state = v1.load(find_step(run_folder), template, checkpointable_name="state")
    assert kit.equal(state, kit.state(kit.mesh(8)))
    assert jax.tree.structure(state) == jax.tree.structure(template)
