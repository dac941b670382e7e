"""How a test starts the processes of a run, waits for their end and reads what they recorded."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
WORKERS = Path(__file__).resolve().parent / "workers"
PATHS = (ROOT, TESTS, ROOT / "experiments", WORKERS)

TIMEOUT_S = 240.0
"""For runs that should end by themselves; nothing is measured by it."""

_LAUNCHERS = ("SLURM_", "OMPI_", "JAX_COORDINATOR", "JAX_NUM_PROC", "JAX_PROCESS_ID")
_TAIL = 4000


@dataclass(frozen=True)
class Ended:
    """A process that has ended.

    Attributes:
        code: Its exit code, negative for a signal.
        out: What it wrote to stdout.
        err: What it wrote to stderr.
        at: When it was gone, in seconds of ``time.time()``; up to 0.05 s late.
    """

    code: int
    out: str
    err: str
    at: float


@dataclass(frozen=True)
class Run:
    """Processes that have ended, and the folder with what they recorded."""

    members: list[Ended]
    folder: Path

    @property
    def codes(self) -> list[int]:
        """The exit codes, by process."""
        return [member.code for member in self.members]

    def said(self, name: str) -> list[dict[str, Any]]:
        """Returns what each process recorded under a name.

        Raises:
            AssertionError: If one recorded nothing; with the end of its stderr.
        """
        found = []
        for index, member in enumerate(self.members):
            path = self.folder / f"{name}.{index}.json"
            if not path.exists():
                raise AssertionError(f"process {index}: no {name!r}\n{member.err[-_TAIL:]}")
            found.append(json.loads(path.read_text(encoding="utf-8")))
        return found

    def stamp(self) -> float:
        """Returns when the first process failed, in seconds of ``time.time()``."""
        return min(float(path.read_text()) for path in self.folder.glob("failed.*"))

    def ended_well(self) -> "Run":
        """Returns this run.

        Raises:
            AssertionError: If a process did not end with 0; with the end of its stderr.
        """
        for index, member in enumerate(self.members):
            if member.code != 0:
                raise AssertionError(f"process {index}: {member.code}\n{member.err[-_TAIL:]}")
        return self


def run_processes(
    script: str,
    folder: Path,
    count: int,
    devices: int,
    *arguments: str,
    timeout_s: float = TIMEOUT_S,
    optimized: bool = False,
    left: Collection[int] = (),
) -> Run:
    """Runs a worker in several processes of one run and returns how they ended.

    Args:
        script: A file of ``workers/``; its arguments are ``folder`` and ``arguments``.
        folder: Where the processes record what they see; it is made.
        count: How many processes.
        devices: Virtual CPU devices of each.
        arguments: Further arguments.
        timeout_s: All are killed after this time.
        optimized: Whether XLA takes its time to make the programs fast.
        left: Processes that cannot end: they are killed when the others have.

    Raises:
        AssertionError: If they take longer; with the ends of what they wrote.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(WORKERS / script), str(folder), *arguments]
    address = f"127.0.0.1:{_free_port()}"
    flags = f"--xla_force_host_platform_device_count={devices}"
    if not optimized:
        flags += " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    with contextlib.ExitStack() as stack:
        logs = [[_log(stack, folder, kind, i) for kind in ("out", "err")] for i in range(count)]
        members = [
            stack.enter_context(_started(command, _environ(i, count, flags, address), *logs[i]))
            for i in range(count)
        ]
        ends = _wait(members, left, time.monotonic() + timeout_s)
    texts = [[Path(log.name).read_text("utf-8", "replace") for log in pair] for pair in logs]
    if None in ends:
        tails = "\n".join(
            f"[{i}] {out[-_TAIL:]}{err[-_TAIL:]}" for i, (out, err) in enumerate(texts)
        )
        raise AssertionError(f"{script} {arguments}: not ended after {timeout_s} s\n{tails}")
    return Run(
        [
            Ended(member.returncode, out, err, float(end or 0))
            for member, (out, err), end in zip(members, texts, ends, strict=True)
        ],
        folder,
    )


def _wait(
    members: list[subprocess.Popen[str]], left: Collection[int], deadline: float
) -> list[float | None]:
    """Returns when each process was gone, None for one that is still there at the deadline."""
    ends: list[float | None] = [None] * len(members)
    while None in ends and time.monotonic() < deadline:
        for index, member in enumerate(members):
            if ends[index] is None and member.poll() is not None:
                ends[index] = time.time()
        if all(end is not None or index in left for index, end in enumerate(ends)):
            for index in left:
                members[index].kill()
        time.sleep(0.02)
    return ends


@contextlib.contextmanager
def _started(
    command: list[str], environ: dict[str, str], out: TextIO, err: TextIO
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=err, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _log(stack: contextlib.ExitStack, folder: Path, kind: str, index: int) -> TextIO:
    return stack.enter_context((folder / f"{kind}.{index}.txt").open("w", encoding="utf-8"))


def _environ(index: int, count: int, flags: str, address: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_LAUNCHERS) and not name.lower().endswith("_proxy")
    }
    joined = {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(index),
    }
    return {
        **kept,
        **(joined if count > 1 else {}),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "PYTHONPATH": os.pathsep.join(map(str, PATHS)),
        "PYTHONUNBUFFERED": "1",
    }


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
