"""How the two processes of one job are killed: one at its moment, the other soon after it."""

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

import chaos_zoo

LATE_S = 0.3
"""How long the other process may outlive the one that was killed, at most."""


class PairCampaign(chaos_zoo.Campaign):
    """Kills a job of two processes; a plan names the process first, as ``1/arrays:2``."""

    def start(self, folder: Path, plan: str) -> tuple[int, int]:
        """Starts the job once; returns how it ended and the main process."""
        who, _, moment = plan.rpartition("/")
        kind, _, delay = moment.partition(":")
        faults = ["", ""]
        timed = kind in ("time", "start")
        if plan and not timed:
            faults[int(who)] = moment
        with self._both(folder, faults) as members:
            if plan:
                first = members[int(who)]
                if kind == "time":
                    chaos_zoo.wait_for_training(first)
                if timed:
                    time.sleep(float(delay))
                    first.kill()
                deadline = time.monotonic() + chaos_zoo.TIMEOUT_S
                while first.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.005)
                if first.returncode == chaos_zoo.KILLED:
                    time.sleep(self.draw.uniform(0, LATE_S))
                    members[1 - int(who)].kill()
            for member in members:
                member.communicate(timeout=chaos_zoo.TIMEOUT_S)
            codes = [member.returncode for member in members]
        if plan and codes[int(who)] == chaos_zoo.KILLED:
            return chaos_zoo.KILLED, members[0].pid
        return next((code for code in codes if code != 0), 0), members[0].pid

    @contextlib.contextmanager
    def _both(self, folder: Path, faults: list[str]) -> Iterator[list[subprocess.Popen[str]]]:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{listener.getsockname()[1]}"
        with contextlib.ExitStack() as stack:
            logs = [
                stack.enter_context((folder / name).open("a", encoding="utf-8"))
                for name in ("stderr.txt", "stderr.1.txt")
            ]
            yield [
                stack.enter_context(
                    self._member(folder, index, faults[index], address, logs[index])
                )
                for index in (0, 1)
            ]

    @contextlib.contextmanager
    def _member(
        self, folder: Path, index: int, fault: str, address: str, log: TextIO
    ) -> Iterator[subprocess.Popen[str]]:
        joined = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
        }
        process = subprocess.Popen(
            [sys.executable, str(chaos_zoo.WORKER), str(folder), json.dumps(asdict(self.job))],
            env={**chaos_zoo.environ(fault, 1, folder), **joined}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.wait()
