"""How does a state leave the devices without holding up the next step? As a copy in host memory."""

import logging
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from xtrainer.checkpoint.shards import join_shards, shards_of
from xtrainer.tree import num_bytes
from xtrainer.types import PyTree

_log = logging.getLogger(__name__)
_ALIGNMENT_BYTES = 64
"""What the CPU backend asks of host memory that it takes for an array without copying it."""
_SMALL_BYTES = 2**17
"""Below this XLA copies a leaf faster than it can be taken here: its memory need not be mapped."""
_GIB = 2**30

Layout = dict[int, list[tuple[jax.Array, int]]]
"""The parts of each leaf that is copied, and where in the memory each part begins."""


class HostCopy:
    """Host memory that states are copied into; the first one allocates it, the others use it again.

    On the CPU backend a writer reads the very buffers of a state. As long as it holds them the next
    step cannot work in place: XLA puts the new state into other memory, which takes several times
    as long as the copy made here, since mostly that memory has to be mapped first. From
    accelerators the writer fetches a copy by itself, so there the state is handed through, as small
    leaves are everywhere.
    """

    def __init__(self) -> None:
        self._memory: np.ndarray | None = None
        self._was_short = False

    @property
    def num_bytes(self) -> int:
        """How much host memory is held."""
        return 0 if self._memory is None else self._memory.nbytes

    def take(self, state: PyTree) -> PyTree:
        """Returns the state as arrays in this memory, on the same devices and as exact.

        The state that was taken before must no longer be read: it is overwritten. Replicas on
        several devices share their memory. Where host memory is short the state itself is
        returned, which is as safe, and slower.
        """
        leaves, treedef = jax.tree.flatten(state)
        layout, size = _lay_out(leaves)
        memory = self._reserve(size) if layout else None
        if memory is None:
            return state
        filled: dict[int, np.ndarray] = {}
        for parts in layout.values():
            for part, start in parts:
                if start not in filled:
                    filled[start] = _fill(memory[start:], part)
        places = [(filled[start], part.sharding) for ps in layout.values() for part, start in ps]
        arrays = iter(jax.device_put(*map(list, zip(*places, strict=True))))
        for i, parts in layout.items():
            leaves[i] = join_shards(leaves[i], [next(arrays) for _ in parts])
        return jax.tree.unflatten(treedef, leaves)

    def free(self) -> None:
        """Lets the memory go; what still reads it keeps it alive until that is done."""
        self._memory = None

    def _reserve(self, size: int) -> np.ndarray | None:
        """Returns aligned memory of at least this many bytes; None where there is not enough."""
        needed = size + _ALIGNMENT_BYTES
        if self._memory is None or self._memory.nbytes < needed:
            self.free()
            free = free_bytes()
            try:
                self._memory = (
                    None if free is not None and free < needed else np.empty(needed, np.uint8)
                )
            except MemoryError:  # a limit of the process, which the system's figures do not show
                pass
            if self._memory is None:
                self._say_short(needed, free)
                return None
        return self._memory[-self._memory.ctypes.data % _ALIGNMENT_BYTES :]

    def _say_short(self, needed: int, free: int | None) -> None:
        if not self._was_short:
            _log.warning(
                "A copy of the state in host memory needs %.2f GiB, found %.2f GiB free or a limit "
                "of the process: saving without one, so the step after each save takes longer.",
                needed / _GIB,
                (free or 0) / _GIB,
            )
        self._was_short = True


def free_bytes(root: Path = Path("/")) -> int | None:
    """Returns how much more memory this process may take; None where the system does not say.

    The least of what the machine has and what each control group around the process allows.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return None
    for group in groups:
        if group.startswith("0::"):
            inner = Path("sys/fs/cgroup") / group[3:].lstrip("/")
            free += _group_bytes(root / folder for folder in (inner, *inner.parents[:-3]))
    return min(free, default=None)


def _group_bytes(folders: Iterable[Path]) -> Iterable[int]:
    for folder in folders:
        try:
            limit = int((folder / "memory.max").read_text())
            used = int((folder / "memory.current").read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            yield limit - used + int(stat["inactive_file"])  # the cache of files gives way
        except (OSError, ValueError, KeyError):  # no limit, or not this kind of system
            continue


def _lay_out(leaves: list[jax.Array]) -> tuple[Layout, int]:
    layout: Layout = {}
    end = 0
    for i, leaf in enumerate(leaves):
        if not _is_lent(leaf):
            continue
        starts: dict[str, int] = {}
        layout[i] = []
        for region, part in shards_of(leaf):
            if region not in starts:
                starts[region] = end
                end += _round_up(part.size * np.dtype(part.dtype).itemsize)
            layout[i].append((part, starts[region]))
    return layout, end


def _is_lent(leaf: jax.Array) -> bool:
    """Says whether a writer would hold the buffers of a leaf, and a copy of them pays."""
    if next(iter(leaf.sharding.device_set)).platform != "cpu" or num_bytes(leaf) < _SMALL_BYTES:
        return False
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    # Outside of x64 mode a copy would be cast.
    return is_key or jax.dtypes.canonicalize_dtype(leaf.dtype) == leaf.dtype


def _fill(memory: np.ndarray, part: jax.Array) -> np.ndarray:
    values = np.asarray(part)  # no copy; the view ends with ``part``, a shard of its own
    place = memory[: values.nbytes].view(values.dtype).reshape(values.shape)
    np.copyto(place, values)
    return place


def _round_up(size: int) -> int:
    return -(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
