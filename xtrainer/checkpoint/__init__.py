"""What survives the end of the process? One folder per step, whole or absent.

Synopsis::

    manager = CheckpointManager(folder, max_to_keep=1, monitor_mode="min")
    manager.save(step, CheckpointItems(state, gather_meta(state, ...)), metric=0.25)
    manager.close()

    step_folder = find_step(folder, "best")
    meta = read_meta(step_folder)
    state = restore_state(step_folder, template)

Reading never makes a manager and never changes a folder. The arrays go through Orbax, the rest is
JSON; nothing is pickled and nothing in a checkpoint is executed.
"""

from xtrainer.checkpoint.fingerprint import differing_replicas, fingerprints
from xtrainer.checkpoint.items import (
    CheckpointItems,
    check_json,
    describe_leaves,
    gather_meta,
    numerics,
)
from xtrainer.checkpoint.last import find_last_checkpoint
from xtrainer.checkpoint.manager import CheckpointManager
from xtrainer.checkpoint.metadata import (
    RESUME_STEPS,
    checked_step,
    find_step,
    list_steps,
    read_meta,
    read_metric,
)
from xtrainer.checkpoint.migrate import migrate
from xtrainer.checkpoint.removal import set_aside
from xtrainer.checkpoint.restore import restore_partial, restore_state
from xtrainer.checkpoint.starts import note_failed_start, steps_to_leave_out
from xtrainer.checkpoint.under_way import Saved
from xtrainer.checkpoint.usable import Choice, choose_usable

__all__ = [
    "RESUME_STEPS",
    "CheckpointItems",
    "CheckpointManager",
    "Choice",
    "Saved",
    "check_json",
    "checked_step",
    "choose_usable",
    "describe_leaves",
    "differing_replicas",
    "find_last_checkpoint",
    "find_step",
    "fingerprints",
    "gather_meta",
    "list_steps",
    "migrate",
    "note_failed_start",
    "numerics",
    "read_meta",
    "read_metric",
    "restore_partial",
    "restore_state",
    "set_aside",
    "steps_to_leave_out",
]
