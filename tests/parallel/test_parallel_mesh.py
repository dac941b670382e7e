"""Does a config give the mesh it asks for, or an error with the numbers?"""

import itertools
import json
import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, PartitionSpec

from xtrainer.config import Config, check_configs
from xtrainer.errors import ConfigError, MeshError
from xtrainer.parallel import ParallelConfig, build_mesh, check_mesh
from xtrainer.parallel.mesh import nearest_sizes, resolve_sizes


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (8, 1, 1, 1)),
        ({"data_axis_size": 8}, (8, 1, 1, 1)),
        ({"fsdp_axis_size": 4}, (2, 4, 1, 1)),
        ({"data_axis_size": 1, "fsdp_axis_size": -1}, (1, 8, 1, 1)),
        ({"data_axis_size": 2, "fsdp_axis_size": 2, "model_axis_size": 2}, (2, 2, 1, 2)),
        ({"pipeline_axis_size": 2, "model_axis_size": 2}, (2, 1, 2, 2)),
        ({"data_axis_size": 2, "model_axis_size": -1}, (2, 1, 1, 4)),
        ({"fsdp_axis_size": 8}, (1, 8, 1, 1)),
    ],
)
def test_the_mesh_has_the_sizes_asked_for(
    sizes: dict[str, int], shape: tuple[int, int, int, int]
) -> None:
    mesh = build_mesh(ParallelConfig(**sizes))
    assert dict(mesh.shape) == dict(zip(("dp", "fsdp", "pp", "tp"), shape, strict=True))
    assert mesh.devices.shape == shape
    assert set(mesh.devices.ravel()) == set(jax.devices())
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_without_a_config_all_devices_hold_different_rows() -> None:
    assert dict(build_mesh().shape) == {"dp": 8, "fsdp": 1, "pp": 1, "tp": 1}


def test_axes_have_the_names_of_the_config() -> None:
    config = ParallelConfig(data_axis_name="data", model_axis_name="model", model_axis_size=2)
    assert dict(build_mesh(config).shape) == {"data": 4, "fsdp": 1, "pp": 1, "model": 2}


def test_devices_may_be_chosen() -> None:
    devices = jax.devices()[2:4]
    mesh = build_mesh(ParallelConfig(fsdp_axis_size=2), devices)
    assert mesh.devices.ravel().tolist() == devices
    assert dict(mesh.shape) == {"dp": 1, "fsdp": 2, "pp": 1, "tp": 1}


@pytest.mark.parametrize(
    ("sizes", "found", "nearest"),
    [
        ({"data_axis_size": 3}, (3, 1, 1, 1), [(8, 1, 1, 1), (4, 2, 1, 1), (4, 1, 2, 1)]),
        ({"fsdp_axis_size": 3}, (-1, 3, 1, 1), [(2, 4, 1, 1), (4, 2, 1, 1), (1, 8, 1, 1)]),
        ({"data_axis_size": 4}, (4, 1, 1, 1), [(8, 1, 1, 1), (4, 2, 1, 1), (4, 1, 2, 1)]),
        ({"model_axis_size": 16}, (-1, 1, 1, 16), [(1, 1, 1, 8), (2, 1, 1, 4), (4, 1, 1, 2)]),
        (
            {"data_axis_size": 4, "fsdp_axis_size": 4},
            (4, 4, 1, 1),
            [(2, 4, 1, 1), (4, 2, 1, 1), (8, 1, 1, 1)],
        ),
    ],
)
def test_sizes_that_do_not_fit_are_an_error_with_the_nearest_that_do(
    sizes: dict[str, int], found: Any, nearest: list[Any]
) -> None:
    def named(values: Any) -> str:
        return str(dict(zip(("dp", "fsdp", "pp", "tp"), values, strict=True)))

    with pytest.raises(MeshError) as error:
        build_mesh(ParallelConfig(**sizes))
    assert str(error.value) == (
        f"Mesh sizes {named(found)} do not fit 8 devices. Give sizes whose product is the device "
        "count, or set one of them to -1. Nearest that fit: "
        f"{', or '.join(named(values) for values in nearest)}."
    )


SIZES = st.lists(st.integers(1, 12), min_size=4, max_size=4)
NAMES = ("dp", "fsdp", "pp", "tp")


