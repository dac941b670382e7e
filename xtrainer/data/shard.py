"""Which rows of a global batch does a process read? Those of its part, in one order for all."""

from xtrainer.counts import wanted_count
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


def check_resize(batch_size: int, now: int, num_rows: int, shard: DataShard, ends: bool) -> None:
    """Checks that the next pass over some rows can have batches of another size.

    Args:
        batch_size: Rows of a full batch over all parts.
        now: Rows of a full batch now, which can always stay so.
        num_rows: Rows that there are.
        shard: The part that is read.
        ends: Whether a pass has an end.

    Raises:
        LoaderError: If it cannot.
    """
    if type(batch_size) is int and batch_size == now:
        return
    if wanted_count(batch_size, 1, num_rows):
        raise LoaderError(
            f"Found batch_size={batch_size!r} for {num_rows} rows, expected a whole number from 1 "
            "to that. Ask for smaller batches."
        )
    if not ends:
        raise LoaderError(
            f"Found batch_size={batch_size} for a loader whose pass has no end, expected one that "
            "ends: a new size begins with the next pass. Training begins one pass after the other."
        )
    shard_rows(shard, batch_size)
