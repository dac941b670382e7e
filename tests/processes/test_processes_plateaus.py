"""Do all processes reduce the rate, and let batches grow, at the steps of one process alone?"""

from pathlib import Path

import growth
import member
import process_zoo
import pytest
import zoo

pytestmark = [pytest.mark.processes, pytest.mark.slow]


def test_all_processes_meet_the_rates_and_sizes_of_one_alone(tmp_path: Path) -> None:
    run = process_zoo.run_processes("growth.py", tmp_path, 2, 1).ended_well()
    alone = growth.run(member.Member(tmp_path), zoo.devices(2))
    assert (alone["size"], alone["examples"]) == (16, 8 * 4 + 8 * 8 + 4 * 16)
    factors = [1] * 6 + [0.5] * 2 + [1] * 2 + [0.5] * 4 + [0.25] * 2 + [0.5] * 2 + [0.25] * 2
    assert alone["rates"] == pytest.approx([0.01 * factor for factor in factors])
    assert alone["recompilations"] == []
    for found in run.said("end"):
        assert found.pop("ids") == pytest.approx(alone["ids"])
        assert found == {name: value for name, value in alone.items() if name != "ids"}
