"""How much of its time does a run use that is killed every minute? What is lost is done again."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chaos_zoo
import pytest
from job import Job

JOB = Job(steps=2400, save_every=180, pause_s=0.05)
"""Saves about every ten seconds."""
EVERY_S = 60
AT_LEAST = 0.85


@pytest.mark.slow
def test_a_run_that_is_killed_every_minute_uses_most_of_its_time(
    tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    start = time.monotonic()
    campaign = chaos_zoo.Campaign(tmp_path, JOB)  # which runs it once, unbroken
    whole_s = time.monotonic() - start
    folder = tmp_path / "killed"
    folder.mkdir()
    start = time.monotonic()
    codes = [campaign.start(folder, plan)[0] for plan in (*[f"time:{EVERY_S}"] * 2, "")]
    killed_s = time.monotonic() - start
    assert codes == [-9, -9, 0]
    assert chaos_zoo.differences(campaign.reference, chaos_zoo.record_of(folder)) == []
    share = whole_s / killed_s
    record_property(
        "table",
        f"killed every {EVERY_S} s: {killed_s:.0f} s for the work of {whole_s:.0f} s, {share:.1%}",
    )
    assert share >= AT_LEAST
