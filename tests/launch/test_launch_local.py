"""Several processes on this machine: what they see, what they say, and how they end together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xtrainer.errors import ConfigError
from xtrainer.launch.local import run_local

pytestmark = pytest.mark.processes

LAUNCH = (sys.executable, "-m", "xtrainer.launch")
ROOT = Path(__file__).resolve().parents[2]
START = "import os, signal, subprocess, sys, time; i = os.environ['JAX_PROCESS_ID']\n"


def run(program: str, count: int = 2, **settings) -> int:
    return run_local([sys.executable, "-c", START + program], count, **settings)


def lines_of(text: str) -> list[str]:
    return sorted(text.splitlines())


def wait_for(condition, what: str, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_lines_come_out_on_their_own_stream_behind_the_number_of_their_process(capfd):
    assert run("print('out'); print('err', file=sys.stderr)", 3) == 0
    out, err = capfd.readouterr()
    assert lines_of(out) == ["[0] out", "[1] out", "[2] out"]
    assert lines_of(err) == ["[0] err", "[1] err", "[2] err"]


def test_lines_that_are_written_in_pieces_come_out_whole(capfd):
    program = """
for number in range(5):
    for piece in ('a', 'b', 'c\\n'):
        os.write(1, piece.encode()); time.sleep(0.01)
os.write(1, b'no end')
"""
    assert run(program) == 0
    expected = [f"[{i}] {line}" for i in range(2) for line in [*["abc"] * 5, "no end"]]
    assert lines_of(capfd.readouterr().out) == sorted(expected)


def test_lines_come_out_while_the_process_runs(tmp_path):
    program = f"""
