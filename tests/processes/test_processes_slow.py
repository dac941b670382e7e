"""Is a process that holds the others up named while the run goes on?"""

from pathlib import Path

import process_zoo
import pytest
import slow

pytestmark = pytest.mark.processes


@pytest.mark.parametrize(
    ("what", "who", "account"),
    [
        ("loader", 1, "data_wait"),
        pytest.param("callback", 0, "callbacks", marks=pytest.mark.chaos),
        pytest.param("nothing", 0, "", marks=pytest.mark.chaos),
    ],
)
def test_a_slow_process_is_named_and_not_ended(
    what: str, who: int, account: str, tmp_path: Path
) -> None:
    run = process_zoo.run_processes("slow.py", tmp_path, 2, 1, what, str(who))
    assert run.codes == [0, 0]
    assert [said["step"] for said in run.said("end")] == [slow.STEPS, slow.STEPS]
    said = run.members[0].err
    assert said.count(f"Process {who} (pid ") == (what != "nothing"), said
    if account:
        assert "holds the others up: it spends " in said
        assert f"most of it in '{account}', the others " in said
    assert "holds the others up" not in run.members[1].err
