"""Are the leaves of a tree named and counted rightly?"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtrainer.tree import flatten_with_paths, map_with_paths, matches, num_bytes, num_elements


@flax.struct.dataclass
class Pair:
    left: object
    right: object


def test_paths_name_keys_fields_and_positions() -> None:
    tree = {"params": Pair(left=[1, 2], right={"a": 3}), "none": None}
    assert flatten_with_paths(tree) == {
        "params/left/0": 1,
        "params/left/1": 2,
        "params/right/a": 3,
    }


def test_mapping_gives_path_and_leaves_and_keeps_the_structure() -> None:
    left, right = {"a": (1, 2)}, {"a": (10, 20)}
    mapped = map_with_paths(lambda path, x, y: f"{path}={x + y}", left, right)
    assert mapped == {"a": ("a/0=11", "a/1=22")}


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("*/bias", "block/dense/bias", True),
        ("*/bias", "block/dense/bias_scale", False),
        ("bias", "dense/bias", True),
        ("bias", "debiased/kernel", True),
        (r"/bias$", "dense/bias", True),
        (r"(bias|scale)$", "norm/scale", True),
        (r"(bias|scale)$", "norm/kernel", False),
        (r"block_\d+/.*kernel", "params/block_3/mlp/kernel", True),
        ("block_?/*", "block_3/kernel", True),
        ("block_?/*", "block_13/kernel", False),
        ("Dense*", "dense_0", False),
    ],
)
def test_patterns_are_globs_of_the_path_or_regexes_in_it(
    pattern: str, path: str, expected: bool
) -> None:
    assert matches(pattern, path) is expected


def test_elements_are_counted_beyond_32_bits() -> None:
    huge = jax.ShapeDtypeStruct((2**20, 2**14), jnp.int8)
    assert num_elements({"a": huge, "b": np.zeros((2, 3)), "c": np.zeros(())}) == 2**34 + 7


def test_bytes_follow_the_type() -> None:
    tree = {"a": jnp.zeros(3, jnp.bfloat16), "b": np.zeros(2, np.float64), "c": jnp.zeros((), bool)}
    assert num_bytes(tree) == 6 + 16 + 1


def test_bytes_of_a_key_are_those_of_its_data() -> None:
    key = jax.random.key(0, impl="threefry2x32")
    assert num_bytes({"rng": key}) == 8


def test_an_array_on_many_devices_is_counted_once() -> None:
    mesh = jax.make_mesh((8,), ("dp",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(
        jnp.zeros(16, jnp.float32), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    )
    assert num_bytes({"a": spread}) == 64
