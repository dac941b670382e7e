"""What has happened to a run, and when? A line in its folder for each start, save, stop and so on.

The journal is a time line of the run folder: a start after a kill adds to it, and nothing of what
it says of steps that are then taken again is removed. Rows of metrics are not in it. It costs no
step anything: what it writes between two events comes with a row that is logged anyhow.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xtrainer.callbacks import ThroughputConfig
from xtrainer.callbacks.chips import peak_flops
from xtrainer.checkpoint import Saved, numerics
from xtrainer.checkpoint.items import git_revision, library_versions
from xtrainer.config.redact import redact
from xtrainer.errors import XTrainerError
from xtrainer.launch import is_main_process, process_count
from xtrainer.launch.exits import ERROR_CODE
from xtrainer.loggers.lines import LineFile, cut_after_last_newline
from xtrainer.loop import StopReason
from xtrainer.state import Rollback
from xtrainer.trainer.journal_lines import JOURNAL_FILE, MAX_BYTES, JournalLine, encode
from xtrainer.trainer.view import TrainerView
from xtrainer.types import JSON

_LOG = logging.getLogger(__name__)
_EVERY_S = 10.0
_DOUBLES_AFTER = 2**18
"""Bytes of the file after which lines are written half as often; so its size is bounded."""
_LETTERS = 2_000
_LOCK_S = 2.0


class RunJournal:
    """Writes the journal of a trainer's runs; on the main process, where there is a run folder.

    Nothing that goes wrong with it ends a run: it is told once.

    Args:
        trainer: What it tells of.
        clock: Seconds, monotonic.
    """

    def __init__(self, trainer: TrainerView, clock: Callable[[], float] = time.monotonic) -> None:
        self._trainer, self._clock = trainer, clock
        self._path: Path | None = None  # of the run under way
        self._size = 0
        self._base: dict[str, float] = {}  # seconds that belong to runs before
        self._written: dict[str, float] = {}  # when, by kind
        self._left_out: dict[str, int] = {}
        self._newest = float("-inf")
        self._refused: list[int] = []  # first, last and number of steps not written yet
        self._lock = threading.Lock()  # saves are told of by a thread of theirs
        self._is_told = False

    def start(self, online: bool) -> None:
        """Begins with a run.

        Args:
            online: Whether it is one pass that counts as no epoch.
        """
        folder = self._trainer.log_path
        if folder is None or not is_main_process():
            return
        self._path, self._refused = folder / JOURNAL_FILE, []
        self._written.clear()
        self._left_out.clear()
        self._guarded(self._mend)
        self._guarded(lambda: self._write("start", **self._surroundings(), online=online))

    def first_step(self) -> None:
        """Notes that the first step is done."""
        self._write("first_step")

    def row(self) -> None:
        """Notes where the time went, where that was not done for a while."""
        self._tell_refused(now=False)
        if self._clock() - self._newest >= self._pause_s():
            self._write("ledger")

    def validation(self) -> None:
        """Notes a validation."""
        self._write("validation", often=True)

    def checkpoint(self, saved: Saved) -> None:
        """Notes a save that is committed or has failed; called by another thread."""
        root = None if self._path is None else self._path.parent
        folder = saved.folder
        if root is not None and folder.is_relative_to(root):
            folder = folder.relative_to(root)
        facts: dict[str, Any] = {"took_s": round(saved.seconds, 3), "bytes": saved.num_bytes}
        problem = None if saved.problem is None else saved.problem[:_LETTERS]
        facts |= {"folder": str(folder), "problem": problem}
        self._write("checkpoint", saved.step, often=True, from_thread=True, **facts)

    def refused(self, step: int) -> None:
        """Notes a step that the guard has refused; those that follow soon share its line."""
        first, _, count = self._refused or (step, step, 0)
        self._refused = [first, step, count + 1]
        self._tell_refused(now=False)

    def rollback(self, rollback: Rollback) -> None:
        """Notes that the run has gone back."""
        self._tell_refused(now=True)
        facts: dict[str, Any] = {
            "from_step": rollback.from_step,
            "skipped_batches": len(rollback.skipped),
        }
        self._write("rollback", reason=rollback.reason[:_LETTERS], **facts)

    def stop(self, error: BaseException | None) -> None:
        """Ends with a run; what was not written yet is.

        Args:
            error: What has ended it; None: its ``stop_reason``.
        """
        if self._path is None:
            return
        self._tell_refused(now=True)
        if error is None:
            reason = self._trainer.stop_reason or StopReason.FINISHED
            facts = (reason, self._trainer.stop_detail, reason.exit_code)
        else:
            code = error.exit_code if isinstance(error, XTrainerError) else ERROR_CODE
            facts = (StopReason.FAILED, repr(error), code)
        self._write_stop(*facts)
        self._base, self._path = self._trainer.ledger.peek(), None

    def give_up(self, reason: str, exit_code: int) -> None:
        """Notes that the process is about to be ended; called by another thread."""
        self._write_stop(StopReason.FAILED, reason, exit_code, from_thread=True)

    def _write_stop(
        self, reason: StopReason, detail: str, exit_code: int, from_thread: bool = False
    ) -> None:
        facts: dict[str, JSON] = {"detail": detail[:_LETTERS], "exit_code": exit_code}
        self._write("stop", from_thread=from_thread, reason=reason.name, **facts)

    def _surroundings(self) -> dict[str, JSON]:
        trainer = self._trainer
        devices = trainer.mesh.devices.ravel()
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process_count": process_count(),
            "devices": {"kind": devices[0].device_kind, "count": int(devices.size)},
            "mesh": {str(name): int(size) for name, size in trainer.mesh.shape.items()},
            "versions": dict(library_versions()),
            "git": git_revision(),
            "numerics": numerics(),
            "parameters": int(trainer.get_num_params()),
            "flops_per_step": self._flops(devices[0].device_kind),
            "total_steps": trainer.total_steps,
        }

    def _flops(self, device_kind: str) -> float | None:
        """Returns the operations of a step where they can be compared with the chip's peak.

        They are counted while the step is being compiled, so that no device waits for it.
        """
        for config in self._trainer.trainer_config.callbacks:
            if isinstance(config, ThroughputConfig) and config.flops_per_step is not None:
                return float(config.flops_per_step)
        if peak_flops(device_kind) is None:
            return None
        try:
            return self._trainer.step_flops()
        except Exception as error:  # it is a figure of a report
            _LOG.warning("The operations of a step could not be counted: %r", error)
            return None

    def _pause_s(self) -> float:
        return _EVERY_S * 2.0 ** (self._size // _DOUBLES_AFTER)

    def _tell_refused(self, now: bool) -> None:
        since = self._clock() - self._written.get("refused", float("-inf"))
        if self._refused and (now or since >= self._pause_s()):
            (first, last, count), self._refused = self._refused, []
            self._write("refused", last, first=first, count=count)

    def _write(
        self,
        kind: str,
        step: int | None = None,
        often: bool = False,
        from_thread: bool = False,
        **facts: JSON,
    ) -> None:
        """Adds a line, if there is a run.

        Args:
            kind: See :class:`JournalLine`.
            step: Of the line; None: the newest.
            often: Whether there may be so many lines of the kind that a long file leaves some out.
            from_thread: Whether it is called by another thread than the one that trains, and so
                takes no time of the run.
            facts: The rest of the line.
        """
        if self._path is None:
            return
        ledger, step = self._trainer.ledger, self._trainer.progress.step if step is None else step
        if from_thread:
            self._guarded(lambda: self._add(kind, step, often, facts))
            return
        with ledger.spent("logging"):
            self._guarded(lambda: self._add(kind, step, often, facts))

    def _add(self, kind: str, step: int, often: bool, facts: dict[str, JSON]) -> None:
        path, now = self._path, self._clock()
        since = now - self._written.get(kind, float("-inf"))
        if often and self._size >= _DOUBLES_AFTER and since < self._pause_s():
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return
        if left_out := self._left_out.pop(kind, 0):
            facts = {**facts, "left_out": left_out}
        spent = self._trainer.ledger.peek()
        seconds = {name: s - self._base.get(name, 0.0) for name, s in spent.items()}
        text = encode(JournalLine(kind, datetime.now(UTC), step, seconds, redact(facts)))
        if path is None or not self._lock.acquire(timeout=_LOCK_S):
            return  # another thread is stuck in a write: no reason to wait with it
        try:
            self._append(path, text)
        finally:
            self._lock.release()
        self._written[kind] = self._newest = now

    def _append(self, path: Path, text: str) -> None:
        file = LineFile(path)
        try:
            if file.size + len(text) <= MAX_BYTES:
                file.write(text)
            elif not self._is_told:
                self._is_told = True
                _LOG.warning("%s is as long as it may be; nothing more is added to it.", path)
            self._size = file.size
        finally:
            file.close()

    def _mend(self) -> None:
        """Takes off what a killed process has left of a line."""
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists():
                cut_after_last_newline(self._path)

    def _guarded(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # a full disk, for one
            if not self._is_told:
                self._is_told = True
                _LOG.warning("%s cannot be written: %r. Training goes on.", self._path, error)
