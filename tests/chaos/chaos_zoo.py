"""How a test kills a job again and again, and what it finds in the journal afterwards."""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from job import Job

TESTS = Path(__file__).resolve().parents[1]
WORKER = Path(__file__).resolve().parent / "job.py"
TIMEOUT_S = 240.0
"""For one start of a job; nothing is measured by it."""
KILLED = -9
_TRIES = 3
"""New runs that a kill may be tried in, where a run has ended before it came."""
_TAIL = 3000
_MARK = "CHAOS_FOLDER"
_GONE_S = 10.0
"""Until processes that a killed one has started must have ended."""

Line = dict[str, Any]


class Death(NamedTuple):
    """A process that was killed.

    Attributes:
        plan: A moment and its count, ``time:S`` after training began or ``start:S`` after the
            process did.
        pid: Of the process.
        at: When it was gone, in seconds of ``time.time()``.
    """

    plan: str
    pid: int
    at: float


@dataclass(frozen=True)
class Kill:
    """What a kill has cost.

    Attributes:
        plan, pid, at: See :class:`Death`.
        last: The newest step that was taken, of any start.
        resumed: The step that the next start went on from.
        limit: Steps that may be lost at most.
    """

    plan: str
    pid: int
    at: float
    last: int
    resumed: int
    limit: int

    @property
    def lost(self) -> int:
        """Steps that have to be taken again."""
        return self.last - self.resumed


@dataclass
class Report:
    """What came of a campaign.

    Attributes:
        title: Its job.
        kills: Those that have come.
        problems: What differs from what was promised, a sentence for each.
        ends: Runs that were compared with the reference.
        wall_s: How long it took.
    """

    title: str
    kills: list[Kill] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    ends: int = 0
    wall_s: float = 0.0

    def table(self) -> str:
        """Returns a line for each kill, and a summary."""
        lines = [f"{'time':12} {'pid':>7} {'kill':32} {'last':>5} {'resumed':>7} {'lost':>4} limit"]
        for k in self.kills:
            clock = time.strftime("%H:%M:%S", time.gmtime(k.at)) + f"{k.at % 1:.3f}"[1:]
            lines.append(
                f"{clock:12} {k.pid:7} {k.plan:32} {k.last:5} {k.resumed:7} {k.lost:4} {k.limit:5}"
            )
        lost = sorted(k.lost for k in self.kills) or [0]
        lines.append(
            f"{self.title}: {len(self.kills)} kills in {self.wall_s:.0f} s, lost steps median "
            f"{lost[len(lost) // 2]}, most {lost[-1]}; {self.ends} runs compared, "
            f"{len(self.problems)} differences."
        )
        return "\n".join([*lines, *self.problems])


class Campaign:
    """Kills one job by plans; whenever a run has ended it is compared and another one begun.

    Args:
        folder: Made; every run has a folder in it.
        job: What runs.
        seed: Of the order of what is drawn; it is part of the report.
    """

    cut: ClassVar[tuple[int, ...]] = (KILLED,)
    """What a start ends with that was cut short, as planned."""

    def __init__(self, folder: Path, job: Job, seed: int = 0) -> None:
        self.folder, self.job = folder, job
        self.draw = random.Random(seed)
        self.report = Report(f"accumulate {job.accumulate}, {job.loader} loader, seed {seed}")
        self.round = 0
        self.reference = self._whole("reference")

    def run(self, plans: Sequence[str]) -> Report:
        """Returns what came of all kills."""
        start = time.monotonic()
        waiting = [(plan, _TRIES) for plan in plans]
        folder = self._new_run()
        begun: list[Death] = []
        while waiting:
            plan, tries = waiting.pop(0)
            code, pid = self.start(folder, plan)
            if code in self.cut:
                begun.append(Death(plan, pid, time.time()))
                continue
            self._ended(folder, begun, code)
            folder, begun = self._new_run(), []
            if tries == 1:
                self.report.problems.append(f"{plan}: has never come")
            else:
                waiting.insert(0, (plan, tries - 1))
        self._ended(folder, begun, self.start(folder, "")[0])
        self._start_once_more(folder)
        self.report.wall_s = time.monotonic() - start
        return self.report

    def _new_run(self) -> Path:
        self.round += 1
        folder = self.folder / f"run_{self.round}"
        folder.mkdir(parents=True)
        return folder

    def _whole(self, name: str) -> Line:
        folder = self.folder / name
        folder.mkdir(parents=True)
        code, _ = self.start(folder, "")
        if code != 0:
            raise AssertionError(f"{folder}: ended with {code}\n{tail(folder)}")
        return record_of(folder)

    def start(self, folder: Path, plan: str) -> tuple[int, int]:
        """Starts the job once; returns its exit code and its process."""
        command = [sys.executable, str(WORKER), str(folder), json.dumps(asdict(self.job))]
        kind, _, delay = plan.partition(":")
        timed = kind in ("time", "start")
        with (folder / "stderr.txt").open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                command, env=environ("" if timed else plan, self.job.devices, folder), text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
            try:
                if kind == "time":
                    wait_for_training(process)
                if timed:
                    _kill_after(process, float(delay))
                process.communicate(timeout=TIMEOUT_S)
            finally:
                process.kill()
                process.wait()
        return process.returncode, process.pid

    def _ended(self, folder: Path, begun: Sequence["Death"], code: int) -> None:
        """Compares a run that has ended with the reference."""
        problems = self.report.problems
        lines = journal(folder)
        kills, found = lost_work(lines, begun, self.job.save_every)
        self.report.kills += kills
        problems += [f"{folder.name}: {text}" for text in found]
        self.report.ends += 1
        if code != 0:
            problems.append(f"{folder.name}: ended with {code} after {begun}\n{tail(folder)}")
            return
        problems += [f"{folder.name}: {text}" for text in self.compared(folder)]

    def compared(self, folder: Path) -> list[str]:
        """Returns how a run that has ended differs from the reference."""
        return differences(self.reference, record_of(folder))

    def _start_once_more(self, folder: Path) -> None:
        """Starts a run that has ended: nothing is left to do."""
        before = len(journal(folder))
        code, _ = self.start(folder, "")
        said = [line["what"] for line in journal(folder)[before:]]
        if code != 0 or said != ["start", "training", "trained", "end"]:
            self.report.problems.append(f"a start after the end: {code}, {said}\n{tail(folder)}")
            return
        texts = self.compared(folder)
        self.report.problems += [f"after a start without a step: {text}" for text in texts]


