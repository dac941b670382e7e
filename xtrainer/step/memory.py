"""How many bytes of a device does a step take? From shapes, and from what the compiler says."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from xtrainer.state import TrainState
from xtrainer.tree import device_bytes
from xtrainer.types import BatchLike

BATCHES_AHEAD = 2
"""Batches that the loop has placed on the devices beside those of the steps under way."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device while a step runs.

    What needs the compiled step is 0 where it was not compiled: ``total`` is then the least that
    the step takes.

    Attributes:
        parameters: The model's parameters.
        optimizer: The optimizer's state.
        other_state: Mutable collections, step, key and guard.
        batches: The batch of each step under way, and those placed ahead.
        padding: What the compiled step takes of its arguments beyond their shapes: the metrics, the
            row mask, and what the device fills arrays up with.
        outputs: What the step returns without overwriting an argument by it.
        temporaries: Activations, gradients and work space at their highest.
        code: The compiled program itself.
    """

    parameters: int
    optimizer: int
    other_state: int
    batches: int
    padding: int = 0
    outputs: int = 0
    temporaries: int = 0
    code: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(dataclasses.astuple(self))


def measure_memory(
    state: TrainState,
    batch: BatchLike,
    compiled: Any = None,
    steps_in_flight: int = 1,
    reads_optimizer: bool = True,
) -> StepMemory:
    """Returns what a step takes of one device.

    Args:
        state: Arrays or ``ShapeDtypeStruct``s with their shardings.
        batch: The same for the global batch.
        compiled: The compiled step, ``lowered.compile()``; None: only shapes are looked at.
        steps_in_flight: Steps that may be under way, each with its batch.
        reads_optimizer: Whether the step takes the optimizer's state, which is there either way.

    Example:
        >>> import jax, optax
        >>> params, key = {"w": jax.numpy.ones(4)}, jax.random.key(0)
        >>> state = TrainState.create(params, optax.sgd(0.1), key)
        >>> measure_memory(state, jax.numpy.ones((2, 2))).parameters
        16
    """
    parts = {
        "parameters": device_bytes(state.params),
        "optimizer": device_bytes(state.opt_state),
        "other_state": device_bytes(state.replace(params=(), opt_state=())),
        "batches": device_bytes(batch) * (steps_in_flight + BATCHES_AHEAD),
    }
    if compiled is None:
        return StepMemory(**parts)
    found = compiled.memory_analysis()
    taken = device_bytes((state if reads_optimizer else state.replace(opt_state=()), batch))
    return StepMemory(
        **parts,
        padding=max(found.argument_size_in_bytes - taken, 0),
        outputs=max(found.output_size_in_bytes - found.alias_size_in_bytes, 0),
        temporaries=found.temp_size_in_bytes,
        code=found.generated_code_size_in_bytes,
    )
