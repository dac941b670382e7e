"""What did not fit into memory, and what makes it smaller?"""

import jax

from xtrainer.data import batch_spec
from xtrainer.trainer.view import TrainerView
from xtrainer.types import PyTree

_SIGNS = ("RESOURCE_EXHAUSTED", "Out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Says whether an error tells that a device, or the host, has no memory left."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in _SIGNS)


def explain_memory(trainer: TrainerView, error: BaseException) -> None:
    """Adds to an error of a device without memory what lies there and what helps.

    Args:
        trainer: Its state may have been given to the step that failed, and be gone.
        error: Any error; others are left alone.
    """
    if not is_out_of_memory(error):
        return
    config = trainer.trainer_config
    batch = batch_spec(trainer.exmp_batch)
    rows = trainer.progress.batch_rows or jax.tree.leaves(batch)[0].shape[0]
    error.add_note(
        f"There was not enough memory at step {trainer.progress.step}. On each device the state "
        f"takes {_on_a_device(trainer.state):,} bytes, and a batch has {rows} rows over "
        f"{trainer.mesh.size} devices in {config.gradient_accumulate_steps} parts; the rest is "
        "what the step keeps meanwhile. What helps: more gradient_accumulate_steps, smaller "
        "batches, ParallelConfig(remat=[...]), a larger fsdp axis, bfloat16. `xtrainer plan` says "
        "before a run what it needs. The checkpoints are as they were."
    )


def _on_a_device(tree: PyTree) -> int:
    """Returns the bytes of a device that holds its part of every array."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape)
        count = 1
        for size in shape:
            count *= size
        total += count * leaf.dtype.itemsize
    return total
