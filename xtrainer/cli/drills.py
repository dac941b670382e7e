"""What is injected into a run, and what must be true afterwards? One function for each injection.

Each starts the experiment in a folder of its own, lets a fault come at a step that is drawn, starts
it again where it has ended, and compares it with the run that nothing has happened to.
"""

import math
import random
import signal
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xtrainer.checkpoint import list_steps
from xtrainer.checkpoint.commit import COMMIT_FILE, problems_of, read_commit
from xtrainer.cli.runner import NO_FAULT, Ended, Runner
from xtrainer.loop import StopReason
from xtrainer.testing import MOMENTS, Fault, compare, flip_bits

PREEMPTED_CODE = 128 + signal.SIGTERM
SAVE_FAILED_CODE = 4
PREEMPTED_LIMIT_S = 10.0
"""Until a run that was told to end has ended, besides the time of a save."""
_LONG_SAVES = 5


@dataclass
class Outcome:
    """What has come of an injection.

    Attributes:
        name: Of the injection.
        injected: What, and when.
        happened: How the processes have ended.
        lost_steps: Steps that had to be taken again.
        lost_bytes: Of saves that were not finished and of checkpoints that were set aside.
        problems: What is not as it should be; empty where the run has survived.
    """

    name: str
    injected: str = ""
    happened: list[str] = field(default_factory=list)
    lost_steps: int = 0
    lost_bytes: int = 0
    problems: list[str] = field(default_factory=list)

    def require(self, holds: bool, problem: str) -> None:
        """Notes a problem unless something holds."""
        if not holds:
            self.problems.append(problem)


class Stage:
    """What an injection is made with: an experiment, its undisturbed run, and a seed.

    Args:
        runner: Starts the experiment.
        reference: The undisturbed run.
        name: Of the injection; its run is in a folder of this name.
        seed: With the name it decides all that is drawn.
    """

    def __init__(self, runner: Runner, reference: Ended, name: str, seed: int) -> None:
        self.runner, self.reference = runner, reference.journal
        self.folder = runner.folder / name
        self.draw = random.Random(f"{seed}-{name}")
        self.outcome = Outcome(name)
        self.parts: list[Ended] = []

    @property
    def last_step(self) -> int:
        """The last step of the undisturbed run."""
        return max(self.reference.steps)

    @property
    def saves(self) -> list[int]:
        """The steps that it has saved."""
        return list(self.reference.saves)

    @property
    def step_s(self) -> float:
        """The usual seconds of one of its steps."""
        times = list(self.reference.times.values())
        gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
        return statistics.median(gaps) if gaps else 0.0

    @property
    def save_s(self) -> float:
        """The seconds of its longest save."""
        j = self.reference
        return max(
            (j.saved[step] - j.saves[step] for step in j.saved if step in j.saves), default=0
        )

    def has_saves(self, count: int) -> bool:
        """Says whether the run saves often enough for an injection, and notes it if not."""
        enough = len(self.saves) >= count
        self.outcome.require(
            enough,
            f"not tried: found a run that saves at the steps {self.saves}, expected at least "
            f"{count} saves. Give --save-every.",
        )
        return enough

    def start(self, fault: Fault = NO_FAULT) -> Ended:
        """Starts the run, or starts it again, and notes how it ended and what it had to repeat."""
        before = self.parts[-1].journal if self.parts else None
        ended = self.runner.start(self.outcome.name, fault)
        journal, outcome = ended.journal, self.outcome
        self.parts.append(ended)
        if before is not None:
            taken = max(before.steps, default=before.start or 0)
            outcome.lost_steps += max(taken - (journal.start or 0), 0)
        after = "" if journal.fault_at is None else f" {ended.at - journal.fault_at:.1f} s after"
        outcome.happened.append(f"code {ended.code} {journal.stop}".rstrip() + after)
        if fault.kind:
            outcome.require(journal.fault_at is not None, "the fault has never come")
        outcome.lost_bytes += sum(_size(path) for path in self.folder.glob("**/*.saving"))
        return ended

    def finish(self) -> Outcome:
        """Starts the run a last time, if it is not done, and compares it with the undisturbed."""
        if self.parts[-1].journal.stop != StopReason.FINISHED.name:
            self.start()
        outcome, last = self.outcome, self.parts[-1]
        if last.code != 0:
            outcome.problems.append(self.runner.describe(last))
        whole = self.runner.folder / REFERENCE
        parts = [part.journal for part in self.parts]
        outcome.problems += map(str, compare(self.reference, parts, (whole, self.folder)))
        self.check_steps()
        newest = [max(_checkpoints(folder), default=None) for folder in (whole, self.folder)]
        outcome.require(
            newest[0] == newest[1],
            f"the newest checkpoint is of step {newest[1]}, expected {newest[0]}",
        )
        aside = [path for path in self.folder.glob("**/corrupt-*") if path.is_dir()]
        outcome.lost_bytes += sum(map(_size, aside))
        return outcome

    def check_steps(self) -> None:
        """Notes each checkpoint that is damaged, or holds another state than the undisturbed."""
        for step, folders in _checkpoints(self.folder).items():
            for folder in folders:
                found = problems_of(folder)
                self.outcome.problems += [f"{folder}: {text}" for text in found]
                if not found:
                    self._check_state(step, folder)

    def _check_state(self, step: int, folder: Path) -> None:
        saved, expected = read_commit(folder).fingerprints, self.reference.steps.get(step, {})
        for path, value in saved.items():
            # What the guard has counted is set back when the run goes on.
            if value != expected.get(path, value) and not path.startswith("guard"):
                text = f"{folder}: {path} is {value}, expected {expected[path]}"
                self.outcome.problems.append(text)
                return


