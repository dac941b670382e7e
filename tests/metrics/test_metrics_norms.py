"""Are norms those of float32, whatever the dtype and layout?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtrainer.metrics import global_norm, norms_per_param

TREE = {"a": {"w": jnp.array([[3.0, 0.0], [0.0, 4.0]])}, "b": jnp.array(12.0)}


def test_the_global_norm_is_that_of_all_entries() -> None:
    assert float(global_norm(TREE)) == 13.0


def test_each_parameter_has_its_norm_by_path() -> None:
    assert {name: float(norm) for name, norm in norms_per_param(TREE).items()} == {
        "a/w": 5.0,
        "b": 12.0,
    }


def test_an_empty_tree_has_length_0() -> None:
    assert (float(global_norm({})), norms_per_param({})) == (0.0, {})


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_small_dtypes_neither_overflow_nor_lose_small_entries(dtype: jnp.dtype) -> None:
    ones = {"a": jnp.ones(10_000, dtype)}
    assert float(global_norm(ones)) == 100.0
    large = {"a": jnp.full(4, 3e4, dtype)}
    expected = 2 * float(jnp.asarray(3e4, dtype))
    assert float(global_norm(large)) == pytest.approx(expected, rel=1e-6)
    assert global_norm(large).dtype == norms_per_param(large)["a"].dtype == jnp.float32


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_bad_entry_makes_the_norm_bad(bad: float) -> None:
    assert not np.isfinite(float(global_norm({"a": jnp.array([1.0, bad]), "b": jnp.ones(3)})))


def test_complex_entries_count_by_their_size() -> None:
    assert float(global_norm({"a": jnp.array([3.0 + 4.0j])})) == 5.0


def test_sharded_parameters_have_the_same_norm() -> None:
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    values = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    spread = jax.device_put(values, jax.NamedSharding(mesh, jax.P("fsdp")))
    norm = float(jax.jit(global_norm)({"a": spread}))
    assert norm == pytest.approx(np.linalg.norm(values), rel=1e-6)
