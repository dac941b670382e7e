"""How do n processes on this machine become one run? Started, watched and ended together.

Synopsis:
    run_local([sys.executable, "train.py"], num_processes=2, devices_per_process=4)

    python -m xtrainer.launch -n 2 --devices-per-process 4 -- train.py --config.num_epochs=3
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from xtrainer.errors import ConfigError
from xtrainer.launch.members import LocalRun

_DEVICES_FLAG = "--xla_force_host_platform_device_count"
_LOOPBACK = "127.0.0.1"
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # what gRPC reads
_GUARD_S = 10.0


def run_local(
    command: Sequence[str],
    num_processes: int,
    devices_per_process: int | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    failure_grace_s: float = 5.0,
    stop_grace_s: float = 60.0,
) -> int:
    """Runs one command in several processes on this machine and returns its exit code.

    The processes find each other by ``xtrainer.initialize()``. Each line that they write comes out
    at once, behind the number of its process: ``[1] epoch 3``. The first process that fails ends
    the others, and its last lines on stderr are shown last. A process that ends with 0 leaves the
    others running. Ctrl-C and SIGTERM are passed on to every process, which may then save; a
    second one ends them. Each process has a process group of its own and no input; whatever is
    left of the groups at the end is killed, also when the launcher itself is.

    Args:
        command: The program and its arguments, as in ``[sys.executable, "train.py"]``.
        num_processes: How many processes the run has.
        devices_per_process: How many virtual CPU devices each process gets; the run is then on the
            CPU. None leaves the choice of devices to JAX.
        environ: Variables to set for the processes, on top of those of this one.
        timeout_s: How long the run may take; None for as long as it wants.
        failure_grace_s: How long the others may take to end by themselves, once asked by SIGTERM.
        stop_grace_s: How long all may take to end after Ctrl-C or SIGTERM.

    Returns:
        0 if every process ended with 0; otherwise the exit code of the first that failed, 128 + n
        for signal n; 124 for a run that took too long.

    Raises:
        ConfigError: For arguments that cannot work, or a command that cannot be started.
    """
    times = {
        "timeout_s": timeout_s,
        "failure_grace_s": failure_grace_s,
        "stop_grace_s": stop_grace_s,
    }
    problems = _problems(command, num_processes, devices_per_process, times)
    if problems:
        raise ConfigError(problems)
    address = f"{_LOOPBACK}:{_free_port()}"
    run = LocalRun(num_processes, failure_grace_s, stop_grace_s)
    with _caught_signals() as signals, _watchdog(failure_grace_s) as watch:
        try:
            for index in range(num_processes):
                variables = _environ(index, num_processes, address, devices_per_process)
                watch(run.start(command, variables | dict(environ or {})))
            return run.wait(signals, timeout_s)
        finally:
            run.close()


def _problems(
    command: Sequence[str], count: int, devices: int | None, times: Mapping[str, float | None]
) -> list[str]:
    found = []
    if not hasattr(os, "killpg"):
        found.append("run_local needs process groups, which this system lacks. Use Linux or macOS.")
    if isinstance(command, str) or not command or not all(isinstance(c, str) for c in command):
        found.append(
            f"command: found {command!r}, expected the program and its arguments as strings, for "
            "example [sys.executable, 'train.py']."
        )
    if not isinstance(count, int) or count < 1:
        found.append(f"num_processes: found {count!r}, expected a whole number >= 1.")
    if devices is not None and (not isinstance(devices, int) or devices < 1):
        found.append(f"devices_per_process: found {devices!r}, expected a whole number >= 1.")
    for name, seconds in times.items():
        if seconds is not None and not seconds > 0:
            found.append(f"{name}: found {seconds!r}, expected seconds > 0.")
    return found


def _free_port() -> int:
    """Returns a port that is free now; it could be taken until process 0 listens there."""
    with socket.socket() as listener:
        listener.bind((_LOOPBACK, 0))
        return listener.getsockname()[1]


def _environ(index: int, count: int, address: str, devices: int | None) -> dict[str, str]:
    variables = dict(os.environ) | {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(index),
    }
    variables.setdefault("PYTHONUNBUFFERED", "1")  # else lines come in blocks, or not at all
    if any(variables.get(name) for name in _PROXIES):
        # Or the processes would look for each other behind the proxy, until the timeout.
        direct = variables.get("no_grpc_proxy") or variables.get("no_proxy") or ""
        variables["no_grpc_proxy"] = ",".join(filter(None, [direct, _LOOPBACK]))
    if devices is not None:
        flags = variables.get("XLA_FLAGS", "").split()
        flags = [flag for flag in flags if flag.partition("=")[0] != _DEVICES_FLAG]
        variables["XLA_FLAGS"] = " ".join([*flags, f"{_DEVICES_FLAG}={devices}"])
        variables["JAX_PLATFORMS"] = "cpu"
    return variables


@contextlib.contextmanager
def _caught_signals() -> Iterator[list[int]]:
    """Gives a list that Ctrl-C and SIGTERM are put into; only a main thread can have them."""
    received: list[int] = []
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                previous[number] = signal.signal(number, lambda n, _: received.append(n))
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def _watchdog(grace_s: float) -> Iterator[Callable[[object], None]]:
    """Gives a function that puts a process under a guard that outlives the launcher."""
    program = str(Path(__file__).with_name("watchdog.py"))
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", program, str(grace_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )

    def tell(line: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # the guard is gone
            print(line, file=guard.stdin, flush=True)

    try:
        yield tell
    finally:
        tell("done")
        with contextlib.suppress(subprocess.TimeoutExpired):
            guard.communicate(timeout=_GUARD_S)
        guard.kill()
        guard.wait()
