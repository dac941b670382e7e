"""Are the boxes of Flax read for the layout, and taken off without one?"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from xtrainer.parallel import ParallelConfig, build_mesh, read_annotations, unbox
from xtrainer.parallel.annotations import AxisNames

MESH = build_mesh(ParallelConfig(fsdp_axis_size=2, model_axis_size=2))
RULES = (("embed", "fsdp"), ("mlp", "tp"), ("length", None), ("both", ("fsdp", "tp")))


class Block(nn.Module):
    """A layer with logical axes, and one with mesh axes."""

    @nn.compact
    def __call__(self, x: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        init = nn.initializers.lecun_normal()
        x = nn.Dense(8, kernel_init=nn.with_logical_partitioning(init, ("embed", "mlp")))(x)
        x = nn.Dense(4, kernel_init=nn.with_partitioning(init, ("tp", None)))(x)
        return x, None


class Scanned(nn.Module):
    """Two such blocks in one."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layers = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=2,
            metadata_params={nn.PARTITION_NAME: None},
        )
        return layers(name="layers")(x, None)[0]


def boxed(model: nn.Module) -> Any:
    return jax.eval_shape(model.init, jax.random.key(0), jnp.ones((2, 4)))["params"]


def test_both_kinds_of_boxes_are_read() -> None:
    assert read_annotations(boxed(Block())) == {
        "Dense_0/kernel": AxisNames(("embed", "mlp"), logical=True),
        "Dense_1/kernel": AxisNames(("tp", None), logical=False),
    }


def test_scanned_layers_have_a_name_more() -> None:
    found = read_annotations(boxed(Scanned()))
    assert found["layers/Dense_0/kernel"].names == (None, "embed", "mlp")
    assert found["layers/Dense_1/kernel"].names == (None, "tp", None)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("embed", "mlp"), PartitionSpec("fsdp", "tp")),
        (("length", "embed"), PartitionSpec(None, "fsdp")),
        (("both", None), PartitionSpec(("fsdp", "tp"), None)),
        (("embed", "unknown"), PartitionSpec("fsdp", None)),
        (("unknown",), PartitionSpec(None)),
        (("both", "mlp"), PartitionSpec(None, "tp")),  # "tp" goes to the rule that comes first
        (("tp", "embed"), PartitionSpec(None, "fsdp")),  # no logical name
    ],
)
def test_logical_names_go_through_the_rules_as_in_flax(names: Any, expected: Any) -> None:
    assert AxisNames(names, logical=True).spec(MESH, RULES) == expected
    assert nn.logical_to_mesh_axes(names, RULES) == expected


def test_the_first_rule_whose_axes_are_free_is_taken() -> None:
    rules = (("a", "fsdp"), ("b", "fsdp"), ("b", "tp"))
    assert AxisNames(("b", "a"), logical=True).spec(MESH, rules) == PartitionSpec("tp", "fsdp")


def test_names_in_lists_are_read_as_from_a_file() -> None:
    rules = [["embed", ["fsdp", "tp"]]]
    names = AxisNames(("embed",), logical=True)
    assert names.spec(MESH, rules) == PartitionSpec(("fsdp", "tp"))  # type: ignore[arg-type]


def test_rules_in_the_box_are_taken_instead_of_the_config_s() -> None:
    init = nn.with_logical_partitioning(
        nn.initializers.ones, ("embed", "mlp"), rules=(("embed", "tp"),)
    )
    names = read_annotations({"w": init(jax.random.key(0), (2, 2))})["w"]
    assert names.spec(MESH, RULES) == PartitionSpec("tp", None)


def test_without_any_rules_logical_names_say_nothing() -> None:
    assert AxisNames(("embed", "mlp"), logical=True).spec(MESH, ()) is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("fsdp", None), PartitionSpec("fsdp", None)),
        ((("fsdp", "tp"),), PartitionSpec(("fsdp", "tp"))),
        (("embed", "tp"), PartitionSpec("fsdp", "tp")),  # a rule for a name that is no mesh axis
        (("layers", "tp"), PartitionSpec("layers", "tp")),  # refused later: the mesh has it not
    ],
)
def test_mesh_axes_stand_for_themselves(names: Any, expected: Any) -> None:
    assert AxisNames(names, logical=False).spec(MESH, RULES) == expected


def test_taking_off_boxes_keeps_values_and_the_rest() -> None:
    tree = {"a": nn.Partitioned(jnp.ones(2), ("fsdp",)), "b": [jnp.zeros(3), None]}
    plain = unbox(tree)
    assert jax.tree.structure(plain) == jax.tree.structure({"a": 0, "b": [0, None]})
    assert plain["a"].shape == (2,)


def test_taking_off_a_box_constrains_nothing() -> None:
    def init(key: jax.Array) -> Any:
        box = nn.with_partitioning(nn.initializers.ones, ("fsdp",), mesh=MESH)
        return unbox({"w": box(key, (4,))})

    assert "sharding_constraint" not in str(jax.make_jaxpr(init)(jax.random.key(0)))
