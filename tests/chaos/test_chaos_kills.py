"""Does a run that is killed at any moment, and started again, end byte for byte as if it were not?

Campaigns of kills are in ``chaos_zoo.py``, what is killed in ``job.py``.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import chaos_zoo
import pytest
from job import HOOKS, Job

SEED = 20240
SAVING = ("begun", "meta", "arrays", "synced", "record", "committed", "removing", "removed")
FIRST_STEP = ("on_training_step:1",) * 3
"""A second and a third start that come no further than the first step after a resume."""
LAST = ("on_training_end:1", "after.on_training_end:1", "after.finalize:1")
"""Before and after the last save, when nothing is left but to exit."""

ONE = Job(steps=110)
FOUR = Job(steps=110, accumulate=4)
SHORT = {
    ONE: (
        *("begun:1", "start:1.0", "meta:2", "arrays:2", "retired:1", "synced:2"),
        *FIRST_STEP,
        *("record:2", "committed:2"),
    ),
    FOUR: (
        *("removing:1", "on_validation_epoch_start:1", "on_validation_epoch_end:1"),
        *("on_epoch_logged:1", "time:0.25", "on_training_epoch_end:1", "time:0.15", *LAST),
    ),
}

Runs = Callable[[Job], chaos_zoo.Report]
LongRuns = Callable[[Job], tuple[chaos_zoo.Report, Path]]


def all_moments() -> list[str]:
    """Returns every moment of a save, of the loop and of a start, each several times."""
    saves = [f"{moment}:{count}" for moment in SAVING for count in (1, 2, 3)]
    once = ("on_training_start", "on_training_end", "finalize")
    hooks = [
        f"{after}{hook}:{count}"
        for hook in HOOKS
        for after in ("", "after.")
        for count in ((1,) if hook in once else (1, 2))
    ]
    starts = [f"start:{delay}" for delay in (0.2, 0.5, 0.8, 1.1, 1.4, 1.7, 2.0, 2.3)]
    return [*saves, *hooks, *starts, "retiring:1", "retired:1"]


def campaign(folder: Path, job: Job, plans: tuple[str, ...], seed: int = 0) -> chaos_zoo.Report:
    return chaos_zoo.Campaign(folder, job, seed).run(plans)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Campaigns of a few kills each; both at the same time."""
    with ThreadPoolExecutor(len(SHORT)) as pool:
        reports: dict[Job, Future[chaos_zoo.Report]] = {
            job: pool.submit(campaign, tmp_path_factory.mktemp("kills"), job, plans)
            for job, plans in SHORT.items()
        }
        yield lambda job: reports[job].result()


@pytest.mark.parametrize("job", SHORT, ids=lambda job: f"accumulate_{job.accumulate}")
def test_a_run_that_was_killed_ends_byte_for_byte_like_one_that_was_not(
    runs: Runs, job: Job, record_property: Callable[[str, Any], None]
) -> None:
    report = runs(job)
    print(report.table())
    record_property("table", report.table())
    assert len(report.kills) == len(SHORT[job]), report.table()
    assert report.problems == [], report.table()


def test_the_journal_tells_of_work_that_was_lost(runs: Runs) -> None:
    by_plan = {kill.plan: kill for kill in runs(ONE).kills}
    assert by_plan["begun:1"].lost == by_plan["begun:1"].last == ONE.save_every
    assert by_plan["record:2"].lost > 0
    assert by_plan["committed:2"].lost < ONE.save_every


LONG = {Job(): 66, Job(accumulate=4): 62}
"""Kills by job; both campaigns run at the same time, and share the moments between them."""
OTHERS = {Job(loader="grain"): 8, Job(loader="workers"): 8, Job(devices=8, pause_s=0): 8}
"""Kills by job: loaders that read ahead by themselves, and a mesh of eight devices."""


def many(kills: int, seed: int, moments: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns the moments, or some of all, and random times, in an order given by the seed."""
    draw = random.Random(seed)
    some = kills - len(FIRST_STEP) - len(LAST)
    moments = moments or draw.sample(all_moments(), some // 2)
    times = [f"time:{draw.uniform(0, 1.5):.3f}" for _ in range(some - len(moments))]
    plans = [*moments, *times]
    draw.shuffle(plans)
    return (*FIRST_STEP, *plans, *LAST)


def assert_unseen(report: chaos_zoo.Report, kills: int, folder: Path) -> None:
    """Fails unless all kills have come, nothing differs in the end, and no process is left."""
    print(report.table())
    assert len(report.kills) >= kills, report.table()
    assert report.problems == [], report.table()
    assert chaos_zoo.left_running(folder) == []


@pytest.fixture(scope="module")
def long_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LongRuns]:
    """Campaigns of many kills, with their folders."""
    with ThreadPoolExecutor(len(LONG)) as pool:
        folders = {job: tmp_path_factory.mktemp("many") for job in LONG}
        plans = [
            many(kills, SEED + i, all_moments()[i :: len(LONG)])
            for i, kills in enumerate(LONG.values())
        ]
        reports = {
            job: pool.submit(campaign, folders[job], job, plans[i], SEED + i)
            for i, job in enumerate(LONG)
        }
        yield lambda job: (reports[job].result(), folders[job])


@pytest.mark.chaos
@pytest.mark.parametrize("job", LONG, ids=lambda job: f"accumulate_{job.accumulate}")
def test_no_kill_of_many_is_seen_in_the_end(
    long_runs: LongRuns, job: Job, record_property: Callable[[str, Any], None]
) -> None:
    report, folder = long_runs(job)
    record_property("table", report.table())
    assert_unseen(report, LONG[job], folder)


@pytest.mark.chaos
@pytest.mark.parametrize("job", OTHERS, ids=lambda job: f"{job.loader}_{job.devices}")
def test_no_kill_is_seen_with_other_loaders_and_devices(
    tmp_path: Path, job: Job, record_property: Callable[[str, Any], None]
) -> None:
    kills = OTHERS[job]
    report = campaign(tmp_path, job, many(kills, SEED), SEED)
    record_property("table", report.table())
    assert_unseen(report, kills, tmp_path)
