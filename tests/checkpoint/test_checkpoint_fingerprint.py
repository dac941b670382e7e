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
    """The fingerprints of the program that large states are given to."""
    return fingerprint.finish_fingerprints(fingerprint._on_devices(tree))


@pytest.mark.parametrize("kind", KINDS)
def test_host_and_device_find_the_same(kind):
    tree = {"x": one_of(kind)}
    assert fingerprints(tree) == on_device(tree)


def test_scalars_and_keys_have_one_as_well():
    tree = {"step": jnp.int32(7), "rng": jax.random.split(jax.random.key(1, impl="rbg"), 3)}
    assert fingerprints(tree) == on_device(tree)
    other = {**tree, "rng": jax.random.split(jax.random.key(2, impl="rbg"), 3)}
    assert differing(fingerprints(tree), other) == ["rng"]


def test_it_is_what_the_formula_says():
    values = np.array([[1.5, -2.0], [0.0, 3.25]], np.float32)
    words = values.view(np.uint32).reshape(-1).astype(object)
    sums = [
        sum(int(word) * ((i * factor + addend) % 2**32 | 1) for i, word in enumerate(words)) % 2**32
        for factor, addend in ((0x9E3779B1, 0), (0x85EBCA77, 0x27220A95))
    ]
    assert fingerprints({"w": jnp.asarray(values)}) == {"w": f"{sums[0]:08x}{sums[1]:08x}"}


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


def test_large_states_are_computed_on_the_devices(monkeypatch):
    asked = []
    monkeypatch.setattr(
        fingerprint, "_on_devices", lambda leaves: asked.append(leaves) or {"w": np.zeros(2)}
    )
    fingerprints({"w": jnp.zeros(2**18)})
    assert not asked
    fingerprints({"w": jnp.zeros(2**18 + 1)})
    assert len(asked) == 1


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


def test_of_leaves_that_were_copied_the_copy_is_read_later(monkeypatch):
    state = {"small": jnp.arange(4.0), "large": jnp.ones(2**16)}
    copy = {**state, "large": state["large"] + 0}
    expected = fingerprints(state)
    pending = fingerprint.start_fingerprints(state, copy)
    assert callable(pending["large"]) and not callable(pending["small"])
    state["large"].delete()
    state["small"].delete()
    assert fingerprint.finish_fingerprints(pending) == expected
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    whole = {"w": jnp.ones(2**16)}
    assert not any(
        map(callable, fingerprint.start_fingerprints(whole, {"w": whole["w"] + 0}).values())
    )
