"""Which part of a batch does a process hold, wherever its devices are in the mesh?"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from xtrainer.errors import MeshError
from xtrainer.parallel import BatchLayout, ParallelConfig, build_mesh, placement
from xtrainer.types import DataShard

Owner = Callable[[int], int]


class Device(NamedTuple):
    """A device as a process of several sees it."""

    id: int
    process_index: int


@pytest.fixture
def shard_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns a function from a mesh, who owns its eight devices, and a process to its part."""

    def find(owner: Owner, process: int, **sizes: int) -> DataShard:
        class Sharding(placement.NamedSharding):
            def devices_indices_map(self, shape: Any) -> Any:
                places = super().devices_indices_map(shape)
                return {Device(d.id, owner(d.id)): index for d, index in places.items()}

        monkeypatch.setattr(placement, "NamedSharding", Sharding)
        monkeypatch.setattr(placement.jax, "process_count", lambda: 2)
        monkeypatch.setattr(placement.jax, "process_index", lambda: process)
        config = ParallelConfig(**sizes)
        return BatchLayout.of(meshes(config), config).shard

    meshes = build_mesh
    return find


def two_each(device: int) -> int:
    return device // 2


def four_each(device: int) -> int:
    return device // 4


@pytest.mark.parametrize(
    ("owner", "sizes", "parts"),
    [
        (four_each, {}, [(0, 2), (1, 2)]),
        (two_each, {}, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        (two_each, {"data_axis_size": 1, "fsdp_axis_size": 8}, [(i, 4) for i in range(4)]),
        (two_each, {"fsdp_axis_size": 2}, [(i, 4) for i in range(4)]),
        # A tensor axis within a process, over two of them, and over all.
        (two_each, {"model_axis_size": 2}, [(i, 4) for i in range(4)]),
        (two_each, {"model_axis_size": 4}, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        (two_each, {"model_axis_size": 8}, [(0, 1)] * 4),
        (two_each, {"model_axis_size": 2, "pipeline_axis_size": 4}, [(0, 1)] * 4),
        # Devices that were ordered otherwise than the processes.
        (lambda device: 1 - device // 4, {}, [(1, 2), (0, 2)]),
    ],
)
def test_a_process_reads_the_rows_of_its_devices(
    shard_of: Any, owner: Owner, sizes: dict[str, int], parts: list[tuple[int, int]]
) -> None:
    found = [shard_of(owner, process, **sizes) for process in range(len(parts))]
    assert found == [DataShard(*part) for part in parts]


@pytest.mark.parametrize(
    ("owner", "sizes"),
    [
        (lambda device: int(device >= 2), {}),  # two devices, and six
        (lambda device: int(device >= 3), {"model_axis_size": 2}),  # one part is on both
    ],
)
def test_parts_of_other_sizes_and_parts_that_overlap_are_refused(
    shard_of: Any, owner: Owner, sizes: dict[str, int]
) -> None:
    with pytest.raises(MeshError, match="expected parts of one size that do not overlap"):
        shard_of(owner, 0, **sizes)


def test_a_process_alone_reads_everything() -> None:
    config = ParallelConfig()
    assert BatchLayout.of(build_mesh(config), config).shard == DataShard(0, 1)
