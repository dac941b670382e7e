"""How does a trainer get its state back, bit for bit, after steps have used it up for a trial?"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xtrainer.checkpoint.shards import shards_of
from xtrainer.errors import XTrainerError
from xtrainer.parallel import copy_tree
from xtrainer.state import TrainState
from xtrainer.step.programs import spec_of
from xtrainer.trainer.view import TrainerView


@contextmanager
def kept_state(trainer: TrainerView) -> Iterator[Callable[[], TrainState]]:
    """Keeps a trainer's state in host memory, so that steps may be tried on the devices.

    Inside, the trainer has shapes for a state: the devices hold nothing of it, as in a run, where
    there is one state and no copy. Afterwards it has its state again, however the block was left.

    Yields:
        A function that returns the state anew, in arrays that may be donated.

    Raises:
        XTrainerError: If the trainer has shapes only.
    """
    kept = _KeptState(trainer.state)
    trainer.state = kept.shapes
    try:
        yield kept.make
    finally:
        gc.collect()  # what a step that failed still held
        trainer.state = kept.make()


class _HostLeaf(NamedTuple):
    """The values of one array in host memory: this process's part on each of its devices."""

    shape: tuple[int, ...]
    sharding: Any
    parts: list[np.ndarray]
    places: list[Any]

    @classmethod
    def of(cls, leaf: jax.Array) -> "_HostLeaf":
        """Returns the values of an array; devices with the same region share them."""
        regions: dict[str, np.ndarray] = {}
        parts, places = [], []
        for region, part in shards_of(leaf):
            if region not in regions:
                regions[region] = np.array(part)  # a copy: the array itself may be donated
            parts.append(regions[region])
            places.append(part.sharding)
        return cls(leaf.shape, leaf.sharding, parts, places)

    def make(self) -> jax.Array:
        """Returns the array anew."""
        parts = jax.device_put(self.parts, self.places, may_alias=False)
        return jax.make_array_from_single_device_arrays(self.shape, self.sharding, parts)


class _KeptState:
    """A state that can be made as often as is asked for."""

    def __init__(self, state: TrainState) -> None:
        leaves, self._treedef = jax.tree.flatten(state)
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
            raise XTrainerError(
                "Found a trainer whose state is shapes, expected one with arrays: steps are to be "
                "run. Build it outside of shapes_only()."
            )
        self.shapes: TrainState = spec_of(state)
        self._leaves = [_copy(leaf) if _stays(leaf) else _HostLeaf.of(leaf) for leaf in leaves]

    def make(self) -> TrainState:
        """Returns the state as it was."""
        leaves = [x.make() if isinstance(x, _HostLeaf) else _copy(x) for x in self._leaves]
        return jax.tree.unflatten(self._treedef, leaves)


def _stays(leaf: jax.Array) -> bool:
    """Says whether a leaf is kept on the devices: keys and weak types get lost on the host."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) or bool(leaf.weak_type)


def _copy(leaf: jax.Array) -> jax.Array:
    return copy_tree(leaf, leaf.sharding)