print('early')
while not os.path.exists({str(tmp_path / "seen")!r}): time.sleep(0.01)
"""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from xtrainer.launch.local import run_local
run_local([sys.executable, "-c", {START + program!r}], 1, timeout_s=30)
"""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    launcher = subprocess.Popen(
        [sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, text=True
    )
    try:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == "[0] early\n"
        assert launcher.poll() is None
        (tmp_path / "seen").touch()
        assert launcher.wait(20) == 0
    finally:
        launcher.kill()
        launcher.communicate()


def test_a_progress_bar_that_draws_itself_anew_is_lines_and_windows_ends_are_one(capfd):
    assert run("os.write(1, b'\\r 10%\\r 20%\\r 30%\\nnext\\r\\nlast\\n')", 1) == 0
    assert capfd.readouterr().out.splitlines() == [
        "[0]  10%",
        "[0]  20%",
        "[0]  30%",
        "[0] next",
        "[0] last",
    ]


def test_bytes_that_are_no_text_pass_unchanged(capfdbinary):
    assert run("os.write(1, b'\\xff\\xfe\\n')", 1) == 0
    assert capfdbinary.readouterr().out == b"[0] \xff\xfe\n"


SHOW = "print(*[os.environ.get(n) for n in ({})], sep='|')"


def test_processes_are_told_where_to_meet_and_who_they_are(capfd):
    names = "'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'"
    assert run(SHOW.format(names)) == 0
    first, second = lines_of(capfd.readouterr().out)
    address = first.removeprefix("[0] ").split("|")[0]
    assert address.startswith("127.0.0.1:")
    assert first == f"[0] {address}|2|0"
    assert second == f"[1] {address}|2|1"


def test_virtual_devices_keep_the_other_flags_and_choose_the_cpu(capfd, monkeypatch):
    flag = "--xla_force_host_platform_device_count"
    monkeypatch.setenv("XLA_FLAGS", f"--xla_a=1 {flag}=8 --xla_b=2")
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert run(SHOW.format("'XLA_FLAGS', 'JAX_PLATFORMS'"), 1, devices_per_process=4) == 0
    assert capfd.readouterr().out == f"[0] --xla_a=1 --xla_b=2 {flag}=4|cpu\n"


def test_without_virtual_devices_the_flags_stay(capfd, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert run(SHOW.format("'XLA_FLAGS', 'JAX_PLATFORMS'"), 1) == 0
    assert capfd.readouterr().out == "[0] --xla_a=1|cuda\n"


def test_given_variables_come_on_top(capfd):
    assert run("print(os.environ['LEVEL'])", 1, environ={"LEVEL": "3"}) == 0
    assert capfd.readouterr().out == "[0] 3\n"


def test_processes_meet_past_a_proxy(capfd, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://10.0.0.1:3128")
    monkeypatch.setenv("no_proxy", "intern")
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    assert run(SHOW.format("'no_grpc_proxy', 'no_proxy'"), 1) == 0
    assert capfd.readouterr().out == "[0] intern,127.0.0.1|intern\n"


def test_a_failure_ends_the_others_and_its_last_lines_are_shown_last(capfd, tmp_path):
    program = f"""
if i == '0':
    open({str(tmp_path / "zero")!r}, 'w').write(str(os.getpid()))
    print('I wait', file=sys.stderr); time.sleep(60)
while not os.path.exists({str(tmp_path / "zero")!r}): time.sleep(0.01)
raise SystemExit('broken: the data') if i == '2' else time.sleep(60)
"""
    start = time.monotonic()
    assert run(program, 3) == 1
    assert time.monotonic() - start < 10
    assert not is_alive(int((tmp_path / "zero").read_text()))
    lines = capfd.readouterr().err.splitlines()
    assert "[launch] process 2 of 3 ended with exit code 1; the others are ended" in lines
    assert lines[-2:] == [
        "[launch] process 2 of 3 ended with exit code 1; its last lines on stderr:",
        "[2] broken: the data",
    ]


def test_the_exit_code_is_that_of_the_process_that_failed():
    assert run("sys.exit(7) if i == '1' else time.sleep(60)") == 7


def test_of_two_failures_the_first_counts(capfd, tmp_path):
    program = f"""
first = {str(tmp_path / "first")!r}
if i == '1':
    subprocess.Popen(['sleep', '20'])  # as a worker that loads data: it keeps the pipes open
    open(first, 'w').write(str(os.getpid())); sys.exit('cause')
while not (os.path.exists(first) and open(first).read()): time.sleep(0.001)
state = lambda: open(f'/proc/{{open(first).read()}}/stat').read().rpartition(')')[2].split()[0]
while os.path.exists('/proc/self') and state() != 'Z': time.sleep(0.001)
time.sleep(0.01)
os.write(2, b'consequence'); os._exit(2)
"""
    assert run(program) == 1
    assert capfd.readouterr().err.splitlines()[-1] == "[1] cause"


def test_a_process_that_dies_of_a_signal_gives_its_number_and_name(capfd):
    assert run("os.kill(os.getpid(), signal.SIGKILL) if i == '1' else time.sleep(60)") == 137
    last = capfd.readouterr().err.splitlines()[-1]
    assert "process 1 of 2 was ended by SIGKILL" in last
    assert "wrote nothing to stderr" in last


def test_a_process_that_will_not_end_is_killed_after_the_grace(capfd, tmp_path):
    program = f"""
if i == '0':
    signal.signal(signal.SIGTERM, lambda *_: print('no'))
    open({str(tmp_path / "deaf")!r}, 'w').close()
    while True: time.sleep(0.1)
while not os.path.exists({str(tmp_path / "deaf")!r}): time.sleep(0.01)
sys.exit(3)
"""
    start = time.monotonic()
    assert run(program, failure_grace_s=0.5) == 3
    assert 0.5 < time.monotonic() - start < 10
    assert capfd.readouterr().out == "[0] no\n"


def test_an_early_end_without_failure_leaves_the_others_running(capfd):
    assert run("time.sleep(0.5 * int(i)); print('done')") == 0
    assert capfd.readouterr().out.splitlines() == ["[0] done", "[1] done"]


def test_a_run_that_takes_too_long_is_ended(capfd):
    start = time.monotonic()
    assert run("time.sleep(60)", timeout_s=0.5) == 124
    assert time.monotonic() - start < 10
    assert "longer than 0.5 s" in capfd.readouterr().err


def test_what_a_process_leaves_behind_is_ended_and_not_waited_for(capfd):
    program = """
left = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
print(left.pid)
"""
    start = time.monotonic()
    assert run(program, 1) == 0
    assert time.monotonic() - start < 10
    left = int(capfd.readouterr().out.removeprefix("[0] "))
    wait_for(lambda: not is_alive(left), "the end of what was left")


def launcher_of(program: str, folder: Path, count: int = 2) -> subprocess.Popen:
    """Returns a launcher in a process of its own, after each of its processes has a file."""
    program = f"{START}open({str(folder)!r} + '/' + i, 'w').write(str(os.getpid()))\n{program}"
    script = folder / "script.py"
    script.write_text(program)
    launcher = subprocess.Popen(
        [*LAUNCH, "-n", str(count), "--failure-grace", "1", "--", str(script)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    files = [folder / str(index) for index in range(count)]
    try:
        wait_for(lambda: all(file.exists() and file.read_text() for file in files), "the start")
    except AssertionError:
        launcher.kill()
        raise AssertionError(launcher.communicate()) from None
    return launcher


STOPPABLE = """
def stop(number, frame):
    time.sleep(0.3 * int(i))
    print('saved', number)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop); signal.signal(signal.SIGINT, stop)
open(os.path.dirname(__file__) + '/ready' + i, 'w').close()
while True: time.sleep(0.05)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_reaches_all_and_is_waited_for(number, tmp_path):
    launcher = launcher_of(STOPPABLE, tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("ready*"))) == 2, "the handlers")
    launcher.send_signal(number)
    out, err = launcher.communicate(timeout=30)
    assert lines_of(out) == [f"[0] saved {int(number)}", f"[1] saved {int(number)}"]
    assert launcher.returncode == 0, err


def test_processes_that_die_of_the_signal_give_its_code_and_are_no_failure(tmp_path):
    launcher = launcher_of("time.sleep(60)", tmp_path)
    launcher.send_signal(signal.SIGTERM)
    _, err = launcher.communicate(timeout=30)
    assert launcher.returncode == 143
    assert [line for line in err.splitlines() if "passed on" not in line] == []


def test_a_second_signal_ends_processes_that_did_not_stop(tmp_path):
    deaf = "signal.signal(signal.SIGTERM, lambda *_: None)\n"
    deaf += "open(os.path.dirname(__file__) + '/ready' + i, 'w').close()\n"
    launcher = launcher_of(deaf + "while True: time.sleep(0.05)", tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("ready*"))) == 2, "the handlers")
    launcher.send_signal(signal.SIGTERM)
    time.sleep(1.3)
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=30)
    assert launcher.returncode == 137


def test_killing_the_launcher_ends_its_processes_and_their_children(tmp_path):
    program = """
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
open(os.path.dirname(__file__) + '/child' + i, 'w').write(str(child.pid))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
while True: time.sleep(0.05)
"""
    launcher = launcher_of(program, tmp_path)
    files = [tmp_path / name for name in ("0", "1", "child0", "child1")]
    wait_for(lambda: all(file.exists() and file.read_text() for file in files), "the children")
    launcher.kill()
    launcher.wait(20)
    for file in files:
        wait_for(lambda file=file: not is_alive(int(file.read_text())), f"the end of {file.name}")
    launcher.communicate(timeout=20)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_processes": 0}, "num_processes: found 0, expected a whole number >= 1"),
        ({"devices_per_process": 0}, "devices_per_process: found 0"),
        ({"command": "train.py"}, r"command: found 'train.py', expected the program and its argum"),
        ({"command": []}, r"command: found \[\]"),
        ({"timeout_s": 0}, "timeout_s: found 0, expected seconds > 0"),
        ({"stop_grace_s": -1.0}, r"stop_grace_s: found -1\.0"),
    ],
)
def test_arguments_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        run_local(**({"command": ["true"], "num_processes": 1} | settings))


def test_all_mistakes_are_told_together():
    with pytest.raises(ConfigError, match="2 mistakes"):
        run_local([], 0)


def test_a_program_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent' could not be started \(No such file"):
        run_local([str(tmp_path / "absent")], 2)
