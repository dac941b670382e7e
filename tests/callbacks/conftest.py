"""Trainers that are compiled once for all tests of this folder."""

import probes
import pytest


@pytest.fixture(scope="session")
def stage() -> probes.Repeatable:
    """A trainer with BatchNorm, dropout and Adam; the first step that is not finite ends a run."""
    return probes.Repeatable(probes.traced())


@pytest.fixture(autouse=True)
def no_thread_is_left() -> object:
    """Fails a test that leaves a thread reading a loader."""
    yield
    assert probes.prefetch_threads() == []