def kill9(stage: Stage) -> Outcome:
    """SIGKILL within a save, then after a step."""
    if not stage.has_saves(1):
        return stage.outcome
    number, moment = stage.draw.randint(1, len(stage.saves)), stage.draw.choice(MOMENTS)
    step = stage.draw.randint(stage.saves[number - 1], stage.last_step)
    stage.outcome.injected = f"SIGKILL in save {number} ({moment}), then after step {step}"
    for fault in (
        Fault(kind="kill-in-save", at=number, moment=moment),
        Fault(kind="kill", at=step),
    ):
        ended = stage.start(fault)
        stage.outcome.require(ended.code == -signal.SIGKILL, stage.runner.describe(ended))
    stage.finish()
    _require_newest(stage)
    return stage.outcome


def preempt(stage: Stage) -> Outcome:
    """SIGTERM after a step: it is saved, and none is lost."""
    step = stage.draw.randint(1, max(stage.last_step - 1, 1))
    stage.outcome.injected = f"SIGTERM after step {step}"
    ended = stage.start(Fault(kind="preempt", at=step))
    outcome = stage.outcome
    seconds = ended.at - (ended.journal.fault_at or ended.at)
    limit = PREEMPTED_LIMIT_S + stage.save_s
    outcome.require(
        ended.code == PREEMPTED_CODE,
        f"it ended with code {ended.code}, expected {PREEMPTED_CODE}",
    )
    outcome.require(seconds <= limit, f"it took {seconds:.1f} s to end, expected {limit:.1f} s")
    taken = max(ended.journal.steps, default=0)
    stage.finish()
    start = stage.parts[1].journal.start if len(stage.parts) > 1 else taken
    outcome.require(start == taken, f"it went on from step {start}, expected {taken}")
    return outcome


def nan(stage: Stage) -> Outcome:
    """NaN in the batch of a step, or in its loss: the run stops before it."""
    number = stage.draw.randint(2, max(stage.last_step, 2))
    places = list(stage.reference.batches)
    place = places[min(number, len(places)) - 1]
    stage.outcome.injected = f"NaN in batch {number}"
    ended = stage.start(Fault(kind="nan", at=number, place=place))
    outcome, end = stage.outcome, ended.journal.end_step
    reason = StopReason.NONFINITE
    outcome.require(
        ended.code == reason.exit_code and ended.journal.stop == reason.name,
        f"expected {reason.name} and code {reason.exit_code}, found "
        f"{ended.journal.stop or 'no reason'} and {stage.runner.describe(ended)}",
    )
    taken = max(ended.journal.steps, default=0)
    outcome.require(end == taken, f"it stopped at step {end}, expected the last good one, {taken}")
    stage.check_steps()
    return stage.finish()


def disk_full(stage: Stage) -> Outcome:
    """Saves that fail: the run ends or goes on, and what was saved before is as it was."""
    if not stage.has_saves(2):
        return stage.outcome
    number = stage.draw.randint(2, max(2, len(stage.saves) - 1))
    stage.outcome.injected = f"no space in save {number}, from step {stage.saves[number - 1]} on"
    ended = stage.start(Fault(kind="disk-full", at=number))
    outcome, journal = stage.outcome, ended.journal
    survived = ended.code == 0 and journal.stop == StopReason.FINISHED.name
    outcome.require(
        survived or ended.code == SAVE_FAILED_CODE,
        f"it ended with code {ended.code}, expected {SAVE_FAILED_CODE}, or 0 where saves may fail",
    )
    failed = stage.saves[number - 1]
    outcome.require(failed not in journal.saved, f"step {failed} was saved, expected no space")
    older = [step for step in stage.saves if step < failed][-1]
    there = _checkpoints(stage.folder)
    outcome.require(survived or older in there, f"found no step {older}, which was there before")
    stage.check_steps()
    return stage.finish()


