"""Is an array what it was? Two sums over its bits, equal on every mesh and in every layout.

Each element counts with an odd weight that follows from its place, modulo 2**32 (a multilinear
universal hash: Carter and Wegman, 1979). Sums of integers do not depend on their order, so the
fingerprint of an array is that of the whole, however it is divided; an odd weight has an inverse,
so that a change of one element is always seen.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xtrainer.checkpoint.shards import shards_of
from xtrainer.tree import flatten_with_paths, num_bytes
from xtrainer.types import PyTree

_WEIGHTS = ((0x9E3779B1, 0), (0x85EBCA77, 0x27220A95))
"""Factor and addend of the weights of both sums: primes of xxHash32."""
_HOST_BYTES = 2**20
"""Up to this size NumPy is done sooner than a program for the device is compiled."""

Pending = dict[str, Any]
"""By path: two numbers, ``uint32[2]``, perhaps still being computed; or what computes them."""


def start_fingerprints(state: PyTree, copy: PyTree = None) -> Pending:
    """Begins to compute the fingerprint of each leaf; the state may be donated afterwards.

    Args:
        state: The leaves.
        copy: The same state, of which some leaves are copies that stay as they are: theirs are left
            for :func:`finish_fingerprints`, since on a CPU they would hold up the next step. Of one
            process only: several must compute in the same order.
    """
    if copy is not None and jax.process_count() == 1:
        taken, left = flatten_with_paths(copy), {}
        for path, leaf in flatten_with_paths(state).items():
            if taken[path] is not leaf:
                left[path] = functools.partial(_on_device, taken.pop(path))
        return {**_start(taken), **left}
    return _start(flatten_with_paths(state))


def _start(leaves: Mapping[str, jax.Array]) -> Pending:
    on_host = num_bytes(list(leaves.values())) <= _HOST_BYTES and all(
        map(_is_near, leaves.values())
    )
    if on_host:
        return {path: _sums_of(_host_words(leaf), np) for path, leaf in leaves.items()}
    return _on_devices(leaves)


def finish_fingerprints(pending: Mapping[str, Any]) -> dict[str, str]:
    """Returns fingerprints as text, 16 hexadecimal digits each; waits for them.

    Example:
        >>> finish_fingerprints(start_fingerprints({"w": jnp.ones(3)}))
        {'w': 'b5800000ad800000'}
    """
    started = {path: value() if callable(value) else value for path, value in pending.items()}
    values = jax.device_get(started)
    return {path: "".join(f"{int(part):08x}" for part in value) for path, value in values.items()}


def fingerprints(state: PyTree) -> dict[str, str]:
    """Returns the fingerprint of each leaf by its path."""
    return finish_fingerprints(start_fingerprints(state))


def differing(saved: Mapping[str, str], state: PyTree) -> list[str]:
    """Returns the paths of a state whose values are not those of the saved fingerprints."""
    found = fingerprints(state)
    return [path for path, value in found.items() if saved.get(path, value) != value]


def differing_replicas(state: PyTree) -> list[str]:
    """Compares what the devices of this process hold of the same part of each array.

    They are written by the same program and can differ only where a device has computed wrongly, or
    its memory has lost something.

    Returns:
        A sentence for each leaf whose replicas differ.
    """
    problems = []
    for path, leaf in flatten_with_paths(state).items():
        held: dict[str, dict[str, list[str]]] = {}
        for region, part in shards_of(leaf):
            value = finish_fingerprints({"": _sums_of(_host_words(part), np)})[""]
            device = next(iter(part.devices()))
            held.setdefault(region, {}).setdefault(value, []).append(str(device))
        for region, values in held.items():
            if len(values) > 1:
                groups = " and ".join(", ".join(devices) for devices in values.values())
                problems.append(f"{path}{region if leaf.ndim else ''}: {groups} hold other values")
    return problems


def _on_devices(leaves: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Computes a leaf after the other: leaves of one shape share a program, compiled once."""
    return {path: _on_device(leaf) for path, leaf in leaves.items()}


@jax.jit
def _on_device(leaf: jax.Array) -> jax.Array:
    return jnp.stack(_sums_of(_device_words(leaf), jnp))


def _sums_of(words: Any, xp: Any) -> Any:
    """Returns both sums of an array of ``uint32`` in any shape."""
    place = _places(words.shape, xp)
    sums = []
    for factor, addend in _WEIGHTS:
        weight = (place * np.uint32(factor) + np.uint32(addend)) | np.uint32(1)
        sums.append((words * weight).sum(dtype=np.uint32))
    return sums


def _places(shape: tuple[int, ...], xp: Any) -> Any:
    """Returns the number of each element in the order of rows, modulo 2**32."""
    if xp is np:
        return np.arange(math.prod(shape), dtype=np.uint64).astype(np.uint32).reshape(shape)
    place = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        place = place + along * np.uint32(stride % 2**32)
        stride *= shape[axis]
    return place


def _is_near(leaf: jax.Array) -> bool:
    on_cpu = next(iter(leaf.sharding.device_set)).platform == "cpu"
    return on_cpu and leaf.is_fully_addressable


def _numbers(leaf: Any) -> Any:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def _host_words(leaf: jax.Array) -> np.ndarray:
    values = np.ascontiguousarray(np.asarray(_numbers(leaf)))
    to_words = _via_integer(values.dtype)
    if to_words is not None:
        return to_words(values)
    size = values.dtype.itemsize
    bits = values.reshape(-1).view(f"uint{8 * min(size, 4)}")
    return bits.reshape(*leaf.shape, -1).astype(np.uint32) if size > 4 else bits.astype(np.uint32)


def _device_words(leaf: jax.Array) -> jax.Array:
    leaf = _numbers(leaf)
    to_words = _via_integer(leaf.dtype)
    if to_words is not None:
        return to_words(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        leaf = jnp.stack([leaf.real, leaf.imag], axis=-1)
    size = np.dtype(leaf.dtype).itemsize
    bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * min(size, 4)}")
    return bits.astype(jnp.uint32)


def _via_integer(dtype: Any) -> Callable[[Any], Any] | None:
    """Returns how values of less than a byte become words; None for all others."""
    name = str(dtype)
    if name == "bool" or name in ("int4", "uint4", "int2", "uint2"):
        return lambda values: values.astype(np.int32).astype(np.uint32)
    if name.startswith("float4"):
        return lambda values: values.astype(np.float32).view(np.uint32)
    return None
