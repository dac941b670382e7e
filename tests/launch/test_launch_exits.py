"""Does a program end with the code of the error that nobody has caught? Real processes."""

import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize(
    ("codes", "code"), [((3,), 3), ((143,), 143), ((143, 0), 0), ((0, 130), 130), ((1,), 0)]
)
def test_a_program_of_runs_ends_with_the_code_of_its_newest_run(
    codes: tuple[int, ...], code: int
) -> None:
    ends = "\n".join(f"exits.note_end_of_run({number})" for number in codes)
    result = run(f"from xtrainer.launch import exits\n{ends}\nprint('to the end')")
    assert result.returncode == code, result.stderr
    assert "to the end" in result.stdout and "said before" in result.stdout


@pytest.mark.parametrize(("code", "expected"), [(3, 0), (143, 143)])
def test_a_program_that_is_not_there_for_its_runs_has_the_code_of_a_signal_only(
    code: int, expected: int
) -> None:
    program = f"from xtrainer.launch import exits; exits.note_end_of_run({code})"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == expected


def test_an_error_counts_more_than_a_run() -> None:
    body = "from xtrainer.launch import exits\nexits.note_end_of_run(143)\n"
    assert run(body + "raise errors.NoUsableCheckpointError('all damaged')").returncode == 5


TRAINING = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
import probes, zoo
import xtrainer as xt
xt.initialize()
trainer = probes.traced()
trainer.train_model(probes.numbered(3, bad=(2,)), num_epochs=1)
print(trainer.stop_reason.name)
"""


def test_a_program_whose_steps_are_not_finite_ends_with_3() -> None:
    tests = Path(__file__).resolve().parents[1]
    program = TRAINING.format(paths=[str(tests.parent), str(tests)])
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 3, result.stderr
    assert "NONFINITE" in result.stdout


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