@given(SIZES, st.sampled_from([None, *range(4)]), st.integers(1, 64))
def test_sizes_are_resolved_or_refused_with_some_that_fit(
    values: list[int], free: int | None, num_devices: int
) -> None:
    asked = dict(zip(NAMES, values, strict=True))
    if free is not None:
        asked[NAMES[free]] = -1
    fixed = math.prod(size for size in asked.values() if size != -1)
    fits = num_devices % fixed == 0 if free is not None else num_devices == fixed
    if fits:
        resolved = resolve_sizes(asked, num_devices)
        assert math.prod(resolved.values()) == num_devices
        assert all(asked[name] in (-1, size) for name, size in resolved.items())
        assert nearest_sizes(asked, num_devices)[0] == resolved
        return
    with pytest.raises(MeshError, match="do not fit"):
        resolve_sizes(asked, num_devices)
    changes = []
    for found in nearest_sizes(asked, num_devices):
        assert math.prod(found.values()) == num_devices
        assert tuple(found) == NAMES
        changes.append(sum(asked[name] not in (-1, size) for name, size in found.items()))
    assert changes == sorted(changes)
    assert changes[0] == fewest_changes(asked, num_devices)


def test_sizes_that_change_the_data_axis_come_first() -> None:
    asked = dict(zip(NAMES, (2, 5, 1, 4), strict=True))
    found = [tuple(sizes.values()) for sizes in nearest_sizes(asked, 32)]
    assert found == [(2, 4, 1, 4), (1, 8, 1, 4), (4, 2, 1, 4)]


def fewest_changes(asked: dict[str, int], num_devices: int) -> int:
    """Returns how many sizes have to change, by trying all sets of them."""
    free = [name for name, size in asked.items() if size == -1]
    for count in range(5):
        for changed in itertools.combinations([n for n in NAMES if n not in free], count):
            kept = math.prod(size for name, size in asked.items() if name not in (*changed, *free))
            if num_devices % kept == 0 and (changed or free or kept == num_devices):
                return count
    raise AssertionError("all may change")


@dataclass(frozen=True)
class FakeDevice:
    """As much of a device as the order of a mesh depends on."""

    id: int
    slice_index: int = 0
    process_index: int = 0
    platform: str = "gpu"
    device_kind: str = "made up"


