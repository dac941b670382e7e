"""How a job is asked to end by a signal, again and again: alone, or two processes together.

A plan names the signal, then the moment: ``SIGTERM time:0.2``, ``SIGINT on_epoch_logged:2``. For
two processes it begins with those that get it: ``01/SIGTERM time:0.2``.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import chaos_zoo
import pair_zoo

CODES = {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 143, "SIGHUP": 143}


class SignalCampaign(chaos_zoo.Campaign):
    """Asks a job to end by plans.

    Attributes:
        seconds: From each signal to the end of the process.
    """

    cut = tuple({*CODES.values()})

    def __init__(self, *args: object) -> None:
        self.seconds: list[float] = []
        super().__init__(*args)  # type: ignore[arg-type]

    def start(self, folder: Path, plan: str) -> tuple[int, int]:
        """Starts the job once; returns its exit code and its process."""
        name, _, moment = plan.partition(" ")
        timed = moment.startswith("time:")
        fault = f"{name}@{moment}" if plan and not timed else ""
        command = [sys.executable, str(chaos_zoo.WORKER), str(folder)]
        sent = None
        with (folder / "stderr.txt").open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [*command, json.dumps(asdict(self.job))], text=True, stderr=log,
                env=chaos_zoo.environ(fault, self.job.devices, folder),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            )  # fmt: skip
            try:
                if timed:
                    sent = send_after_training([process], [process], name, moment)
                process.communicate(timeout=chaos_zoo.TIMEOUT_S)
            finally:
                process.kill()
                process.wait()
        if self.came_late(folder, name, [process]):
            return self.start(folder, "")
        self.note(folder, plan, process.returncode, sent)
        return process.returncode, process.pid

    def compared(self, folder: Path) -> list[str]:
        """Returns how a run differs; the save of a signal may be kept in place of an older one."""
        record, want = chaos_zoo.record_of(folder), self.reference["kept"]
        asked = {str(x["step"]) for x in chaos_zoo.journal(folder) if x["what"] == "trained"}
        added = sorted(set(record["kept"]) - set(want), key=int)
        lacking = sorted(set(want) - set(record["kept"]), key=int)
        pairs = list(zip(added, lacking, strict=False))
        newer = len(added) == len(lacking) and all(int(a) > int(b) for a, b in pairs)
        if newer and set(added) <= asked:
            record["kept"] = want
        return chaos_zoo.differences(self.reference, record)

    def came_late(self, folder: Path, name: str, members: Sequence[subprocess.Popen[str]]) -> bool:
        """Says whether a signal has met a process that had no step left to take."""
        for index, member in enumerate(members):
            said = [x for x in chaos_zoo.journal(folder, index) if x["pid"] == member.pid]
            ended = max((line["step"] for line in said), default=0) == self.job.steps
            if name and member.returncode == -signal.Signals[name] and ended:
                return True
        return False

    def note(self, folder: Path, plan: str, code: int, sent: float | None) -> None:
        """Keeps how long it took, and what is wrong with the code."""
        if not plan or code == 0:  # it had ended before
            return
        name = plan.rpartition("/")[2].partition(" ")[0]
        if code != CODES[name]:
            self.report.problems.append(f"{plan}: ended with {code}\n{chaos_zoo.tail(folder)}")
        if sent is None:
            sent = max(
                line["at"]
                for index in (0, 1)
                for line in chaos_zoo.journal(folder, index)
                if line["what"] == "kill"
            )
        self.seconds.append(time.time() - sent)


class SignalPairCampaign(SignalCampaign, pair_zoo.PairCampaign):
    """Asks one of two processes to end, or both; all of them do, at the same step."""

    def start(self, folder: Path, plan: str) -> tuple[int, int]:
        """Starts the job once; returns how it ended and the main process."""
        who, _, rest = plan.rpartition("/")
        name, _, moment = rest.partition(" ")
        timed = moment.startswith("time:")
        faults, sent = ["", ""], None
        for index in "" if timed else who:
            faults[int(index)] = f"{name}@{moment}"
        with self._both(folder, faults) as members:
            if timed:
                asked = [members[int(index)] for index in who]
                sent = send_after_training(members, asked, name, moment)
            for member in members:
                member.communicate(timeout=chaos_zoo.TIMEOUT_S)
            codes = [member.returncode for member in members]
        if self.came_late(folder, name, members):
            return self.start(folder, "")
        if codes[0] != codes[1]:
            self.report.problems.append(f"{plan}: ended with {codes}\n{chaos_zoo.tail(folder)}")
        ends = [chaos_zoo.journal(folder, index)[-1] for index in (0, 1)]
        if ends[0]["step"] != ends[1]["step"]:
            self.report.problems.append(f"{plan}: ended at {ends}")
        self.note(folder, plan, codes[0], sent)
        return codes[0], members[0].pid


def send_after_training(
    waited: list[subprocess.Popen[str]], asked: list[subprocess.Popen[str]], name: str, moment: str
) -> float:
    """Sends a signal some time after training has begun; returns when that was."""
    for process in waited:
        chaos_zoo.wait_for_training(process)
    time.sleep(float(moment.removeprefix("time:")))
    for process in asked:
        process.send_signal(signal.Signals[name])
    return time.time()
