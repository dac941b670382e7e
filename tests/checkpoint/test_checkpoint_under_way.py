"""Is a save that takes too long given up, and not made a step when nobody expects it any more?"""

import time
from types import SimpleNamespace

import pytest

from xtrainer.checkpoint import under_way
from xtrainer.checkpoint.under_way import Save


@pytest.fixture
def leaving(monkeypatch):
    """With which codes the process was to leave in any case."""
    found = []
    monkeypatch.setattr(under_way, "leave_in_any_case", lambda code, grace_s: found.append(code))
    return found


@pytest.fixture
def sealed(monkeypatch):
    """The steps that were sealed."""
    found = []
    monkeypatch.setattr(under_way, "seal", lambda folder, step, *rest: found.append(step))
    return found


ARRAYS = SimpleNamespace(wait=lambda: None)


def commit(save, folder):
    (folder / f"{save.step}.saving").mkdir()
    save.commit(folder, {"a": 1}, None, ARRAYS, None)


def test_a_save_that_is_done_has_no_error(tmp_path, leaving, sealed):
    save = Save(3, None, limit_s=10.0)
    commit(save, tmp_path)
    save.done.set_result(None)
    assert save.outcome() is None
    assert sealed == [3] and (tmp_path / "3" / "meta.json").exists() and leaving == []


def test_one_that_has_failed_says_why(leaving):
    save, error = Save(3, None, limit_s=10.0), OSError("no space")
    save.done.set_exception(error)
    assert save.outcome() is error and leaving == []


def test_one_that_was_given_up_never_becomes_a_step(tmp_path, leaving, sealed):
    save = Save(3, None, limit_s=0.05)
    error = save.outcome()
    assert isinstance(error, TimeoutError) and "more than 0.05 s" in str(error)
    assert leaving == [4]
    commit(save, tmp_path)  # what it hung in has come to an end
    assert sealed == [] and not (tmp_path / "3").exists()


def test_the_time_counts_from_the_beginning_of_the_save_and_not_of_the_wait(monkeypatch, leaving):
    monkeypatch.setattr(under_way, "_GRACE_S", 0.05)
    save = Save(3, None, limit_s=60.0, begun=time.monotonic() - 61.0)
    begun = time.monotonic()
    assert isinstance(save.outcome(), TimeoutError)
    assert time.monotonic() - begun < 10.0
