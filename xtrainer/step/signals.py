"""What do the processes of a run say to each other with a step? A few bits, reduced in the step.

Each process sends its bits with the batch; every process reads what all have said in the step's
report, at the same step and without a wait of its own. A step with which a process says that the
run shall end is not taken, nor is any later one, so that steps which other processes have already
dispatched leave the state as it was.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xtrainer.parallel import put_global

STOP = 1
"""Stop before this step."""
FAIL = 2
"""An error has ended this process's part; the batch is empty."""
LAST = 4
"""This is the last batch of a pass; the others' must be as well."""
_BITS = 3


class Signals(NamedTuple):
    """What was said with one step.

    Attributes:
        any: int32 ``()``, bits that at least one process has sent.
        all: int32 ``()``, bits that every process has sent.
    """

    any: jax.Array
    all: jax.Array


def reduce_signals(sent: jax.Array) -> Signals:
    """Returns what was said, from int32 ``(devices,)``: the bits of each device's process."""
    bits = jnp.arange(_BITS)
    said = (jnp.right_shift(sent[:, None], bits[None, :]) & 1).astype(jnp.float32)
    counts = said.sum(0)  # float32, so that XLA joins it with the sums of the loss
    values = jnp.left_shift(1, bits)
    one = jnp.where(counts > 0, values, 0).sum().astype(jnp.int32)
    every = jnp.where(counts == sent.shape[0], values, 0).sum().astype(jnp.int32)
    return Signals(one, every)


def ends_before(signals: Signals) -> jax.Array:
    """Returns the bits that forbid the step itself, int32 ``()``."""
    return signals.any & (STOP | FAIL)


def ends_after(signals: Signals) -> jax.Array:
    """Returns the bits that forbid every later step: passes that do not end together."""
    return (signals.any & LAST) - (signals.all & LAST)


class SignalPlacer:
    """Makes the array of this process's bits; the few that there are, are kept.

    Args:
        mesh: Every device of it has one entry.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._made: dict[int | tuple[int, ...], jax.Array] = {}

    def __call__(self, bits: int) -> jax.Array:
        """Returns int32 ``(devices,)`` with ``bits`` on the devices of this process."""
        if bits not in self._made:
            sent = np.full((self.sharding.mesh.size,), bits, np.int32)  # each takes its own part
            self._made[bits] = put_global(sent, self.sharding)
        return self._made[bits]

    def stack(self, bits: tuple[int, ...], sharding: NamedSharding) -> jax.Array:
        """Returns int32 ``(steps, devices)`` with the bits of several steps.

        Args:
            bits: For each step.
            sharding: Of the result.
        """
        if bits not in self._made:
            sent = np.repeat(np.array(bits, np.int32)[:, None], sharding.mesh.size, axis=1)
            self._made[bits] = put_global(sent, sharding)
        return self._made[bits]
