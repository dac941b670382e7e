import numpy as np
import pytest

from xtrainer.data import shard_rows
from xtrainer.errors import LoaderError
from xtrainer.types import DataShard


@pytest.mark.parametrize("rows", [0, 1, 3, 8, 11, 12])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 12])
def test_parts_in_order_are_the_whole_batch(rows, count):
    batch = np.arange(rows)
    parts = [batch[shard_rows(DataShard(index, count), 12)] for index in range(count)]
    np.testing.assert_array_equal(np.concatenate(parts), batch)
    assert max(map(len, parts)) <= 12 // count


def test_a_batch_size_that_does_not_divide_is_an_error_naming_both():
    with pytest.raises(LoaderError, match="batch_size=6 for 4 data-parallel parts"):
        shard_rows(DataShard(0, 4), 6)


@pytest.mark.parametrize("shard", [DataShard(2, 2), DataShard(-1, 2), DataShard(0, 0)])
def test_a_part_that_cannot_be_is_an_error(shard):
    with pytest.raises(LoaderError, match=f"part {shard.index} of {shard.count}"):
        shard_rows(shard, 4)
