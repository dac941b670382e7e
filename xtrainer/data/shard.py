"""Which rows of a global batch does a process read? Those of its part, in one order for all."""

from xtrainer.errors import LoaderError
from xtrainer.types import DataShard


def shard_rows(shard: DataShard, batch_size: int) -> slice:
    """Returns the rows of each batch that a part consists of; a smaller last batch may have none.

    Args:
        shard: The part.
        batch_size: Rows of a full batch over all parts.

    Raises:
        LoaderError: If there is no such part, or the rows do not divide into parts of one size.

    Example:
        >>> [[0, 1, 2, 3][shard_rows(DataShard(index, 2), 4)] for index in range(2)]
        [[0, 1], [2, 3]]
        >>> ["the last batch"][shard_rows(DataShard(1, 2), 4)]
        []
    """
    index, count = shard
    if not 0 <= index < count:
        raise LoaderError(
            f"Found part {index} of {count}, expected an index from 0 and below the count."
        )
    if batch_size % count:
        raise LoaderError(
            f"Found batch_size={batch_size} for {count} data-parallel parts, expected a multiple "
            f"of {count}: the batch size is that of all processes together. Change the batch size "
            "or the number of processes."
        )
    rows = batch_size // count
    return slice(index * rows, (index + 1) * rows)
