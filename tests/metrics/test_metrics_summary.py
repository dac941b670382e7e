"""Does the table of parameters name and count all of them?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtrainer.metrics import parameter_table

PARAMS = {
    "dense": {"kernel": np.zeros((40, 50), np.float32), "bias": np.zeros(50, jnp.bfloat16)},
    "scale": np.zeros((), np.float32),
}


def rows(table: str) -> dict[str, list[str]]:
    """Returns the cells of each line by the first one."""
    lines = [line.split() for line in table.splitlines() if line.strip()]
    return {cells[0]: cells[1:] for cells in lines}


def test_every_parameter_has_a_line_with_shape_dtype_and_size() -> None:
    table = rows(parameter_table(PARAMS))
    assert table["dense/kernel"] == ["40×50", "float32", "whole", "2,000", "8,000"]
    assert table["dense/bias"] == ["50", "bfloat16", "whole", "50", "100"]
    assert table["scale"] == ["scalar", "float32", "whole", "1", "4"]


def test_the_last_line_is_the_total() -> None:
    assert rows(parameter_table(PARAMS))["total"] == ["2,051", "8,104"]


def test_shapes_are_enough() -> None:
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, PARAMS))
    assert parameter_table(shapes) == parameter_table(PARAMS)


@pytest.mark.parametrize(
    ("spec", "shown"), [(jax.P("fsdp"), "fsdp"), (jax.P(None, "tp"), "tp"), (jax.P(), "whole")]
)
def test_the_partition_is_shown(spec: jax.P, shown: str) -> None:
    kinds = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"), axis_types=kinds)
    kernel = jax.device_put(np.zeros((8, 2), np.float32), jax.NamedSharding(mesh, spec))
    assert rows(parameter_table({"kernel": kernel}))["kernel"][2] == shown


def test_two_axes_are_both_shown() -> None:
    kinds = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"), axis_types=kinds)
    sharding = jax.NamedSharding(mesh, jax.P("fsdp", "tp"))
    kernel = jax.device_put(np.zeros((8, 2), np.float32), sharding)
    assert "fsdp, tp" in parameter_table({"kernel": kernel})


def test_no_parameters_give_a_table_of_nothing() -> None:
    assert rows(parameter_table({}))["total"] == ["0", "0"]


def test_a_long_path_is_not_cut() -> None:
    path = "/".join(f"module_with_a_long_name_{index}" for index in range(6))
    table = parameter_table({path: np.zeros(3)})
    lines = table.splitlines()
    width = next(line.index("shape") for line in lines if "shape" in line)
    assert path in "".join(line[:width].strip() for line in lines)
    assert max(len(line) for line in table.splitlines()) <= 120
