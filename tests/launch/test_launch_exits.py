"""Does a program end with the code of the error that nobody has caught? Real processes."""

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys
atexit.register(lambda: print("last words", flush=True))
import xtrainer
from xtrainer import errors
xtrainer.initialize()
atexit.register(lambda: print("said before", flush=True))
{body}
"""


def run(body: str) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(body=body)
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("", 0),
        ("sys.exit(7)", 7),
        ("raise ValueError('plain')", 1),
        ("raise errors.ConfigError('mistake')", 1),
        ("raise errors.CheckpointWriteError('full')", 4),
        ("raise errors.NoUsableCheckpointError('all damaged')", 5),
    ],
)
def test_the_code_is_that_of_the_error(body: str, code: int) -> None:
    result = run(body)
    assert result.returncode == code
    assert "said before" in result.stdout
    if "raise" in body:
        assert "Traceback" in result.stderr
        assert body.split("'")[1] in result.stderr


def test_an_error_that_is_caught_has_no_code() -> None:
    result = run(
        "try:\n    raise errors.NoUsableCheckpointError('x')\nexcept OSError: pass\n"
        "except ValueError:\n    print('on')"
    )
    assert (result.returncode, result.stdout.split()[0]) == (0, "on")


STUCK = """
import threading, time
from xtrainer.launch.exits import leave_in_any_case
threading.Thread(target=time.sleep, args=(100,)).start()
leave_in_any_case(4, 0.2)
leave_in_any_case(4, 100.0)  # one thread is enough
print("the end", flush=True)
"""


@pytest.mark.parametrize(
    ("body", "code"),
    [("", 4), ("raise errors.HangError('x')", 124), ("raise ValueError('plain')", 1)],
)
def test_a_thread_that_is_stuck_does_not_hold_up_the_end(body: str, code: int) -> None:
    result = run(STUCK + body)  # within its timeout
    assert (result.returncode, result.stdout.split()[:2]) == (code, ["the", "end"])


def test_where_no_thread_is_stuck_the_program_ends_as_it_would() -> None:
    result = run("from xtrainer.launch.exits import leave_in_any_case\nleave_in_any_case(4, 60.0)")
    assert result.returncode == 0
    assert "last words" in result.stdout
