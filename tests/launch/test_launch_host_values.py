"""Results on the host: what becomes NumPy, what stays, and which shared arrays are gathered."""

import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import xtrainer as xt
from xtrainer.errors import PeerError
from xtrainer.launch import host_values
from xtrainer.launch.host_values import host_tree


def test_arrays_of_any_layout_become_numpy():
    mesh = xt.build_mesh(xt.ParallelConfig(), jax.devices())
    spread = jax.device_put(np.arange(8.0), NamedSharding(mesh, P("dp")))
    found = host_tree({"a": spread, "b": [jnp.ones((), jnp.bfloat16)]}, "result")
    assert type(found["a"]) is np.ndarray and type(found["b"][0]) is np.ndarray
    np.testing.assert_array_equal(found["a"], np.arange(8.0))
    assert found["b"][0].dtype == jnp.bfloat16 and found["b"][0].shape == ()


def test_what_is_no_array_of_jax_stays():
    own = np.ones(2)
    value = {"n": 3, "text": "a", "none": None, "numpy": own}
    found = host_tree(value, "result")
    assert found == value and found["numpy"] is own


def test_typed_keys_become_their_data():
    np.testing.assert_array_equal(host_tree(jax.random.key(3), "result"), np.uint32([0, 3]))


def test_the_result_is_a_copy_that_the_array_does_not_share():
    array = jnp.ones(64)
    found = host_tree(array, "result")
    assert found.flags.writeable
    found[:] = 7
    assert float(array[0]) == 1.0


class Service:
    """The coordination service of a run of two, as process ``own`` sees it."""

    def __init__(self, texts: dict[int, Any]) -> None:
        self.values = {f"xtrainer/host_values/result/{i}": text for i, text in texts.items()}

    def key_value_set(self, key: str, text: str) -> None:
        self.values[key] = json.loads(text)

    def blocking_key_value_get(self, key: str, timeout_ms: int) -> str:
        if key not in self.values:
            raise jax.errors.JaxRuntimeError(f"DEADLINE_EXCEEDED after {timeout_ms} ms")
        return json.dumps(self.values[key])


A, B = {"['w']": [[4], "float32"]}, {"['v']": [[4], "float32"]}


def wanted(monkeypatch, own: int, spread: dict[str, Any], theirs: dict[int, Any]) -> bool:
    service = Service(theirs)
    monkeypatch.setattr(host_values, "coordination_client", lambda: service)
    monkeypatch.setattr(host_values, "runtime_process", lambda: own)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    found = host_values._is_wanted(spread, "result", 0.5)
    assert service.values[f"xtrainer/host_values/result/{own}"] == spread
    return found


@pytest.mark.parametrize(
    ("own", "spread", "theirs", "found"),
    [
        (0, {}, {}, True),  # waits for nobody
        (1, {}, {}, False),
        (0, A, {1: A}, True),
        (1, A, {0: A}, True),
        (1, A, {0: {}}, False),  # process 0 gathers nothing
    ],
)
def test_a_value_is_wanted_of_the_main_process_and_to_gather(
    monkeypatch, own, spread, theirs, found
):
    assert wanted(monkeypatch, own, spread, theirs) is found


@pytest.mark.parametrize(
    ("own", "spread", "theirs", "key"),
    [
        (0, A, {1: {}}, "'w'"),
        (0, A, {1: B}, "'v'.*'w'"),
        (1, B, {0: A}, "'v'.*'w'"),
        (0, A, {1: {"['w']": [[5], "float32"]}}, "'w'"),
    ],
)
def test_processes_that_do_not_hold_the_same_arrays_are_refused(
    monkeypatch, own, spread, theirs, key
):
    with pytest.raises(PeerError, match=f"differ at .*{key}.*Return these arrays from every"):
        wanted(monkeypatch, own, spread, theirs)


def test_a_process_that_does_not_come_is_named(monkeypatch):
    with pytest.raises(PeerError, match=r"Process 1 gave no result within 0\.5 s"):
        wanted(monkeypatch, 0, A, {})


@pytest.mark.parametrize(
    ("addressable", "replicated", "spread"),
    [(True, True, False), (True, False, False), (False, True, False), (False, False, True)],
)
def test_an_array_is_spread_where_each_process_holds_a_part(
    monkeypatch, addressable, replicated, spread
):
    array = SimpleNamespace(is_fully_addressable=addressable, is_fully_replicated=replicated)
    monkeypatch.setattr(host_values, "jax", SimpleNamespace(Array=SimpleNamespace))
    assert host_values._is_spread(array) is spread
