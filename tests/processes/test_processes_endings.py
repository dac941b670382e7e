"""Does every process end soon, and say why, when one of them cannot go on?"""

import functools
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import disagree
import jax
import member
import process_zoo
import pytest

from xtrainer.checkpoint import list_steps, read_meta, restore_state

pytestmark = pytest.mark.processes

ERROR_S = 10.0
"""From an error on one process to the end of the last one."""
HEARTBEAT_S = 25.0
"""From a kill to the end of the last one, where only its silence tells of it."""
AT_ONCE_S = 5.0
"""From the end of process 0, with which the coordination service is gone."""

MESSAGES = {
    "loader": "ValueError: the loader broke here",
    "validation_hook": "ValueError: the hook broke here",
    "caught": "ValueError: the hook broke here",
    "validation_logger": "ValueError: the logger broke here",
    "settled_hook": "ValueError: the hook broke here",
    "epoch_hook": "ValueError: the hook broke here",
    "outside": "ValueError: the program broke here",
    "exit": "SystemExit: 3",
}
KILLS = ("kill", "kill_in_validation")
FAST = [
    *(("validation_hook", 0), ("outside", 1), ("loader", 1)),
    *(("kill", 0), ("kill", 1)),
]
ALL = [(what, who) for what in (*MESSAGES, *KILLS) for who in (0, 1)]
AT_A_TIME = 2


def params(*whats: str) -> list[Any]:
    return [
        pytest.param(what, who, marks=() if (what, who) in FAST else pytest.mark.slow)
        for what, who in ALL
        if what in whats
    ]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs of two processes; those that the tests will ask for wait at the same time."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:

        def start(what: str, who: int) -> Future[process_zoo.Run]:
            folder = tmp_path_factory.mktemp(f"{what}_{who}")
            arguments = ("endings.py", folder, 2, 1, what, str(who))
            return pool.submit(process_zoo.run_processes, *arguments, timeout_s=120.0)

        asked = {
            (item.callspec.params["what"], item.callspec.params["who"])
            for item in request.session.items
            if isinstance(item, pytest.Function) and item.module is request.module
        }
        futures = {case: start(*case) for case in ALL if case in asked}
        yield lambda what, who: futures[what, who].result()


@functools.cache
def state() -> Any:
    return disagree.Stage().begin(member.Member(process_zoo.TESTS), "").state


def assert_whole(run: process_zoo.Run) -> None:
    """Fails unless every checkpoint that counts can be read, and the first was not lost."""
    folder = run.folder / "run" / "checkpoints"
    steps = list_steps(folder)
    assert steps[0] == 1
    for step in steps:
        assert read_meta(folder / str(step))["progress"]["step"] == step
        assert int(jax.device_get(restore_state(folder / str(step), state()).step)) == step


@pytest.mark.parametrize(("what", "who"), params(*MESSAGES))
def test_an_error_on_one_process_ends_all_and_all_show_it(runs: Any, what: str, who: int) -> None:
    run = runs(what, who)
    ends = [member.at - run.stamp() for member in run.members]
    print(f"{what} on process {who}: ended after {ends[0]:.1f} and {ends[1]:.1f} s, {run.codes}")
    assert 0 < max(ends) < ERROR_S
    for index, one in enumerate(run.members):
        assert one.code == 1, one.err[-3000:]
        assert "reached the end" not in one.out
        assert "Traceback (most recent call last)" in one.err
        assert MESSAGES[what] in one.err
        if index != who:
            assert f"process {who} has failed" in one.err.lower()
    assert_whole(run)


@pytest.mark.parametrize(("what", "who"), params(*KILLS))
def test_a_process_that_is_killed_ends_all(runs: Any, what: str, who: int) -> None:
    run = runs(what, who)
    ends = [member.at - run.stamp() for member in run.members]
    print(f"{what} of process {who}: ended after {ends[0]:.1f} and {ends[1]:.1f} s, {run.codes}")
    assert 0 < max(ends) < (HEARTBEAT_S if who else AT_ONCE_S)
    assert run.codes[who] == -9
    survivor = run.members[1 - who]
    assert survivor.code != 0
    assert "reached the end" not in survivor.out
    # Either the step that it waited in has failed, or JAX has missed the other one.
    assert "Gloo" in survivor.err or "another task died" in survivor.err
    assert_whole(run)
