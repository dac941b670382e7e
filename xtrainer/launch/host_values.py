"""How does a result leave the devices? As NumPy arrays, gathered where processes share an array."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xtrainer.errors import PeerError
from xtrainer.launch.exchange import DEFAULT_TIMEOUT_S, coordination_client, runtime_process
from xtrainer.types import JSON, PyTree

_KEYS = "xtrainer/host_values"


def host_tree(value: PyTree, name: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> PyTree:
    """Returns a tree with NumPy arrays in place of JAX's; on other processes than 0 perhaps None.

    Every process of a run calls it, with its own value. An array of which each process holds a
    part is gathered, for which every process must give it at the same place of its tree. Typed
    random keys become their data; what is no array stays as it is.

    Args:
        value: Any pytree.
        name: What it is, for messages; used once in a run.
        timeout_s: How long to wait for the other processes, where there is something to gather.

    Raises:
        PeerError: If an array is to be gathered that not every process gives.

    Example:
        >>> host_tree({"epochs": 3, "w": jnp.ones(2)}, "result")
        {'epochs': 3, 'w': array([1., 1.], dtype=float32)}
    """
    named, tree = jax.tree_util.tree_flatten_with_path(value)
    leaves = [_plain(leaf) for _, leaf in named]
    spread: dict[str, JSON] = {
        jax.tree_util.keystr(path): [list(leaf.shape), str(leaf.dtype)]
        for (path, _), leaf in zip(named, leaves, strict=True)
        if _is_spread(leaf)
    }
    if not _is_wanted(spread, name, timeout_s):
        return None
    return tree.unflatten([_host_leaf(leaf) for leaf in leaves])


def _plain(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return leaf


def _is_spread(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not (
        leaf.is_fully_addressable or leaf.is_fully_replicated
    )


def _host_leaf(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array):
        return leaf
    if _is_spread(leaf):
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.array(leaf)  # a copy: on CPU the array's own memory may be given to another


def _is_wanted(spread: dict[str, JSON], name: str, timeout_s: float) -> bool:
    """Says whether this process's value is needed, as the main one or to gather from it."""
    client, own = coordination_client(), runtime_process()
    if client is None or jax.process_count() == 1:
        return True
    client.key_value_set(f"{_KEYS}/{name}/{own}", json.dumps(spread))
    if not spread or (own and not _read(client, name, 0, timeout_s)):
        return own == 0  # process 0 has nothing to gather
    # A collective that not every process enters would never end, so all look before.
    said = [_read(client, name, i, timeout_s) for i in range(jax.process_count())]
    others = [i for i, theirs in enumerate(said) if theirs != said[0]]
    if others:
        keys = sorted(said[0].keys() ^ said[others[0]].keys()) or sorted(said[0])
        keys = [key or "the value itself" for key in keys]
        raise PeerError(
            f"The {name} of process 0 and that of process {others[0]} do not hold the same arrays "
            f"over several processes: they differ at {', '.join(keys[:5])}. Return these arrays "
            "from every process, at the same place; or only what one process holds."
        )
    return True


def _read(client: Any, name: str, process: int, timeout_s: float) -> JSON:
    try:
        text = client.blocking_key_value_get(f"{_KEYS}/{name}/{process}", int(timeout_s * 1000))
    except jax.errors.JaxRuntimeError as error:
        raise PeerError(
            f"Process {process} gave no {name} within {timeout_s:g} s, and it holds a part of the "
            "arrays of this one. Let the processes end together, or return no shared arrays."
        ) from error
    return json.loads(text)
