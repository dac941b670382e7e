"""Do peers and their bare loops do the same arithmetic? Only where a peer is installed."""

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

from benchmarks.catalog import PEERS, WORKLOADS
from benchmarks.measure import Row
from benchmarks.models import Task, gpt_task, leaves_task, mlp_task
from benchmarks.peers.peer import Course, Peer, Trained

pytestmark = pytest.mark.slow

EPSILON = 1e-4
"""Of Adam: steps of nearly nothing but rounding would be as long as others, and differ."""
TASKS = {
    "mlp": lambda: mlp_task(rows=8),
    "gpt": lambda: gpt_task(rows=8, length=8, layers=1, width=16, vocabulary=16),
    "leaves": lambda: leaves_task(10, rows=8),
}


@pytest.fixture(params=list(PEERS))
def peer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Peer:
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "jax")
    pytest.importorskip(request.param)
    with jax.numpy_rank_promotion("allow"):  # theirs to decide
        yield importlib.import_module(f"benchmarks.peers.{request.param}").PEER


def with_epsilon(task: Task, epsilon: float) -> Task:
    optimizer = optax.adam(task.rate, eps=epsilon)
    return Task(task.name, task.model, optimizer, task.batches, task.rate, epsilon)


def train(peer: Peer, task: Task, folder: Path, **settings: Any) -> Trained:
    # Keras adds epsilon to what is not yet corrected for its bias; next to none is the same.
    task = with_epsilon(task, 1e-20 if peer.name == "keras" else EPSILON)
    return peer.train(task, Course(steps=4, turns=3, folder=folder, **settings))


def assert_equal(trained: Trained, atol: float = 1e-5) -> None:
    pairs = trained.turns.pairs
    assert len(pairs.bare) == len(pairs.framework) == 1
    assert min(*pairs.bare, *pairs.framework) > 0
    assert jax.tree.structure(trained.params) == jax.tree.structure(trained.bare_params)
    for (path, own), bare in zip(
        jax.tree.leaves_with_path(trained.params), jax.tree.leaves(trained.bare_params), strict=True
    ):
        if "['key']['bias']" in jax.tree_util.keystr(path):
            continue  # attention does not depend on it: its gradient is nothing but rounding
        np.testing.assert_allclose(own, bare, atol=atol, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("name", list(TASKS))
def test_a_peer_ends_with_the_parameters_of_the_bare_loop(
    peer: Peer, name: str, tmp_path: Path
) -> None:
    assert_equal(train(peer, TASKS[name](), tmp_path))


def test_accumulation_ends_with_the_parameters_of_the_bare_scan(peer: Peer, tmp_path: Path) -> None:
    if "accumulate" in peer.missing:
        pytest.skip(peer.missing["accumulate"])
    # As many rows as devices in each micro-batch: some peers divide them.
    task = gpt_task(rows=2 * len(jax.devices()), length=8, layers=1, width=16, vocabulary=16)
    assert_equal(train(peer, task, tmp_path, pieces=2))


def test_all_devices_end_with_the_parameters_of_the_bare_loop(peer: Peer, tmp_path: Path) -> None:
    if "devices" in peer.missing:
        pytest.skip(peer.missing["devices"])
    assert len(jax.devices()) == 8
    assert_equal(train(peer, TASKS["gpt"](), tmp_path, all_devices=True))


def test_the_two_sides_would_be_told_apart(peer: Peer, tmp_path: Path) -> None:
    trained = train(peer, mlp_task(rows=8), tmp_path)
    shifted = jax.tree.map(lambda x: x + 1e-3, trained.bare_params)
    with pytest.raises(AssertionError):
        assert_equal(Trained(trained.turns, trained.params, shifted))


def test_an_evaluation_finds_what_the_bare_loop_finds(peer: Peer) -> None:
    if "evaluation" in peer.missing:
        pytest.skip(peer.missing["evaluation"])
    assert peer.evaluators is not None
    bare, own = peer.evaluators(mlp_task(rows=8))
    for length in (3, 5):
        (loss, accuracy), (own_loss, own_accuracy) = bare(length), own(length)
        assert own_loss == pytest.approx(loss, rel=1e-5)
        assert own_accuracy is None or own_accuracy == pytest.approx(accuracy, rel=1e-5)


def test_what_was_saved_is_read(peer: Peer, tmp_path: Path) -> None:
    if "checkpoint" in peer.missing:
        pytest.skip(peer.missing["checkpoint"])
    trained = train(peer, mlp_task(rows=8), tmp_path, saves=True)
    trained.turns.bare.make_room()
    trained.turns.bare.read()
    if trained.restore is not None:
        trained.restore()
    assert len(trained.turns.asked) >= 12


def test_a_workload_that_a_peer_does_not_have_gives_a_row(peer: Peer) -> None:
    from benchmarks.peers.measured import measure

    for workload, why in peer.missing.items():
        note = f"not available: {why}"
        assert measure(peer, workload, 1) == [Row(workload, "", who=peer.name, note=note)]


def test_models_in_torch_have_as_many_parameters() -> None:
    pytest.importorskip("torch")
    from benchmarks.peers.torch_models import make_model

    for make in TASKS.values():
        task = make()
        inputs = task.batches[0]["inputs"]
        shapes = jax.eval_shape(task.model.init, jax.random.key(0), inputs)["params"]
        ours = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        assert ours == sum(array.numel() for array in make_model(task).parameters())


def test_every_peer_of_the_catalog_has_an_adapter() -> None:
    for peer in PEERS:
        assert importlib.util.find_spec(f"benchmarks.peers.{peer}") is not None


def test_every_workload_is_measured_of_peers() -> None:
    from benchmarks.peers.measured import MEASURES

    assert set(MEASURES) == set(WORKLOADS)
