"""Does a run listen on the network? Not alone; several processes, never on every address."""

import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, pathlib, sys
import xtrainer as xt
if "alone" not in sys.argv:
    xt.initialize()
import zoo
from xtrainer.launch import process_count

def listening():
    own = {os.readlink(path) for path in pathlib.Path("/proc/self/fd").iterdir() if path.exists()}
    for name in ("tcp", "tcp6", "udp", "udp6"):
        for line in pathlib.Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            is_open = fields[3] == "0A" or name.startswith("udp")
            if is_open and f"socket:[{fields[9]}]" in own:
                print("listens", name, fields[1].split(":")[0], flush=True)

class Look(xt.Callback):
    def on_training_step(self, *_):
        listening()

made = zoo.make_trainer(batch=zoo.classification_data(16))
made.callbacks.append(Look(xt.CallbackConfig(), made))
made.train_model(zoo.loader(), num_train_steps=2, num_epochs=None)
listening()
print("ended", process_count(), made.global_step, flush=True)
"""
LOOPBACK = {
    "0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F",
}  # fmt: skip


def said_by(command: list[str]) -> list[list[str]]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT / "tests")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    lines = [line.removeprefix("[0] ").removeprefix("[1] ") for line in done.stdout.splitlines()]
    return [line.split() for line in lines if line.startswith(("listens", "ended"))]


def own_name() -> set[str]:
    """Returns the addresses that the machine's own name leads to, where Gloo listens."""
    found = socket.getaddrinfo(socket.gethostname(), None)
    addresses = [socket.inet_pton(family, to[0].split("%")[0]) for family, *_, to in found]
    words = [struct.unpack(f"={len(packed) // 4}I", packed) for packed in addresses]
    return {"".join(f"{word:08X}" for word in parts) for parts in words}


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    path = tmp_path / "train.py"
    path.write_text(PROGRAM)
    return path


def test_a_process_alone_listens_nowhere(program: Path) -> None:
    assert said_by([sys.executable, str(program), "alone"]) == [["ended", "1", "2"]]


@pytest.mark.processes
def test_two_processes_of_one_machine_listen_on_no_other_address(program: Path) -> None:
    command = [sys.executable, "-m", "xtrainer.launch", "-n", "2", "--", str(program)]
    said = said_by(command)
    assert said.count(["ended", "2", "2"]) == 2
    hosts = {line[2] for line in said if line[0] == "listens"}
    assert hosts and hosts <= LOOPBACK | own_name()
