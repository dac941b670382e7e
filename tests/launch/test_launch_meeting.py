"""Does a process that cannot join the others end in time, and name the address?"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from xtrainer.errors import ConfigError, PeerError
from xtrainer.launch import exits, meeting
from xtrainer.launch.meeting import check_port

JOIN = """
import sys, xtrainer as xt
xt.initialize(sys.argv[1], 2, int(sys.argv[2]), platform="cpu", timeout_s=2)
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A program that listens at a port."""
    with socket.socket() as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as JAX does
        found.bind(("127.0.0.1", 0))
        found.listen()
        yield found


def join(address: str, process: int) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    command = [sys.executable, "-c", JOIN, address, str(process)]
    return subprocess.Popen(command, env=kept, stderr=subprocess.PIPE, text=True)


def test_processes_that_nobody_joins_end_in_time_and_name_the_address(
    listener: socket.socket,
) -> None:
    port = listener.getsockname()[1]
    listener.close()
    begun = time.monotonic()
    # Process 0 waits for the other; and where it was never started, process 1 for it.
    waiting = [join(f"127.0.0.1:{port}", 0), join(f"127.0.0.1:{port - 1}", 1)]
    for process, started in enumerate(waiting):
        error = started.communicate(timeout=60)[1]
        assert started.returncode == 1, error
        place = f"127.0.0.1:{port - process}"
        assert f"PeerError: Process {process} has waited 2 s to join the run at {place}" in error
        assert "Check failure stack trace" not in error  # JAX's way to end
    assert time.monotonic() - begun < 20.0  # with the time in which JAX is imported


def test_a_port_that_is_taken_is_named(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    for host in ("127.0.0.1", "localhost", "10.1.2.3"):
        with pytest.raises(ConfigError, match=f"another program that listens at {host}:{port}"):
            check_port(f"{host}:{port}")


def test_a_free_port_is_taken_for_one_also_after_a_connection(listener: socket.socket) -> None:
    address = listener.getsockname()
    with socket.create_connection(address):
        listener.accept()[0].close()  # the side that closes first keeps the port for a while
    listener.close()
    check_port(f"127.0.0.1:{address[1]}")


def test_who_has_joined_in_time_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(meeting, "leave_now", left.append)
    with meeting.meeting("host:1", 0, 2, timeout_s=0.1):
        pass
    with pytest.raises(PeerError), meeting.meeting("host:1", 0, 2, timeout_s=0.1):
        raise PeerError("refused")
    time.sleep(0.3)
    assert left == []


def test_what_is_not_known_is_not_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left: list[int] = []
    monkeypatch.setattr(meeting, "leave_now", left.append)
    with meeting.meeting(None, None, None, timeout_s=0.05):
        end = time.monotonic() + 5.0
        while not left and time.monotonic() < end:
            time.sleep(0.01)
    assert left == [exits.ERROR_CODE]
    said = capsys.readouterr().err
    assert "This process has waited 0.05 s to join the run at the address that JAX has" in said
    assert "expected all processes to come there" in said
