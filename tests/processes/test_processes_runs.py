"""Can a run be saved by some processes and go on in others, and who of them writes and waits?"""

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import process_zoo
import pytest
import resume
import zoo

from xtrainer.checkpoint import list_steps

pytestmark = pytest.mark.processes

SHAPES = {"2x1": (2, 1), "4x1": (4, 1)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> process_zoo.Run:
    """A run of four processes that ended at a step in the middle of a pass."""
    folder = tmp_path_factory.mktemp("saved")
    arguments = (*SHAPES["4x1"], str(resume.SAVED_AT))
    return process_zoo.run_processes("resume.py", folder, *arguments).ended_well()


@pytest.fixture(scope="module")
def continued(saved: process_zoo.Run, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What that run did further on other devices, each with a copy of its folder."""

    @functools.cache
    def go_on(shape: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp(f"continued_{shape}")
        shutil.copytree(saved.folder / "run", folder / "run")
        if shape not in SHAPES:
            mesh = zoo.devices(1) if shape == "1" else None
            return resume.go_on(folder, resume.END, mesh)
        arguments = (*SHAPES[shape], str(resume.END))
        run = process_zoo.run_processes("resume.py", folder, *arguments)
        found = values(run.ended_well())
        return found[0]

    return go_on


@functools.cache
def uninterrupted(folder: Path) -> dict[str, Any]:
    """Returns what one process does on one device, from the first step to the last."""
    return resume.go_on(folder, resume.END, zoo.devices(1))


def values(run: process_zoo.Run) -> list[dict[str, Any]]:
    """Returns what the processes recorded; all but the drawing is equal on all of them."""
    said = run.said("run")
    assert [one["error"] for one in said] == [None] * len(said), said[0]["text"]
    found = [one["value"] for one in said]
    seen = [{key: one[key] for key in one if key != "drawn"} for one in found]
    assert all(one == seen[0] for one in seen)
    return found


def test_the_processes_of_a_run_leave_one_checkpoint(saved: process_zoo.Run) -> None:
    assert list_steps(saved.folder / "run" / "checkpoints")[-1] == resume.SAVED_AT
    assert values(saved)[0]["divided"] >= 2  # each process holds a part of these parameters


@pytest.mark.parametrize("shape", ["2x1", "1", "8", pytest.param("4x1", marks=pytest.mark.slow)])
def test_what_four_processes_saved_goes_on_in_others(
    saved: process_zoo.Run, continued: Any, shape: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first, second = values(saved)[0], continued(shape)
    assert second["found step"] == resume.SAVED_AT
    assert second["found"] == first["left"]  # bit for bit
    expected = uninterrupted(tmp_path_factory.getbasetemp() / "uninterrupted")
    assert first["order"] + second["order"] == expected["order"]
    assert len({tuple(ids) for _, *ids in expected["order"]}) == resume.END
    for leaf, other in zip(second["left"], expected["left"], strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-4, atol=1e-5)


def test_only_the_main_process_writes_rows_and_each_its_messages(saved: process_zoo.Run) -> None:
    folder = saved.folder / "run"
    rows = zoo.rows_of(folder, "train")  # raises if a step was written twice
    assert sorted(rows) == list(range(1, resume.SAVED_AT + 1))
    logs = sorted(path.name for path in folder.glob("output_*.log"))
    assert logs == [f"output_{index}.log" for index in range(4)]
    said = [(folder / name).read_text().count("step 7 |") for name in logs]
    assert said == [member.out.count("step 7 |") for member in saved.members]
    assert said[0] > 0 and said[1:] == [0, 0, 0]


def test_no_process_of_several_draws_on_a_terminal(saved: process_zoo.Run) -> None:
    for one in values(saved):  # there may be plain lines of the main one
        assert "\x1b" not in one["drawn"] and "%|" not in one["drawn"]


def test_a_report_is_read_only_when_three_further_steps_are_dispatched(
    saved: process_zoo.Run,
) -> None:
    for one in values(saved):
        # With four steps and three in flight: nothing but the first is read before the end.
        assert one["newest"] == [0, 0, 0, 0]
        assert one["read"] == [1, 2, 3, 4]
