"""Which calls of Orbax are used? The only file that imports it, and only when something is done."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrainer.types import PyTree

if TYPE_CHECKING:  # importing Orbax takes as long as importing JAX
    pass

STATE_ITEM = "state"
"""The folder of a step that the arrays are in."""
_CLOCK_JUMP_S = 2 * 3600
"""Orbax measures its limit by the time of day, which somebody may put forward by an hour."""


class ArrayWriter:
    """Writes the arrays of a state, in the background.

    Arrays are written as they are: compressing took most of the processor time of a save, which
    training shares, and half of that of a restore, and made random float32 numbers 8 % smaller.

    Args:
        limit_s: Seconds that writing a state may take. Orbax is given more: time in which the
            process was stopped counts for it, and who waits for the save has a limit of its own.
    """

    def __init__(self, limit_s: float) -> None:
        import orbax.checkpoint as ocp
        from orbax.checkpoint.options import AtomicityMode, AtomicityOptions

        self._checkpointer: ocp.AsyncCheckpointer = ocp.AsyncCheckpointer(
            ocp.PyTreeCheckpointHandler(use_compression=False),
            timeout_secs=math.ceil(limit_s) + _CLOCK_JUMP_S,  # the manager's own comes first
            atomicity_options=AtomicityOptions(mode=AtomicityMode.COMMIT_FILE),
        )

    def start(self, step_folder: Path, state: PyTree) -> None:
        """Begins to write a state into a step's folder, which every process of a run does."""
        import orbax.checkpoint as ocp

        self._checkpointer.save(step_folder / STATE_ITEM, args=ocp.args.PyTreeSave(state))

    def wait(self) -> None:
        """Waits for what was begun; raises what has gone wrong with it."""
        self._checkpointer.wait_until_finished()

    def close(self) -> None:
        """Releases threads."""
        self._checkpointer.close()


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
