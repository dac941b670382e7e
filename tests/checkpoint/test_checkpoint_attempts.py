"""Can a start of a run that has been replaced by another one still change the folder?"""

import threading
from pathlib import Path

import pytest

from xtrainer.checkpoint import CheckpointManager, commit, list_steps
from xtrainer.checkpoint.commit import RunId, read_commit, require_newest
from xtrainer.errors import CheckpointWriteError, NewerAttemptError


def test_a_replaced_start_is_refused_and_told_by_whom(tmp_path: Path, small) -> None:
    with CheckpointManager(tmp_path) as old:
        old.save(1, small)
        old.wait()
        with CheckpointManager(tmp_path) as new:
            said = "found that attempt 2 writes here, expected none after attempt 1"
            for _ in range(2):
                with pytest.raises(NewerAttemptError, match=said):
                    old.save(2, small)
            with pytest.raises(NewerAttemptError, match=said):
                old.rank(1, 0.5)
            new.save(2, small)
    assert list_steps(tmp_path) == [1, 2]
    assert read_commit(tmp_path / "2").attempt == 2
    assert NewerAttemptError.exit_code == 4


@pytest.mark.parametrize("at", ["begun", "arrays", "record"])
@pytest.mark.parametrize("opened", ["before", "after"])
def test_a_save_under_way_does_not_become_a_step(
    tmp_path: Path, small, monkeypatch: pytest.MonkeyPatch, at: str, opened: str
) -> None:
    """The old start stands still within its save while another one begins, and saves as well."""
    reached, go_on, stopped = threading.Event(), threading.Event(), []

    def stand_still(moment: str) -> None:
        if moment == at and not stopped:
            stopped.append(moment)
            reached.set()
            assert go_on.wait(60)

    old = CheckpointManager(tmp_path)
    monkeypatch.setattr(commit, "watcher", stand_still)
    saving = threading.Thread(target=old.save, args=(1, small))
    saving.start()
    assert reached.wait(60)
    with CheckpointManager(tmp_path) as new:
        new.save(1, small)
        if opened == "after":
            new.wait()
        go_on.set()
        saving.join()
        with pytest.raises(CheckpointWriteError, match="attempt 2 writes here"):
            old.wait()
        old.close()
    assert list_steps(tmp_path) == [1]
    assert commit.problems_of(tmp_path / "1") == []
    assert read_commit(tmp_path / "1").attempt == 2
    assert {path.name for path in tmp_path.iterdir()} == {"1", "RUN.json"}


def test_a_step_of_the_newer_start_is_not_set_aside(tmp_path: Path, small) -> None:
    with CheckpointManager(tmp_path) as old, CheckpointManager(tmp_path) as new:
        new.save(3, small)
        new.wait()
        with pytest.raises(NewerAttemptError):
            old.save(3, small)
        assert {path.name for path in tmp_path.iterdir()} == {"3", "RUN.json"}


@pytest.mark.parametrize(
    ("found", "refused"),
    [
        (RunId("a", 2), False),
        (RunId("a", 1), False),
        (RunId("a", 3), True),
        (RunId("b", 1), True),
        (None, False),
    ],
)
def test_who_is_newer(tmp_path: Path, found: RunId | None, refused: bool) -> None:
    if found is not None:
        text = f'{{"run_id": "{found.run_id}", "attempt": {found.attempt}}}'
        (tmp_path / commit.RUN_FILE).write_text(text)
    if found is None or not refused:
        require_newest(tmp_path, RunId("a", 2))
        return
    said = "attempt 1 of another run" if found.run_id == "b" else "attempt 3 writes"
    with pytest.raises(NewerAttemptError, match=said):
        require_newest(tmp_path, RunId("a", 2))