def slow_save(stage: Stage) -> Outcome:
    """Saves that take longer than the time between them: steps wait, and nothing is lost."""
    if not stage.has_saves(1):
        return stage.outcome
    interval = stage.step_s * stage.last_step / len(stage.saves)
    seconds = max(0.3, 2 * interval)
    count = min(_LONG_SAVES, len(stage.saves))
    stage.outcome.injected = f"{count} saves take {seconds:.1f} s longer, every {interval:.1f} s"
    fault = Fault(kind="slow-save", at=1, count=count, moment="arrays", seconds=seconds)
    ended = stage.start(fault)
    times, outcome = list(ended.journal.times.values()), stage.outcome
    gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
    longest, limit = max(gaps, default=0.0), seconds + stage.save_s + 10 * stage.step_s + 2.0
    outcome.require(longest <= limit, f"a step took {longest:.1f} s, expected {limit:.1f} s")
    missing = [step for step in stage.saves if step not in ended.journal.saved]
    outcome.require(not missing, f"the steps {missing} were not saved")
    return stage.finish()


def stall_loader(stage: Stage) -> Outcome:
    """A loader that takes its time: the run ends the same, and its account of time says so."""
    places = list(stage.reference.batches)
    number = stage.draw.randint(min(2, len(places)), len(places))
    seconds = max(2.0, 8 * stage.step_s)
    stage.outcome.injected = f"batch {number} comes {seconds:.1f} s late"
    fault = Fault(kind="stall-loader", place=places[number - 1], seconds=seconds)
    journal, outcome = stage.start(fault).journal, stage.outcome
    new, usual = (j.accounts.get("data_wait", 0.0) for j in (journal, stage.reference))
    # Batches are read ahead: only what is left when the step before is done holds up a step.
    needed_at = journal.times.get(number - 1, math.inf)
    seen = max((journal.fault_at or 0.0) + seconds - needed_at, 0.0)
    outcome.happened.append(f"data_wait {new:.1f} s, of {seen:.1f} s not hidden by reading ahead")
    outcome.require(
        new - usual >= seen / 2,
        f"the ledger counts {new:.1f} s of data_wait, and {usual:.1f} s without the stall, "
        f"expected {seen:.1f} s more",
    )
    return stage.finish()


def corrupt(stage: Stage) -> Outcome:
    """SIGKILL in a save, then flipped bits in the newest checkpoint: the one before is taken."""
    if not stage.has_saves(3):
        return stage.outcome
    number = stage.draw.randint(3, len(stage.saves))
    stage.outcome.injected = f"SIGKILL in save {number}, then 3 bits of the newest step flipped"
    stage.start(Fault(kind="kill-in-save", at=number))
    there = sorted(_checkpoints(stage.folder))
    outcome = stage.outcome
    if len(there) < 2:
        outcome.problems.append(f"found the checkpoints {there} after the kill, expected two")
        return outcome
    for folder in _checkpoints(stage.folder)[there[-1]]:
        flip_bits(folder, stage.draw.randrange(2**32))
    stage.finish()
    start = stage.parts[1].journal.start
    outcome.require(start == there[-2], f"it went on from step {start}, expected {there[-2]}")
    aside = list(stage.folder.glob(f"**/corrupt-{there[-1]}"))
    outcome.require(bool(aside), f"step {there[-1]} was not set aside")
    return outcome


REFERENCE = "whole"
"""The folder of the undisturbed run."""

DRILLS: dict[str, Callable[[Stage], Outcome]] = {
    "kill9": kill9,
    "preempt": preempt,
    "nan": nan,
    "disk-full": disk_full,
    "slow-save": slow_save,
    "stall-loader": stall_loader,
    "corrupt": corrupt,
}
"""Each injection by the name of its option."""


def run_drills(runner: Runner, names: Sequence[str], seed: int) -> list[Outcome]:
    """Returns what comes of injections, after a run without any.

    Raises:
        RunFailed: If that one does not end well.
    """
    reference = runner.complete(REFERENCE)
    return [DRILLS[name](Stage(runner, reference, name, seed)) for name in names]


def _require_newest(stage: Stage) -> None:
    """Notes where a start went on from an older step than the newest that was there."""
    newest = 0
    for before, after in zip(stage.parts, stage.parts[1:], strict=False):
        newest = max(newest, *before.journal.saved, 0)
        start = after.journal.start or 0
        text = f"it went on from step {start}, although step {newest} had been saved"
        stage.outcome.require(start >= newest, text)


def _checkpoints(folder: Path) -> dict[int, list[Path]]:
    """Returns the folders of each step that is there, of every callback that saves."""
    found: dict[int, list[Path]] = {}
    for place in {path.parent.parent for path in folder.glob(f"*/*/{COMMIT_FILE}")}:
        for step in list_steps(place):
            found.setdefault(step, []).append(place / str(step))
    return found


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
