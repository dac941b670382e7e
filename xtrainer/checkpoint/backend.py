"""Which calls of Orbax are used? The only file that imports it, and only when something is done."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrainer.types import JSON, PyTree

if TYPE_CHECKING:  # importing Orbax takes as long as importing JAX
    import orbax.checkpoint as ocp

STATE_ITEM = "state"
META_ITEM = "meta"
COMMIT_FILE = "commit_success.txt"
META_FILE = "metadata"
RANK_FILE = "rank.json"
"""A metric that became known after its step was saved."""
SAVE_ENTRIES = frozenset({STATE_ITEM, META_ITEM, COMMIT_FILE, RANK_FILE, "_CHECKPOINT_METADATA"})
"""Everything a save puts into a step folder."""


def open_manager(folder: Path, async_save: bool) -> "ocp.CheckpointManager":
    """Returns Orbax's writing manager of a folder that exists.

    Steps become visible by a commit file, so that an empty or half-copied folder is no step.
    Orbax keeps every step: what is deleted, and when, is decided in ``manager.py``. Arrays are
    written as they are: compressing took most of the processor time of a save, which training
    shares, and half of that of a restore, and made random float32 numbers 8 % smaller.
    """
    import orbax.checkpoint as ocp
    from orbax.checkpoint.options import AtomicityMode, AtomicityOptions

    options = ocp.CheckpointManagerOptions(
        atomicity_options=AtomicityOptions(mode=AtomicityMode.COMMIT_FILE),
        enable_async_checkpointing=async_save,
        lightweight_initialize=True,  # what Orbax notes about a step is not used
    )
    handlers = {
        STATE_ITEM: ocp.PyTreeCheckpointHandler(use_compression=False),
        META_ITEM: ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)


def start_save(manager: "ocp.CheckpointManager", step: int, state: PyTree, meta: JSON) -> bool:
    """Begins one save; returns whether Orbax took it.

    ``force`` skips Orbax's own rule, which refuses steps below the latest without an error.
    """
    import orbax.checkpoint as ocp

    items = {STATE_ITEM: ocp.args.PyTreeSave(state), META_ITEM: ocp.args.JsonSave(meta)}
    return manager.save(step, args=ocp.args.Composite(**items), force=True)


def read_state(step_folder: Path, template: PyTree) -> PyTree:
    """Reads the whole state of a step into the shardings of ``template``."""
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
        return reader.restore(step_folder / STATE_ITEM, args=ocp.args.StandardRestore(template))


def read_part(step_folder: Path, template: dict[str, Any]) -> dict[str, Any]:
    """Reads those leaves of a state that ``template`` names; the others are not touched."""
    import orbax.checkpoint as ocp

    wanted = ocp.args.PyTreeRestore(
        item=template,
        restore_args=ocp.checkpoint_utils.construct_restore_args(template),
        partial_restore=True,
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return reader.restore(step_folder / STATE_ITEM, args=wanted)
