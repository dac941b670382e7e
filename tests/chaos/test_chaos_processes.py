"""Does a run of two processes survive the death of either, and go on in one alone?"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chaos_zoo
import numpy as np
import pair_zoo
import pytest
from job import Job

pytestmark = [pytest.mark.chaos, pytest.mark.processes]

SEED = 71
JOB = Job(steps=110, accumulate=2, batch_norm=False)
MOMENTS = {
    0: ("begun", "meta", "arrays", "synced", "record", "committed", "removing", "removed"),
    1: ("begun", "arrays"),
}
"""Of a save, by process: the main one writes what all share."""
HOOKS = ("on_training_step", "on_validation_epoch_start", "on_epoch_logged", "on_training_log")


def plans(draw: random.Random) -> list[str]:
    """Returns 21 kills: moments of a save, hooks, random times and the start, of both."""
    found = [f"0/{moment}:{draw.randint(1, 2)}" for moment in MOMENTS[0]]
    found += [f"1/{moment}:{draw.randint(1, 3)}" for moment in MOMENTS[1]]
    found += [f"{draw.randint(0, 1)}/{hook}:1" for hook in HOOKS]
    found += [f"{draw.randint(0, 1)}/time:{draw.uniform(0, 0.8):.3f}" for _ in range(5)]
    found += ["1/start:2.0", "0/start:2.0"]
    draw.shuffle(found)
    return found


def test_a_run_of_two_processes_survives_the_death_of_either(
    tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    report = pair_zoo.PairCampaign(tmp_path, JOB, SEED).run(plans(random.Random(SEED)))
    print(report.table())
    record_property("table", report.table())
    assert len(report.kills) >= 20, report.table()
    assert report.problems == [], report.table()
    assert chaos_zoo.left_running(tmp_path) == []


def test_a_run_of_two_processes_goes_on_in_one(tmp_path: Path) -> None:
    pair = pair_zoo.PairCampaign(tmp_path / "two", JOB, SEED)
    alone = chaos_zoo.Campaign(tmp_path / "one", JOB, SEED)
    folder = tmp_path / "both"
    folder.mkdir()
    for plan in ("1/on_training_step:25", "0/record:2", "1/time:0.1"):
        assert pair.start(folder, plan)[0] == chaos_zoo.KILLED, plan
    for plan in ("on_training_step:9", ""):
        code, _ = alone.start(folder, plan)
        assert code == (chaos_zoo.KILLED if plan else 0), chaos_zoo.tail(folder)
    record = chaos_zoo.record_of(folder)
    for other in (pair.reference, alone.reference):
        for name in ("order", "step", "rng", "guard", "kept"):
            assert record[name] == other[name], name
        np.testing.assert_allclose(record["numbers"], other["numbers"], rtol=1e-4, atol=1e-5)
        assert [row[:3] for row in record["rows"]] == [row[:3] for row in other["rows"]]
