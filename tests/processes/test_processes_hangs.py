"""Does a run in which one process does not go on end within its limits, and say which one it is?"""

import json
import re
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import hangs
import process_zoo
import pytest

pytestmark = pytest.mark.processes

HANG_S, SAVE_S = 3.0, 2.0
BOUND_S = 1.2 * HANG_S + 3.0
"""From the moment at which a process hangs to the end of the last one."""
MISSING_S = BOUND_S + 5.0
"""The same where a process is asked in vain."""
CONFIG = {"hang_timeout_s": HANG_S, "save_timeout_s": SAVE_S}
AT_A_TIME = 2


class Case(NamedTuple):
    """What happens, to which process of how many, with which settings."""

    what: str
    who: int = 0
    count: int = 1
    on_hang: str = "end"


STUCK, STUCK_MAIN = Case("callback", 1, 2), Case("callback", 0, 2)
STOPPED, STOPPED_MAIN = Case("stopped", 1, 2), Case("stopped", 0, 2)
REPORTED = Case("nap", 1, 2, "report")
SAVE, SAVE_START = Case("save"), Case("save_start")
PAUSED = Case("paused")


def rarely(case: Case) -> Any:
    return pytest.param(case, marks=pytest.mark.chaos)


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs of the cases; those that the tests will ask for wait at the same time."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:

        def start(case: Case) -> Future[process_zoo.Run]:
            folder = tmp_path_factory.mktemp(case.what)
            config = json.dumps({**CONFIG, "on_hang": case.on_hang})
            arguments = ("hangs.py", folder, case.count, 1, case.what, str(case.who), config)
            left = [case.who] if case.what == "stopped" else []
            return pool.submit(process_zoo.run_processes, *arguments, timeout_s=120.0, left=left)

        asked = {
            item.callspec.params["case"]
            for item in request.session.items
            if isinstance(item, pytest.Function) and item.module is request.module
        }
        futures = {case: start(case) for case in sorted(asked, key=lambda case: -case.count)}
        yield lambda case: futures[case].result()


def took_s(run: process_zoo.Run, *who: int) -> float:
    """Returns how long processes took to end."""
    return max(run.members[i].at for i in who or range(len(run.members))) - run.stamp()


def crash(run: process_zoo.Run, process: int) -> Any:
    return json.loads((run.folder / "run" / f"crash_{process}.json").read_text())


def training_stack(found: Any) -> str:
    name, lines = next(iter(found["stacks"].items()))
    assert name.startswith("MainThread")
    return "\n".join(lines)


@pytest.mark.parametrize("case", [STUCK, rarely(STUCK_MAIN)])
def test_a_process_that_is_stuck_ends_all_with_its_name_and_all_stacks(
    runs: Any, case: Case
) -> None:
    run, other = runs(case), 1 - case.who
    assert run.codes == [124, 124]
    assert HANG_S < took_s(run) < BOUND_S
    for member in run.members:
        assert f"longer than hang_timeout_s={HANG_S:g}: process " in member.err
        assert "reached the end" not in member.out
    # Whoever has noticed it first; both wait for as long.
    named = (
        f"Process {case.who} is behind: at step {hangs.AT}, in 'callbacks'",
        f"process {case.who} is at step {hangs.AT}, in 'callbacks' for 3.",
    )
    asker = next(i for i in (0, 1) if crash(run, i).get("processes"))
    said = run.members[asker].err
    assert any(name in said for name in named)
    for process in (0, 1):
        assert f"\nProcess {process}:\nThread MainThread" in said
        assert any(name in crash(run, process)["reason"] for name in named)
    assert "in sleeps: time.sleep(LONG_S)" in said
    assert "in sleeps: time.sleep(LONG_S)" in training_stack(crash(run, case.who))
    assert "xtrainer/loop/in_flight.py" in training_stack(crash(run, other))


@pytest.mark.parametrize("case", [STOPPED, rarely(STOPPED_MAIN)])
def test_of_a_process_that_is_stopped_the_other_says_that_it_is_missing(
    runs: Any, case: Case
) -> None:
    run, other = runs(case), 1 - case.who
    assert run.codes[other] == 124
    assert HANG_S < took_s(run, other) < MISSING_S
    said = run.members[other].err
    assert f"process {other} is at step " in said
    place = r"the main process, .*" if case.who == 0 else r"pid \d+ on \S+"
    assert re.search(rf"Process {case.who} \({place}\) is missing: it is stopped, dead", said)
    assert list(crash(run, other)["missing"]) == [str(case.who)]
    assert "another task died" not in said  # the verdict has come before JAX's


@pytest.mark.parametrize("case", [rarely(REPORTED)])
def test_a_hang_that_is_only_reported_lets_the_run_come_to_its_end(runs: Any, case: Case) -> None:
    run = runs(case)
    assert run.codes == [0, 0]
    said = run.members[0].err + run.members[1].err
    assert said.count("longer than hang_timeout_s=3") == 1
    assert "The run goes on, " in said
    assert all("reached the end" in member.out for member in run.members)


@pytest.mark.parametrize("case", [SAVE])
def test_a_save_that_never_ends_ends_the_run_as_one_that_failed(runs: Any, case: Case) -> None:
    run = runs(case)
    assert run.codes == [4]
    # The thread that is stuck for ever is waited for, at the end of the program, only so long.
    assert SAVE_S < took_s(run) < 1.2 * SAVE_S + 5.0 + 3.0
    assert "CheckpointWriteError: " in run.members[0].err
    assert f"it has taken more than {SAVE_S:g} s" in run.members[0].err
    assert not (run.folder / "run" / "checkpoints" / "2").exists()


@pytest.mark.parametrize("case", [rarely(SAVE_START)])
def test_a_save_that_does_not_begin_ends_the_run_as_a_hang(runs: Any, case: Case) -> None:
    run = runs(case)
    assert run.codes == [124]
    assert took_s(run) < 1.2 * SAVE_S + 5.0
    assert f"save_timeout_s={SAVE_S:g}: process 0 is at step 2, in 'checkpoint'" in (
        run.members[0].err
    )


@pytest.mark.parametrize("case", [rarely(PAUSED)])
def test_a_process_that_was_stopped_for_longer_than_a_limit_goes_on(runs: Any, case: Case) -> None:
    assert hangs.PAUSE_S > HANG_S
    run = runs(case).ended_well()
    assert took_s(run) > hangs.PAUSE_S
    assert "hang_timeout_s" not in run.members[0].err
