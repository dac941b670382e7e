"""Would these tests see it if one of the promises were broken? Each is broken here on purpose."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chaos_zoo
import mutants
import pytest

pytestmark = pytest.mark.slow  # of the tests themselves: once before a release

CHAOS = Path(__file__).parent
FINDS = {
    "no_sync": ("test_chaos_durable.py", "synced_before"),
    "no_check": ("test_chaos_corruption.py", "every_damage or every_single_bit or whole"),
    "produced": ("test_chaos_kills.py", "byte_for_byte and accumulate_1"),
    "best_is_nan": ("test_chaos_corruption.py", "not_a_number"),
    "swallowed": ("test_chaos_disk.py", "limit_20000 and (at_once or more_failures)"),
}
"""The tests that are asked, by file and words of their names."""


def outcome(mutant: str, file: str, words: str) -> tuple[int, list[str], str]:
    """Returns the exit code of tests under a mutant, those that failed, and what was printed."""
    paths = os.pathsep.join(map(str, (CHAOS.parents[1], CHAOS.parent, CHAOS)))
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "mutants", "-p",
               "no:cacheprovider", str(CHAOS / file), "-k", words]  # fmt: skip
    environ = {**os.environ, "PYTHONPATH": paths, mutants.VARIABLE: mutant}
    for name in [name for name in environ if name.startswith("PYTEST_")]:
        del environ[name]
    done = subprocess.run(
        command, env=environ, cwd=CHAOS.parents[1], capture_output=True, text=True, check=False,
        timeout=2 * chaos_zoo.TIMEOUT_S,
    )  # fmt: skip
    failed = re.findall(r"^FAILED (?:\S*::)?(\S+)", done.stdout, re.MULTILINE)
    return done.returncode, failed, done.stdout + done.stderr


def test_every_mutant_is_asked_about() -> None:
    assert FINDS.keys() == mutants.MUTANTS.keys()


@pytest.mark.parametrize("mutant", FINDS)
def test_a_broken_promise_is_found(
    mutant: str, record_property: Callable[[str, Any], None]
) -> None:
    code, failed, text = outcome(mutant, *FINDS[mutant])
    assert code == 1 and failed, text[-3000:]
    record_property("table", f"{mutant}: found by {', '.join(failed)}")
