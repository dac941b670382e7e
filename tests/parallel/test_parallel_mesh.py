"""Does a config give the mesh it asks for, or an error with the numbers?"""

import json

import jax
import pytest
from jax.sharding import AxisType

from xtrainer.config import Config, check_configs
from xtrainer.errors import ConfigError, MeshError
from xtrainer.parallel import ParallelConfig, build_mesh, check_mesh


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
    ("sizes", "found"),
    [
        ({"data_axis_size": 3}, "{'dp': 3, 'fsdp': 1, 'pp': 1, 'tp': 1}"),
        ({"fsdp_axis_size": 3}, "{'dp': -1, 'fsdp': 3, 'pp': 1, 'tp': 1}"),
        ({"data_axis_size": 4}, "{'dp': 4, 'fsdp': 1, 'pp': 1, 'tp': 1}"),
        ({"model_axis_size": 16}, "{'dp': -1, 'fsdp': 1, 'pp': 1, 'tp': 16}"),
        ({"data_axis_size": 4, "fsdp_axis_size": 4}, "{'dp': 4, 'fsdp': 4, 'pp': 1, 'tp': 1}"),
    ],
)
def test_sizes_that_do_not_fit_are_an_error_with_the_numbers(
    sizes: dict[str, int], found: str
) -> None:
    with pytest.raises(MeshError) as error:
        build_mesh(ParallelConfig(**sizes))
    assert str(error.value) == (
        f"Mesh sizes {found} do not fit 8 devices. Give sizes whose product is the device count, "
        "or set one of them to -1."
    )


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
    config = ParallelConfig(param_rules=(("*/kernel", ("fsdp", None)), ("b", (("dp", "tp"),))))
    assert Config.from_dict(ParallelConfig, json.loads(json.dumps(config.to_dict()))) == config


def test_an_explicit_mesh_is_refused_with_what_to_do() -> None:
    kinds = (AxisType.Auto, AxisType.Explicit)
    mesh = jax.make_mesh((4, 2), ("dp", "tp"), axis_types=kinds)
    message = r"axes \['tp'\] are of type Explicit, expected Auto. Build the mesh with"
    with pytest.raises(MeshError, match=message):
        check_mesh(mesh)


def test_a_mesh_of_automatic_axes_is_fine() -> None:
    check_mesh(build_mesh())
