"""Is a change of an array seen, wherever it is and however the array is divided?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtrainer.checkpoint import fingerprint
from xtrainer.checkpoint.fingerprint import differing, differing_replicas, fingerprints
from xtrainer.checkpoint.shards import join_shards, shards_of

KINDS = (
    "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "int32", "int8", "uint8",
    "int4", "bool", "uint32", "uint16", "complex64",
)  # fmt: skip


def one_of(kind: str) -> jax.Array:
    values = jax.random.normal(jax.random.key(3), (5, 6, 3)) * 3
    return values.astype(kind)


def on_device(tree):
    """The fingerprints by the program that arrays on accelerators are given to."""
    started = {path: fingerprint._on_device(leaf) for path, leaf in tree.items()}
    return fingerprint.finish_fingerprints(started)


@pytest.mark.parametrize("kind", KINDS)
def test_host_and_device_find_the_same(kind):
    tree = {"x": one_of(kind)}
    assert fingerprints(tree) == on_device(tree)


def test_scalars_and_keys_have_one_as_well():
    tree = {"step": jnp.int32(7), "rng": jax.random.split(jax.random.key(1, impl="rbg"), 3)}
    assert fingerprints(tree) == on_device(tree)
    other = {**tree, "rng": jax.random.split(jax.random.key(2, impl="rbg"), 3)}
    assert differing(fingerprints(tree), other) == ["rng"]


@pytest.mark.parametrize("size", [4, 2**18 - 1, 2**18, 2**18 + 3])
def test_it_is_what_the_formula_says(size):
    values = np.random.default_rng(0).normal(size=size).astype(np.float32)
    words = [int(word) for word in values.view(np.uint32)]
    sums = []
    for (f, a), (g, b) in zip(fingerprint._OF_BLOCKS, fingerprint._WITHIN, strict=True):
        weights = [(i // 2**18 * f + a | 1) * (i % 2**18 * g + b | 1) for i in range(size)]
        sums.append(sum(w * x for w, x in zip(weights, words, strict=True)) % 2**32)
    expected = {"w": f"{sums[0]:08x}{sums[1]:08x}"}
    assert fingerprints({"w": jnp.asarray(values)}) == expected
    assert on_device({"w": jnp.asarray(values)}) == expected


@given(bit=st.integers(0, 90 * 32 - 1))
@settings(max_examples=60, deadline=None)
def test_every_single_bit_counts(bit):
    values = np.asarray(one_of("float32")).copy()
    before = fingerprints({"w": jnp.asarray(values)})
    values.view(np.uint8).reshape(-1)[bit // 8] ^= 1 << bit % 8
    assert differing(before, {"w": jnp.asarray(values)}) == ["w"]


@given(seed=st.integers(0, 2**20))
@settings(max_examples=30, deadline=None)
def test_two_elements_that_change_places_are_seen(seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=64).astype(np.float32)
    i, j = rng.choice(64, 2, replace=False)
    swapped = values.copy()
    swapped[[i, j]] = swapped[[j, i]]
    assert fingerprints({"w": jnp.asarray(values)}) != fingerprints({"w": jnp.asarray(swapped)})


@pytest.mark.parametrize("sizes", [(1,), (2,), (8,), (2, 4)])
def test_a_mesh_changes_nothing(kit, sizes):
    state = kit.state(kit.mesh(*sizes))
    expected = fingerprints(kit.state(kit.mesh(4)))
    assert fingerprints(state) == expected
    leaves = fingerprint.flatten_with_paths(state)
    assert on_device(leaves) == expected


def test_arrays_of_accelerators_are_computed_there(monkeypatch):
    state = {"w": jnp.ones((3, 2**16))}
    expected = fingerprints(state)
    monkeypatch.setattr(fingerprint, "_is_near", lambda leaf: False)
    monkeypatch.setattr(fingerprint, "_on_host", lambda leaf: 1 / 0)
    assert fingerprints(state) == expected


def test_large_states_are_read_by_several_threads():
    state = {f"w{i}": jnp.full(2**16, float(i)) for i in range(9)}
    alone = {path: fingerprints({path: leaf})[path] for path, leaf in state.items()}
    assert fingerprints(state) == alone


def test_replicas_that_differ_are_named(kit):
    mesh = kit.mesh(2, 4)
    state = {"params": kit.state(mesh).params}
    assert differing_replicas(state) == []
    leaf = state["params"]["dense"]["kernel"]
    parts = [part for _, part in shards_of(leaf)]
    parts[5] = parts[5].at[0, 0].add(1.0)
    state["params"]["dense"]["kernel"] = join_shards(leaf, parts)
    (problem,) = differing_replicas(state)
    assert problem.startswith("params/dense/kernel")
    assert str(next(iter(parts[5].devices()))) in problem


def test_of_leaves_that_were_copied_the_copy_is_read_later():
    state = {"small": jnp.arange(4.0), "large": jnp.ones(2**16)}
    copy = {**state, "large": state["large"] + 0}
    expected = fingerprints(state)
    pending = fingerprint.start_fingerprints(state, copy)
    assert callable(pending["large"]) and not callable(pending["small"])
    state["large"].delete()
    state["small"].delete()
    assert fingerprint.finish_fingerprints(pending) == expected
