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
from xtrainer.parallel.annotations import AxisNames
from xtrainer.parallel.rules import ParamLayout, fsdp_spec, lay_out

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
    return lay_out(PARAMS if params is None else params, mesh or MESH, config).specs


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


def test_a_rule_may_be_a_partition_spec() -> None:
    found = specs(("*/mlp/kernel", PartitionSpec(("fsdp", "tp"))))
    assert found["block_0/mlp/kernel"] == PartitionSpec(("fsdp", "tp"))


def layout(
    annotations: dict[str, AxisNames] | None = None, rules: Any = (), logical: Any = ()
) -> ParamLayout:
    changes = {"param_rules": rules, "logical_axis_rules": logical}
    return lay_out(PARAMS, MESH, ParallelConfig(**{**vars(CONFIG), **changes}), annotations)


UP = "block_0/mlp/kernel"


def test_metadata_wins_over_rules_and_rules_over_the_default() -> None:
    found = layout(
        {UP: AxisNames(("embed", None), logical=True)}, (("*/mlp/*", ("tp",)),), [("embed", "fsdp")]
    )
    assert found.specs[UP] == PartitionSpec("fsdp", None)
    assert found.specs["block_1/mlp/kernel"] == PartitionSpec("tp")
    assert found.specs["block_1/attention/kernel"] == PartitionSpec(None, "fsdp")
    origins = ("the model's metadata", "*/mlp/*", "the default")
    paths = (UP, "block_1/mlp/kernel", "head/bias")
    assert tuple(found.origins[path] for path in paths) == origins
    assert found.unused == ()


def test_metadata_without_a_rule_leaves_its_dimension_whole_and_is_reported() -> None:
    names = {UP: AxisNames(("embed", "mlp"), logical=True)}
    found = layout(names, logical=(("embed", "tp"),))
    assert found.specs[UP] == PartitionSpec("tp", None)
    assert found.unused == (
        f"parallel.logical_axis_rules: no rule for the logical axis 'mlp' (as of {UP!r}); its "
        "dimension stays whole.",
    )


def test_without_logical_rules_the_next_rule_decides_and_it_is_reported() -> None:
    found = layout({UP: AxisNames(("embed", None), logical=True)})
    assert found.specs[UP] == PartitionSpec("fsdp", None)
    assert found.unused == (
        f"parallel.logical_axis_rules: no rules, and so the logical axis 'embed' (as of {UP!r}) "
        "says nothing.",
    )


def test_rules_that_lay_out_nothing_are_reported() -> None:
    names = {UP: AxisNames(("tp", None), logical=False)}
    rules = (("*/bias", ()), ("*/scale", ()), (UP, ("fsdp",)), ("head/bias", ("tp",)))
    found = layout(names, rules, logical=(("embed", "fsdp"), ("embed", "tp")))
    behind = "names only parameters that the model or an earlier rule lays out."
    assert found.unused == (
        "parallel.param_rules: the pattern '*/scale' names no parameter.",
        f"parallel.param_rules: the pattern {UP!r} {behind}",
        f"parallel.param_rules: the pattern 'head/bias' {behind}",
        "parallel.logical_axis_rules: no parameter of the model has the axis 'embed'.",
    )


def test_metadata_that_does_not_fit_is_all_reported() -> None:
    with pytest.raises(ConfigError) as error:
        layout(
            {
                UP: AxisNames(("layers", None), logical=False),
                "head/bias": AxisNames(("vocab",), logical=True),
                "head/kernel": AxisNames(("vocab", "vocab"), logical=True),
            },
            logical=(("vocab", ("fsdp", "tp")),),
        )
    first, second, third = error.value.problems
    assert first == (
        f"parallel: the model's metadata ('layers', None) at {UP!r}: the mesh has no axis "
        "'layers', only ['dp', 'fsdp', 'pp', 'tp']."
    )
    assert second == (
        "parallel: the model's metadata ('vocab',) at 'head/bias': dimension 0 of (10,) does not "
        "divide by 8 (('fsdp', 'tp'))."
    )
    assert third.startswith("parallel: the model's metadata at 'head/kernel': ")
    assert "vocab" in third
