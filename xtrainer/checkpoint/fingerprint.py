"""Is an array what it was? Two sums over its bits, equal on every mesh and in every layout.

Each element counts with an odd weight that follows from its place, modulo 2**32 (a multilinear
universal hash: Carter and Wegman, 1979). Sums of integers do not depend on their order, so the
fingerprint of an array is that of the whole, however it is divided; an odd weight has an inverse,
so that a change of one element is always seen. The weight is that of the block of 2**18 elements
times that within the block: a processor then does one multiplication for each sum.
"""

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xtrainer.checkpoint.shards import shards_of
from xtrainer.tree import flatten_with_paths, num_bytes
from xtrainer.types import PyTree

_BLOCK = 2**18
_OF_BLOCKS = ((0x9E3779B1, 0), (0x85EBCA77, 0x27220A95))
_WITHIN = ((0xC2B2AE3D, 0), (0x27D4EB2F, 0x165667B1))
"""Factors and addends of the weights of both sums: primes of xxHash32."""
_LARGE_BYTES = 2**20
"""From this size on several leaves are read at a time."""
_READERS = 4

Pending = dict[str, Any]
"""By path: two numbers, ``uint32[2]``, perhaps still being computed; or what computes them."""


def start_fingerprints(state: PyTree, copy: PyTree = None) -> Pending:
    """Begins to compute the fingerprint of each leaf; the state may be donated afterwards.

    Args:
        state: The leaves. Those in the memory of this machine are read at once, those on
            accelerators by a program that runs after the step.
        copy: The same state, of which some leaves are copies that stay as they are: theirs are left
            for :func:`finish_fingerprints`, since they would hold up the next step.
    """
    leaves = flatten_with_paths(state)
    left: Pending = {}
    for path, leaf in flatten_with_paths(copy).items() if copy is not None else ():
        if leaf is not leaves[path] and _is_near(leaf):
            left[path] = functools.partial(_on_host, leaf)
    now = {path: leaf for path, leaf in leaves.items() if path not in left}
    near = {path: leaf for path, leaf in now.items() if _is_near(leaf)}
    far = {path: _on_device(leaf) for path, leaf in now.items() if path not in near}
    if num_bytes(list(near.values())) < _LARGE_BYTES:
        return {**{path: _on_host(leaf) for path, leaf in near.items()}, **far, **left}
    with ThreadPoolExecutor(_READERS, thread_name_prefix="fingerprint") as readers:
        found = dict(zip(near, readers.map(_on_host, near.values()), strict=True))
    return {**found, **far, **left}


def finish_fingerprints(pending: Mapping[str, Any]) -> dict[str, str]:
    """Returns fingerprints as text, 16 hexadecimal digits each; waits for them.

    Example:
        >>> finish_fingerprints(start_fingerprints({"w": jnp.ones(3)}))
        {'w': 'e380000065800000'}
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
            value = finish_fingerprints({"": _on_host(part)})[""]
            device = next(iter(part.devices()))
            held.setdefault(region, {}).setdefault(value, []).append(str(device))
        for region, values in held.items():
            if len(values) > 1:
                groups = " and ".join(", ".join(devices) for devices in values.values())
                problems.append(f"{path}{region if leaf.ndim else ''}: {groups} hold other values")
    return problems


def _on_host(leaf: jax.Array) -> list[int]:
    bits, sums = _host_bits(leaf), [0, 0]
    products = np.empty(_BLOCK, np.uint32)
    for start in range(0, bits.size, _BLOCK):
        words = bits[start : start + _BLOCK].astype(np.uint32, copy=False)
        block = start % 2**32 // _BLOCK
        for i, within in enumerate(_weights_within()):
            np.multiply(words, within[: words.size], out=products[: words.size])
            part = int(products[: words.size].sum(dtype=np.uint32))
            factor, addend = _OF_BLOCKS[i]
            sums[i] = (sums[i] + part * (block * factor + addend | 1)) % 2**32
    return sums


@functools.cache
def _weights_within() -> tuple[np.ndarray, ...]:
    places = np.arange(_BLOCK, dtype=np.uint64)
    return tuple(((places * f + a) | 1).astype(np.uint32) for f, a in _WITHIN)


@jax.jit
def _on_device(leaf: jax.Array) -> jax.Array:
    words = _device_words(leaf)
    place = _places(words.shape)
    block, within = place // np.uint32(_BLOCK), place % np.uint32(_BLOCK)
    sums = []
    for of_block, in_block in zip(_OF_BLOCKS, _WITHIN, strict=True):
        weight = _odd(block, of_block) * _odd(within, in_block)
        sums.append((words * weight).sum(dtype=np.uint32))
    return jnp.stack(sums)


def _odd(place: jax.Array, weight: tuple[int, int]) -> jax.Array:
    factor, addend = weight
    return (place * np.uint32(factor) + np.uint32(addend)) | np.uint32(1)


def _places(shape: tuple[int, ...]) -> jax.Array:
    """Returns the number of each element in the order of rows, modulo 2**32."""
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


def _host_bits(leaf: jax.Array) -> np.ndarray:
    """Returns the bits of a leaf in a row, in words of up to 32; mostly without a copy."""
    values = np.ascontiguousarray(np.asarray(_numbers(leaf)))
    to_words = _via_integer(values.dtype)
    if to_words is not None:
        return to_words(values).reshape(-1)
    return values.reshape(-1).view(f"uint{8 * min(values.dtype.itemsize, 4)}")


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
