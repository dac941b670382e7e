"""Do the processes of a run find the same batch size, where one of them has less memory?"""

from pathlib import Path

import process_zoo
import pytest

pytestmark = pytest.mark.processes


def test_two_processes_agree_on_what_fits_and_on_the_best(tmp_path: Path) -> None:
    run = process_zoo.run_processes("tuned.py", tmp_path, 2, 1, "tune").ended_well()
    said = run.said("tune")
    assert [one["error"] for one in said] == [None, None], said[0]["text"]
    first, second = (one["value"] for one in said)
    assert first == second
    assert first["processes"] == 2
    assert first["free"] == [[8, True], [16, True]]
    assert [row[:2] for row in first["table"]] == [[8, True], [16, False]]
    assert (first["best"], first["told"], first["restored"]) == (8, [8], True)
