"""Is a folder that is no step any more gone, and nothing else?"""

from pathlib import Path

import pytest

from xtrainer.checkpoint import removal


@pytest.mark.parametrize("times", [0, 1, 4])
def test_what_a_late_writer_makes_anew_is_removed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    failed, step = tmp_path / "3.saving", tmp_path / "2"
    step.mkdir()
    (failed / "state").mkdir(parents=True)
    pauses: list[float] = []

    def write_late(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) <= times:
            (failed / "state").mkdir(parents=True)
            (failed / "state" / "part").write_bytes(b"late")

    monkeypatch.setattr(removal.time, "sleep", write_late)
    paths = [failed]
    removal.remove_left(paths)
    assert len(pauses) == times + 1
    assert paths == []
    assert list(tmp_path.iterdir()) == [step]


def test_a_writer_that_never_ends_is_left_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(100))
    failed = tmp_path / "3.saving"
    monkeypatch.setattr(removal.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(removal.time, "sleep", lambda _: failed.mkdir(exist_ok=True))
    paths = [failed]
    removal.remove_left(paths)
    assert paths == [failed]
