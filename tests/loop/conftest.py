"""Trainers that are compiled once for all tests of this folder."""

import probes
import pytest


@pytest.fixture(scope="session")
def stage() -> probes.Repeatable:
    """A trainer with BatchNorm, dropout and Adam; the first step that is not finite ends a run."""
    return probes.Repeatable(probes.traced())


@pytest.fixture(scope="session")
def skipping() -> probes.Repeatable:
    """The same, but refuses such steps and ends after three of them in a row."""
    trainer = probes.traced(nonfinite_policy="skip", max_consecutive_nonfinite=3)
    return probes.Repeatable(trainer)


@pytest.fixture(scope="session")
def careless() -> probes.Repeatable:
    """The same, but goes on whatever happens."""
    return probes.Repeatable(probes.traced(check_for_nan=False))


@pytest.fixture(autouse=True)
def no_thread_is_left() -> object:
    """Fails a test that leaves a thread reading a loader."""
    yield
    assert probes.prefetch_threads() == []
