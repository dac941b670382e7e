"""Does each parameter get the partition of its rule, or the largest axis that divides?"""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from xtrainer.errors import ConfigError
from xtrainer.parallel import ParallelConfig, build_mesh
from xtrainer.parallel.rules import fsdp_spec, param_specs

CONFIG = ParallelConfig(
    data_axis_size=1, fsdp_axis_size=4, model_axis_size=2, fsdp_min_weight_size=64
)
MESH = build_mesh(CONFIG)


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


PARAMS = {
    "block_0": {"attention": {"kernel": shape(16, 32)}, "mlp": {"kernel": shape(32, 16)}},
    "block_1": {"attention": {"kernel": shape(16, 32)}, "mlp": {"kernel": shape(32, 16)}},
    "head": {"kernel": shape(16, 10), "bias": shape(10)},
}


def specs(*rules: Any, params: Any = None, mesh: Any = None) -> dict[str, PartitionSpec]:
    config = ParallelConfig(**{**vars(CONFIG), "param_rules": rules})
    return param_specs(PARAMS if params is None else params, mesh or MESH, config)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((16, 32), PartitionSpec(None, "fsdp")),
        ((32, 16), PartitionSpec("fsdp", None)),
        ((16, 16), PartitionSpec("fsdp", None)),
        ((33, 16), PartitionSpec(None, "fsdp")),
        ((3, 16, 32), PartitionSpec(None, None, "fsdp")),
        ((8, 8), PartitionSpec("fsdp", None)),
        ((64,), PartitionSpec("fsdp")),
        ((7, 63), PartitionSpec()),
        ((33, 33), PartitionSpec()),
        ((), PartitionSpec()),
    ],
)
def test_the_default_is_the_largest_axis_that_divides(
    sizes: tuple[int, ...], expected: PartitionSpec
) -> None:
    assert fsdp_spec(sizes, MESH, CONFIG) == expected


def test_small_parameters_stay_whole() -> None:
    assert fsdp_spec((63, 1), MESH, CONFIG) == PartitionSpec()
    assert fsdp_spec((4, 15), MESH, CONFIG) == PartitionSpec()
    assert fsdp_spec((4, 16), MESH, CONFIG) == PartitionSpec(None, "fsdp")
    default = ParallelConfig(fsdp_axis_size=8)
    assert fsdp_spec((512, 511), build_mesh(default), default) == PartitionSpec()
    assert fsdp_spec((512, 512), build_mesh(default), default) == PartitionSpec("fsdp", None)


def test_without_an_fsdp_axis_all_stay_whole() -> None:
    assert fsdp_spec((1024, 1024), build_mesh(), ParallelConfig()) == PartitionSpec()
    other = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    assert fsdp_spec((1024, 1024), other, ParallelConfig()) == PartitionSpec()


@given(st.lists(st.integers(1, 70), max_size=4))
def test_the_default_always_fits(sizes: list[int]) -> None:
    spec = fsdp_spec(sizes, MESH, CONFIG)
    jax.NamedSharding(MESH, spec).shard_shape(tuple(sizes))
    named = [axis for axis, name in enumerate(spec) if name is not None]
    assert all(sizes[axis] == max(n for n in sizes if n % 4 == 0) for axis in named)


def test_a_glob_names_whole_paths() -> None:
    found = specs(("*/attention/*", (None, "tp")), ("head/*", ()))
    assert found["block_0/attention/kernel"] == PartitionSpec(None, "tp")
    assert found["block_1/attention/kernel"] == PartitionSpec(None, "tp")
    assert found["block_0/mlp/kernel"] == PartitionSpec("fsdp", None)
    assert found["head/kernel"] == PartitionSpec()


def test_a_regex_is_searched_in_the_path() -> None:
    found = specs((r"block_\d+/(mlp|attention)/kernel$", ("tp", "fsdp")))
    assert [path for path, spec in found.items() if spec == PartitionSpec("tp", "fsdp")] == [
        "block_0/attention/kernel",
        "block_0/mlp/kernel",
        "block_1/attention/kernel",
        "block_1/mlp/kernel",
    ]


def test_the_first_match_wins() -> None:
    found = specs(("block_0/*", (None, "tp")), ("*/kernel", ("tp", None)), ("*", ("dp",)))
    assert found["block_0/mlp/kernel"] == PartitionSpec(None, "tp")
    assert found["block_1/mlp/kernel"] == PartitionSpec("tp", None)
    assert found["head/bias"] == PartitionSpec("dp")


def test_several_axes_may_share_a_dimension() -> None:
    for axes in (("fsdp", "tp"), ["fsdp", "tp"]):
        found = specs(("*/mlp/kernel", (axes, None)))
        assert found["block_0/mlp/kernel"] == PartitionSpec(("fsdp", "tp"), None)


def test_a_short_rule_leaves_the_other_dimensions_whole() -> None:
    found = specs(("*/mlp/kernel", ("tp",)))["block_0/mlp/kernel"]
    assert jax.NamedSharding(MESH, found).shard_shape((32, 16)) == (16, 16)


def test_rules_that_do_not_fit_are_all_reported() -> None:
    with pytest.raises(ConfigError) as error:
        specs(
            ("block_0/mlp/kernel", (None, None, "tp")),
            ("head/kernel", (None, "fsdp")),
            ("head/bias", (("fsdp", "tp"),)),
        )
    assert error.value.problems == (
        "parallel.param_rules: the rule for 'block_0/mlp/kernel' at 'block_0/mlp/kernel': "
        "3 entries for an array of shape (32, 16).",
        "parallel.param_rules: the rule for 'head/bias' at 'head/bias': "
        "dimension 0 of (10,) does not divide by 8 (('fsdp', 'tp')).",
        "parallel.param_rules: the rule for 'head/kernel' at 'head/kernel': "
        "dimension 1 of (16, 10) does not divide by 4 ('fsdp').",
    )


def test_an_axis_used_twice_in_a_rule_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"'head/kernel': the axis 'tp' is named twice"):
        specs(("head/kernel", ("tp", ("fsdp", "tp"))))


def test_an_axis_that_the_users_mesh_lacks_is_an_error() -> None:
    mesh = jax.make_mesh((8,), ("dp",), axis_types=(jax.sharding.AxisType.Auto,))
    message = r"'head/kernel': the mesh has no axis 'tp', only \['dp'\]"
    with pytest.raises(ConfigError, match=message):
        specs(("head/kernel", ("tp",)), mesh=mesh)
