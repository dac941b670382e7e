"""Do processes end cleanly with an error that all of them raise, and fail where only one does?"""

from pathlib import Path
from typing import Any

import process_zoo
import pytest

pytestmark = pytest.mark.processes

NAMES = ("hook-01", "loader-01", "hook-1")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gives what two processes recorded of each scenario, one after the other."""
    folder: Path = tmp_path_factory.mktemp("clean")
    run = process_zoo.run_processes("clean_ends.py", folder, 2, 1, *NAMES).ended_well()
    return {name: [one["value"] for one in run.said(name)] for name in NAMES}


@pytest.mark.parametrize(("name", "detail"), [("hook-01", "hook"), ("loader-01", "data")])
def test_an_error_of_all_ends_all_with_a_save_of_the_same_step(
    said: Any, name: str, detail: str
) -> None:
    first, second = said[name]
    assert first["raised"] is second["raised"] is None
    assert first["stands"] == {**second["stands"], "ids": first["stands"]["ids"]}
    assert first["stands"]["reason"] == "EXCEPTION"
    assert first["stands"]["detail"] == f"Enough('{detail}')"
    assert first["steps"][-1] == first["stands"]["step"][0] == first["stands"]["step"][1] > 2


def test_an_error_of_one_is_a_failure_of_all(said: Any) -> None:
    first, second = said["hook-1"]
    assert (first["raised"], second["raised"]) == ("PeerError", "Enough")
    assert first["stands"]["reason"] == second["stands"]["reason"] == "FAILED"
    assert first["steps"] == second["steps"] and first["steps"][-1] == first["stands"]["step"][0]
