import json
from collections import OrderedDict, namedtuple
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtrainer.data import (
    Batch,
    batch_signature,
    batch_spec,
    decode_spec,
    describe_mismatch,
    encode_spec,
    get_input,
    num_rows,
)
from xtrainer.errors import BatchError

Pair = namedtuple("Pair", "inputs targets")


def test_num_rows_of_arrays_and_of_shapes():
    batch = Batch(inputs={"a": np.zeros((4, 2)), "b": jnp.zeros(4)}, targets=[np.zeros((4, 1))])
    assert num_rows(batch) == num_rows(batch_spec(batch)) == 4


def test_num_rows_of_different_leading_axes_names_the_leaves():
    batch = {"inputs": np.zeros((4, 2)), "targets": np.zeros(3)}
    with pytest.raises(BatchError, match=r"inputs: \(4, 2\), targets: \(3,\)"):
        num_rows(batch)


@pytest.mark.parametrize("leaf", [np.float32(1.0), 3, "text", jax.ShapeDtypeStruct((), "int32")])
def test_num_rows_of_a_leaf_without_axis_names_it(leaf):
    with pytest.raises(BatchError, match=r"without a leading batch axis .*weight: \(\)"):
        num_rows({"inputs": np.zeros((4, 2)), "weight": leaf})


@pytest.mark.parametrize("batch", [{}, None, (), Batch(inputs=None)])
def test_num_rows_without_leaves_is_an_error(batch):
    with pytest.raises(BatchError, match="without arrays"):
        num_rows(batch)


def test_signature_is_hashable_and_forgets_the_rows_only():
    def make(rows, width=2, dtype=np.float32):
        return {"x": np.zeros((rows, width), dtype), "y": None}

    base = batch_signature(make(4))
    assert hash(base) == hash(batch_signature(make(7)))
    assert base == batch_signature(batch_spec(make(9)))
    assert base == batch_signature(make(4, dtype=np.float64))  # the same on the device
    assert base != batch_signature(make(4, width=3))
    assert base != batch_signature(make(4, dtype=np.int32))
    assert base != batch_signature({"x": make(4)["x"], "y": np.zeros(4)})


def test_mismatch_is_none_where_only_rows_differ():
    assert describe_mismatch(np.zeros((4, 2)), np.zeros((5, 2))) is None


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"x": np.zeros((4, 3))}, r"^x: found float32\[rows, 3\], expected float32\[rows, 2\]$"),
        ({"x": np.zeros((4, 2), int)}, r"^x: found int32\[rows, 2\], expected float32\[rows, 2\]$"),
        ({"z": np.zeros((4, 2))}, r"x: missing; z: not expected; found the leaves \['z'\]"),
        ({"x": [np.zeros((4, 2))]}, "x: missing; x/0: not expected"),
    ],
)
def test_mismatch_names_leaf_found_and_expected(found, expected):
    import re

    text = describe_mismatch({"x": np.zeros((4, 2))}, found)
    assert text is not None and re.search(expected, text)


def test_mismatch_of_containers_alone_is_told():
    text = describe_mismatch((np.zeros(2),), [np.zeros(2)])
    assert text is not None and "found the containers" in text


def test_batch_spec_keeps_structure_and_device_dtypes():
    spec = batch_spec(Batch(inputs=np.zeros((2, 3)), targets=np.zeros(2, np.int64)))
    assert isinstance(spec, Batch)
    assert spec.inputs == jax.ShapeDtypeStruct((2, 3), jnp.float32)
    assert spec.targets == jax.ShapeDtypeStruct((2,), jnp.int32)
    assert spec.mask is None


_DTYPES = ["float32", "int32", "bool", "bfloat16", "uint8", "float8_e4m3fn", "int4"]
_LEAF = st.builds(
    jax.ShapeDtypeStruct,
    st.lists(st.integers(0, 5), max_size=3).map(tuple),
    st.sampled_from(_DTYPES).map(jnp.dtype),
)
_SPEC = st.recursive(
    _LEAF | st.none(),
    lambda node: (
        st.lists(node, max_size=3)
        | st.lists(node, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), node, max_size=3)
        | st.builds(Batch, inputs=node, targets=node, mask=node)
    ),
    max_leaves=6,
)


@given(_SPEC)
def test_spec_round_trips_through_json(spec):
    back = decode_spec(json.loads(json.dumps(encode_spec(spec))))
    assert back == spec and jax.tree.structure(back) == jax.tree.structure(spec)


def test_spec_with_integer_keys_round_trips():
    spec = {1: jax.ShapeDtypeStruct((2,), jnp.dtype("int32")), 0: None}
    assert decode_spec(json.loads(json.dumps(encode_spec(spec)))) == spec


@pytest.mark.parametrize(
    ("batch", "name"),
    [
        (Pair(np.zeros(2), None), "Pair"),
        ({"a": OrderedDict(x=np.zeros(2))}, "OrderedDict"),
        ({"a": jax.random.split(jax.random.key(0), 2)}, "key<fry>"),
    ],
)
def test_other_containers_are_unsupported_by_name(batch, name):
    data = encode_spec(batch_spec(batch))
    assert data == {"unsupported": name}
    with pytest.raises(BatchError, match=rf"{name}.*Pass exmp_input="):
        decode_spec(json.loads(json.dumps(data)))


@pytest.mark.parametrize(
    "data",
    [
        None,
        3,
        [],
        {},
        {"kind": "os.system"},
        {"kind": "array", "shape": [-1], "dtype": "int32"},
        {"kind": "array", "shape": [2.5], "dtype": "int32"},
        {"kind": "array", "shape": [2], "dtype": "O,i4"},
        {"kind": "array", "shape": [2], "dtype": "nonsense"},
        {"kind": "array", "shape": [2], "dtype": 4},
        {"kind": "array", "shape": [2], "dtype": "object"},
        {"kind": "dict", "items": [["a"]]},
        {"kind": "dict", "items": [[[1], {"kind": "none"}]]},
        {"kind": "Batch", "items": []},
    ],
)
def test_malformed_spec_is_a_batch_error(data):
    with pytest.raises(BatchError, match="exmp_input="):
        decode_spec(data)


def test_get_input_of_mapping_and_of_attribute():
    assert get_input({"inputs": 1}) == get_input(Batch(inputs=1)) == get_input(Pair(1, 2)) == 1
    assert get_input(SimpleNamespace(inputs=1)) == 1


@pytest.mark.parametrize("batch", [{"tokens": 1}, (1, 2), np.zeros(3)])
def test_get_input_without_inputs_says_what_to_override(batch):
    with pytest.raises(BatchError, match="Override batch_to_input"):
        get_input(batch)
