"""How is a set read for an evaluation that must always be the same, whatever else reads it?"""

from collections.abc import Iterator
from typing import Any

from xtrainer.types import BatchLike, DataShard


class WholePass:
    """One pass over a loader; each ``iter()`` begins where the loader stands now.

    It has no position to be saved: an evaluation that was broken off begins anew.

    Args:
        loader: Of this object alone; with ``get_state``, ``set_state`` and ``set_shard``.
    """

    def __init__(self, loader: Any) -> None:
        self.batch_size: int = loader.batch_size
        self._loader = loader
        self._start = loader.get_state()

    def __len__(self) -> int:
        """Returns the number of batches."""
        return len(self._loader)

    def __iter__(self) -> Iterator[BatchLike]:
        """Returns all batches, from the first one."""
        self._loader.set_state(self._start)
        return iter(self._loader)

    def set_shard(self, shard: DataShard) -> None:
        """Gives this part of each batch, see :class:`xtrainer.types.ShardedLoader`."""
        self._loader.set_shard(shard)