def wait_for_training(process: "subprocess.Popen[str]") -> None:
    """Waits until a job has said that training begins; other lines may come before."""
    if process.stdout is not None:
        while process.stdout.readline() not in ("training\n", ""):
            pass


def _kill_after(process: "subprocess.Popen[str]", delay: float) -> None:
    """Reads what a job prints until it is killed: a full pipe would hold it up."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=delay)
    process.kill()


def environ(plan: str, devices: int, folder: Path) -> dict[str, str]:
    """Returns the environment of a job; its folder marks all processes that come of it."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 "
    flags += "--xla_cpu_use_fusion_emitters=false"
    return {
        **os.environ,
        "CHAOS": plan,
        _MARK: str(folder),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS, WORKER.parent))),
    }


def left_running(folder: Path) -> list[str]:
    """Returns the commands of all processes left of the jobs in a folder; waits for them to end."""
    mark = f"{_MARK}={folder}".encode()
    deadline = time.monotonic() + _GONE_S
    while True:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if mark in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().decode("utf-8", "replace"))
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def record_of(folder: Path) -> Line:
    """Returns what a job has recorded at its end."""
    return json.loads((folder / "record.json").read_text(encoding="utf-8"))


def tail(folder: Path, name: str = "stderr.txt") -> str:
    """Returns the end of what a job has written."""
    return (folder / name).read_text("utf-8", "replace")[-_TAIL:]


def journal(folder: Path, process: int = 0) -> list[Line]:
    """Returns what happened in all starts of a job; a line torn by a kill is left out."""
    path = folder / f"journal.{process}.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def differences(want: Line, have: Line) -> list[str]:
    """Returns a sentence for each entry of two records that differs."""
    found = [
        f"{k}: {have.get(k)}, expected {want[k]}"
        for k in want
        if k != "rows" and have.get(k) != want[k]
    ]
    if have["rows"] != want["rows"]:
        added = [row for row in have["rows"] if row not in want["rows"]]
        lacking = [row for row in want["rows"] if row not in have["rows"]]
        counts = f"{len(have['rows'])} rows, expected {len(want['rows'])}"
        found.append(f"rows: {counts}; added {added[:2]}, lacking {lacking[:2]}")
    return found


def lost_work(
    lines: Sequence[Line], kills: Sequence[Death], interval: int
) -> tuple[list[Kill], list[str]]:
    """Returns the kills of a run with what they cost, and what is wrong with it.

    Args:
        lines: The journal of the whole run.
        kills: In their order.
        interval: Steps between saves.
    """
    last = committed = begun = written = 0
    resumes = [(line["pid"], line["step"]) for line in lines if line["what"] == "training"]
    found, problems = [], []
    for index, (plan, pid, at) in enumerate(kills):
        for line in (line for line in lines if line["pid"] == pid):
            last = line["step"] if line["what"] in ("step", "training", "trained") else last
            begun = line["step"] if line["what"] == "begun" else begun
            written = begun if line["what"] == "record" else written
            committed = begun if line["what"] == "committed" else committed
        ended = {other.pid for other in kills[: index + 1]}
        after = [step for other, step in resumes if other not in ended]
        if not after:
            problems.append(f"{plan}: no start has come to train after it")
            continue
        under_way = last - begun if begun > committed else 0
        kill = Kill(plan, pid, at, last, after[0], interval + under_way)
        found.append(kill)
        if not committed <= kill.resumed <= max(committed, written):
            problems.append(f"{plan}: went on from {kill.resumed}, expected {committed}")
        if kill.lost > kill.limit or kill.lost > 2 * interval:
            problems.append(f"{plan}: lost {kill.lost} steps, expected at most {kill.limit}")
        committed = begun = written = max(committed, kill.resumed)
        last = kill.resumed
    return found, problems
