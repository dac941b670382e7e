"""Does the table of parameters name and count all of them?"""

import re

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
    lines = [re.split(r"\s{2,}", line.strip()) for line in table.splitlines() if line.strip()]
    return {cells[0]: cells[1:] for cells in lines}


def laid_out(spec: jax.P, shape: tuple[int, ...] = (8, 2)) -> jax.Array:
    """Returns float32 zeros on a mesh of 4 x 2 devices."""
    kinds = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"), axis_types=kinds)
    return jax.device_put(np.zeros(shape, np.float32), jax.NamedSharding(mesh, spec))


def test_every_parameter_has_a_line_with_shape_dtype_and_size() -> None:
    table = rows(parameter_table(PARAMS))
    unknown = ["–", "–"]
    assert table["dense/kernel"] == ["40×50", "float32", "whole", "2,000", *["8,000"] * 2, *unknown]
    assert table["dense/bias"] == ["50", "bfloat16", "whole", "50", "100", "100", *unknown]
    assert table["scale"] == ["scalar", "float32", "whole", "1", "4", "4", *unknown]


def test_the_last_line_is_the_total() -> None:
    assert rows(parameter_table(PARAMS))["total"] == ["2,051", "8,104", "8,104", "–", "–"]


def test_shapes_are_enough() -> None:
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, PARAMS))
    assert parameter_table(shapes) == parameter_table(PARAMS)


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        (jax.P("fsdp"), "fsdp"),
        (jax.P(None, "tp"), "·, tp"),
        (jax.P("fsdp", "tp"), "fsdp, tp"),
        (jax.P(("fsdp", "tp")), "fsdp+tp"),
        (jax.P(None), "whole"),
        (jax.P(), "whole"),
    ],
)
def test_the_partition_is_shown_by_dimension(spec: jax.P, shown: str) -> None:
    assert rows(parameter_table({"kernel": laid_out(spec)}))["kernel"][2] == shown


def test_the_bytes_of_one_device_are_those_it_holds() -> None:
    params = {"split": laid_out(jax.P("fsdp", "tp")), "whole": laid_out(jax.P())}
    table = rows(parameter_table(params))
    assert table["split"][4:6] == ["64", "8"]
    assert table["whole"][4:6] == ["64", "64"]
    assert table["total"][1:3] == ["128", "72"]


def test_decayed_and_frozen_parameters_are_told_and_counted() -> None:
    decayed = {"dense": {"kernel": True, "bias": False}, "scale": False}
    frozen = {"dense": {"kernel": False, "bias": True}, "scale": True}
    table = rows(parameter_table(PARAMS, decayed, frozen))
    assert table["dense/kernel"][6:] == ["yes", "no"]
    assert table["dense/bias"][6:] == ["no", "yes"]
    assert table["total"][3:] == ["1 yes", "2 yes"]


def test_an_array_without_elements_has_no_bytes_on_any_device() -> None:
    assert rows(parameter_table({"empty": laid_out(jax.P(), (0, 2))}))["empty"][3:6] == ["0"] * 3


def test_no_parameters_give_a_table_of_nothing() -> None:
    assert rows(parameter_table({}))["total"] == ["0", "0", "0", "–", "–"]


def test_a_long_path_is_not_cut() -> None:
    path = "/".join(f"module_with_a_long_name_{index}" for index in range(6))
    table = parameter_table({path: np.zeros(3)})
    lines = table.splitlines()
    width = next(line.index("shape") for line in lines if "shape" in line)
    assert path in "".join(line[:width].strip() for line in lines)
    assert max(len(line) for line in table.splitlines()) <= 120


def test_large_numbers_stay_on_one_line_beside_a_long_path() -> None:
    path = "transformer/encoder/block_12/self_attention/query_key_value/kernel"
    shapes = {path: jax.ShapeDtypeStruct((128256, 3, 64, 128), "float32")}
    assert parameter_table(shapes).count("12,608,077,824") == 4


def test_in_a_notebook_it_is_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    text = parameter_table(PARAMS)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert parameter_table(PARAMS) == text