def fake_devices(count: int, **groups: int) -> list[FakeDevice]:
    """Returns devices whose attributes change every so many devices, last group first."""
    numbers = [{name: i // every for name, every in groups.items()} for i in range(count)]
    return [FakeDevice(i, **number) for i, number in enumerate(numbers)][::-1]


def granules(mesh: Any, attribute: str) -> list[set[int]]:
    """Returns for each place on the data axis in which slices or processes its devices are."""
    return [{getattr(device, attribute) for device in row.ravel()} for row in mesh.devices]


@pytest.mark.parametrize("asked", [2, -1])
def test_the_data_axis_runs_over_the_slices(asked: int) -> None:
    devices = fake_devices(16, slice_index=8)
    config = ParallelConfig(data_axis_size=4, fsdp_axis_size=4, dcn_data_axis_size=asked)
    mesh = build_mesh(config, devices)
    assert dict(mesh.shape) == {"dp": 4, "fsdp": 4, "pp": 1, "tp": 1}
    assert granules(mesh, "slice_index") == [{0}, {0}, {1}, {1}]
    assert set(mesh.devices.ravel()) == set(devices)
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_processes_count_where_there_are_not_as_many_slices() -> None:
    devices = fake_devices(8, process_index=2)
    config = ParallelConfig(fsdp_axis_size=2, dcn_data_axis_size=4)
    assert granules(build_mesh(config, devices), "process_index") == [{0}, {1}, {2}, {3}]


def test_without_slices_minus_one_is_one() -> None:
    mesh = build_mesh(ParallelConfig(fsdp_axis_size=2, dcn_data_axis_size=-1))
    assert mesh.devices.tolist() == build_mesh(ParallelConfig(fsdp_axis_size=2)).devices.tolist()


def test_several_nodes_of_gpus_need_no_setting() -> None:
    devices = fake_devices(8, slice_index=4)
    mesh = build_mesh(ParallelConfig(data_axis_size=1, fsdp_axis_size=8), devices)
    assert mesh.devices.ravel().tolist() == sorted(devices, key=lambda device: device.id)


def test_several_slices_of_tpus_need_the_setting() -> None:
    devices = [replace(device, platform="tpu") for device in fake_devices(8, slice_index=4)]
    with pytest.raises(MeshError, match="8 devices lie on 2 slices .* dcn_data_axis_size=-1"):
        build_mesh(ParallelConfig(), devices)


@pytest.mark.parametrize(
    ("config", "every"),
    [
        (ParallelConfig(dcn_data_axis_size=4), 4),
        (ParallelConfig(data_axis_size=1, fsdp_axis_size=8, dcn_data_axis_size=2), 4),
        (ParallelConfig(dcn_data_axis_size=2), 5),
    ],
    ids=["not as many slices", "data axis too small", "unequal slices"],
)
def test_slices_that_do_not_divide_the_data_axis_are_an_error(
    config: ParallelConfig, every: int
) -> None:
    with pytest.raises(MeshError, match="cannot be divided over dcn_data_axis_size="):
        build_mesh(config, fake_devices(8, slice_index=every))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            ParallelConfig(fsdp_axis_size=-1),
            "axis sizes: found {'dp': -1, 'fsdp': -1, 'pp': 1, 'tp': 1}, expected at most one -1.",
        ),
        (ParallelConfig(model_axis_size=0), "'tp': 0}, expected sizes >= 1, or one -1."),
        (ParallelConfig(data_axis_size=-2), "{'dp': -2, 'fsdp'"),
        (
            ParallelConfig(data_axis_name="x", fsdp_axis_name="x"),
            "axis names: found ('x', 'x', 'pp', 'tp'), expected four different names.",
        ),
        (
            ParallelConfig(fsdp_min_weight_size=-1),
            "fsdp_min_weight_size: found -1, expected a number >= 0.",
        ),
        (
            ParallelConfig(param_rules=(("*/kernel", ("fsdb", None)),)),
            "the rule for '*/kernel' names the axes ['fsdb']; the mesh has ['dp', 'fsdp', 'pp',",
        ),
        (
            ParallelConfig(param_rules=(("a", (("dp", "xx"),)), ("b", ("yy",)))),
            "the rule for 'b' names the axes ['yy']",
        ),
        (
            ParallelConfig(logical_axis_rules=(("embed", ("dp", "fsdb")),)),
            "logical_axis_rules: the rule for 'embed' names the axes ['fsdb']",
        ),
        (ParallelConfig(dcn_data_axis_size=0), "dcn_data_axis_size: found 0, expected a number"),
        (
            ParallelConfig(param_rules=(("re:(a", (None,)),)),
            "param_rules: found the pattern 're:(a': missing )",
        ),
        (ParallelConfig(remat=("",)), "remat: found an empty pattern"),
    ],
)
def test_a_wrong_config_is_an_error(config: ParallelConfig, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_mesh(config)
    assert message in str(error.value)


def test_mistakes_are_reported_together() -> None:
    config = ParallelConfig(
        data_axis_size=0, fsdp_min_weight_size=-1, param_rules=(("a", ("x",)), ("b", ("y",)))
    )
    assert len(config.problems()) == 4
    with pytest.raises(ConfigError, match="4 mistakes") as error:
        check_configs(parallel=config)
    assert all(problem.startswith("parallel.") for problem in error.value.problems)


def test_rules_survive_a_round_trip() -> None:
    config = ParallelConfig(
        param_rules=(
            ("*/kernel", ("fsdp", None)),
            ("b", (("dp", "tp"),)),
            ("c", PartitionSpec(None, ("dp", "tp"))),
        ),
        logical_axis_rules=(("embed", "fsdp"), ("mlp", ("dp", "tp")), ("length", None)),
        remat=("Block",),
    )
    check_configs(parallel=config)
    assert Config.from_dict(ParallelConfig, json.loads(json.dumps(config.to_dict()))) == config


def test_an_explicit_mesh_is_refused_with_what_to_do() -> None:
    kinds = (AxisType.Auto, AxisType.Explicit)
    mesh = jax.make_mesh((4, 2), ("dp", "tp"), axis_types=kinds)
    message = r"axes \['tp'\] are of type Explicit, expected Auto. Build the mesh with"
    with pytest.raises(MeshError, match=message):
        check_mesh(mesh)


def test_a_mesh_of_automatic_axes_is_fine() -> None:
    check_mesh(build_mesh())


def test_a_given_mesh_may_lack_axes() -> None:
    mesh = jax.make_mesh((8, 1), ("dp", "other"), axis_types=(AxisType.Auto,) * 2)
    check_mesh(mesh, ParallelConfig())


def test_an_axis_that_the_config_does_not_name_is_refused() -> None:
    mesh = jax.make_mesh((4, 2), ("data", "tp"), axis_types=(AxisType.Auto,) * 2)
    check_mesh(mesh, ParallelConfig(data_axis_name="data"))
    message = (
        r"the axes \['data'\] that ParallelConfig does not name, .*, for example data_axis_name"
    )
    with pytest.raises(MeshError, match=message):
        check_mesh(mesh, ParallelConfig())
