"""Do peers and their bare loops do the same arithmetic? Only where a peer is installed."""

import importlib
import importlib.util
import os

import jax
import numpy as np
import pytest

from benchmarks.catalog import PEERS
from benchmarks.measure import Pairs

pytestmark = pytest.mark.slow


def assert_paired(pairs: Pairs, repeats: int) -> None:
    assert len(pairs.bare) == len(pairs.framework) == repeats
    assert min(*pairs.bare, *pairs.framework) > 0


@pytest.mark.parametrize("peer", ["keras", "tunix", "kauldron", "levanter"])
def test_a_peer_on_jax_ends_with_the_parameters_of_the_bare_loop(
    peer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "jax")
    pytest.importorskip(peer)
    adapter = importlib.import_module(f"benchmarks.peers.{peer}")
    with jax.numpy_rank_promotion("allow"):  # theirs to decide
        pairs, model, bare = adapter.run(repeats=1, steps=20)
    assert_paired(pairs, 1)
    atol = 2e-4 if peer == "keras" else 1e-5  # Keras adds Adam's epsilon in another place
    for name, layer in adapter.params_of(model).items():
        for part, value in layer.items():
            np.testing.assert_allclose(value, np.asarray(bare.params[name][part]), atol=atol)


@pytest.mark.parametrize("peer", ["lightning", "accelerate"])
def test_a_peer_on_torch_ends_with_the_parameters_of_the_bare_loop(peer: str) -> None:
    pytest.importorskip(peer)
    if peer == "lightning":
        from benchmarks.peers import lightning as adapter
    else:
        from benchmarks.peers import accelerate as adapter
    pairs, trained, bare = adapter.run(repeats=2, steps=20)
    assert_paired(pairs, 2)
    model = trained.net if peer == "lightning" else trained.model
    for ours, theirs in zip(model.parameters(), bare.model.parameters(), strict=True):
        np.testing.assert_allclose(
            ours.detach().cpu().numpy(), theirs.detach().cpu().numpy(), atol=1e-6
        )


def test_every_peer_of_the_catalog_has_an_adapter() -> None:
    for peer in PEERS:
        assert importlib.util.find_spec(f"benchmarks.peers.{peer}") is not None
    assert set(PEERS) == {"keras", "tunix", "kauldron", "levanter", "lightning", "accelerate"}
