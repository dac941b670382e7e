"""Does a run of several processes take the course of one device? Order, losses, parameters."""

import functools
from pathlib import Path
from typing import Any

import courses
import mesh_zoo as mz
import numpy as np
import process_zoo
import pytest

pytestmark = pytest.mark.processes

TOLERANCE = 1e-4
FEW = 12
FAST = {
    # (processes, devices of each): (kind, mesh, accumulate, optimizer)
    (2, 2): [("small", "fsdp", 4, "sgd"), ("cnn", "dp_fsdp", 1, "adam")],
    (4, 1): [("small", "dp_tp", 1, "sgd")],
}
"""Both models, both accumulations, an FSDP axis that spans processes, half as many parts of the
data as processes."""
ALL = {
    shape: [
        (kind, mesh, accumulate, optimizer)
        for kind in mz.KINDS
        for mesh in meshes
        for accumulate, optimizer in ((1, "sgd"), (4, "sgd"), (4, "adam"))
    ]
    for shape, meshes in {
        (2, 1): ("dp", "fsdp", "tp"),
        (2, 2): ("dp_fsdp", "dp_tp"),
        (4, 1): ("dp", "fsdp", "dp_tp"),
        (4, 2): ("dp_fsdp", "dp_tp"),
    }.items()
}
PARTS = {((4, 1), "dp_tp"): 2, ((2, 1), "tp"): 1}
"""Into how many parts a batch is divided, where there are fewer than processes."""


def name_of(case: tuple[Any, ...], steps: int) -> str:
    return "-".join(map(str, (*case, steps)))


@functools.cache
def reference(kind: str, accumulate: int, optimizer: str, steps: int) -> dict[str, Any]:
    """Returns the course on one device of one process."""
    return courses.course(name_of((kind, "1", accumulate, optimizer), steps))


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs of processes by number and devices; each pays its start once for all its courses."""
    asked = [
        tuple(item.callspec.params[name] for name in ("shape", "case", "steps"))
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.module is request.module
        and hasattr(item, "callspec")
    ]

    @functools.cache
    def run(shape: tuple[int, int], steps: int) -> process_zoo.Run:
        names = [name_of(case, steps) for other, case, n in asked if (other, n) == (shape, steps)]
        folder = tmp_path_factory.mktemp(f"courses_{shape[0]}x{shape[1]}_{steps}")
        slow = {} if steps == FEW else {"timeout_s": 3600.0, "optimized": True}
        return process_zoo.run_processes("courses.py", folder, *shape, *names, **slow).ended_well()

    return run


def params(cases: dict[tuple[int, int], list[Any]], steps: int) -> list[Any]:
    return [
        pytest.param(shape, case, steps, id=f"{shape[0]}x{shape[1]}-{name_of(case, steps)}")
        for shape, several in cases.items()
        for case in several
    ]


def check(run: process_zoo.Run, shape: tuple[int, int], case: Any, steps: int) -> None:
    kind, mesh, accumulate, optimizer = case
    name = name_of(case, steps)
    said = run.said(name)
    assert [one["error"] for one in said] == [None] * shape[0], said[0]["text"]
    found = [one["value"] for one in said]
    assert found[0]["parts"] == PARTS.get((shape, mesh), shape[0])
    assert all(one == found[0] for one in found)  # the same rows and bits in every process
    expected = reference(kind, accumulate, optimizer, steps)
    assert found[0]["order"] == expected["order"]
    assert len({tuple(ids) for _, *ids in found[0]["order"]}) > steps // 2
    np.testing.assert_allclose(found[0]["losses"], expected["losses"], rtol=TOLERANCE)
    with np.load(run.folder / f"{name}.npz") as file:
        end = [file[key] for key in file.files]
    difference = mz.relative_difference(end, expected["end"])
    print(f"{shape} {name}: parameters differ by {difference:.1e}")
    if optimizer == "sgd":  # Adam turns rounding where a gradient is zero into whole updates
        assert difference < TOLERANCE


@pytest.mark.parametrize(("shape", "case", "steps"), params(FAST, FEW))
def test_a_run_of_processes_takes_the_course_of_one_device(
    runs: Any, shape: tuple[int, int], case: Any, steps: int
) -> None:
    check(runs(shape, steps), shape, case, steps)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "case", "steps"), params(ALL, 50))
def test_every_mesh_of_processes_takes_the_course_of_one_device(
    runs: Any, shape: tuple[int, int], case: Any, steps: int
) -> None:
    check(runs(shape, steps), shape, case, steps)


def test_several_steps_of_processes_in_one_dispatch_do_what_single_ones_do(tmp_path: Path) -> None:
    names = [f"small-fsdp-1-sgd-{FEW}-4-{most}" for most in (1, 4)]
    run = process_zoo.run_processes("courses.py", tmp_path, 2, 1, *names).ended_well()
    found = []
    for name in names:
        said = run.said(name)
        assert [one["error"] for one in said] == [None, None], said[0]["text"]
        assert said[0]["value"] == said[1]["value"]
        with np.load(run.folder / f"{name}.npz") as file:
            found.append((said[0]["value"], [file[key] for key in file.files]))
    (one, single), (several, scanned) = found
    assert one["dispatches"] == [] and several["dispatches"] != []
    assert max(several["dispatches"]) == 4
    assert several["order"] == one["order"]
    # Other programs, whose sums over processes round otherwise.
    np.testing.assert_allclose(several["losses"], one["losses"], rtol=1e-6)
    assert mz.relative_difference(scanned, single) < 1e-5
