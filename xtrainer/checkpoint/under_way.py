"""When is a save over? When it is committed, has failed, or has taken longer than it may."""

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from xtrainer.checkpoint.backend import ArrayWriter
from xtrainer.checkpoint.commit import RunId, reached, require_newest, seal
from xtrainer.checkpoint.durable import rename, write_json
from xtrainer.checkpoint.fingerprint import Pending, finish_fingerprints
from xtrainer.checkpoint.metadata import META_FILE
from xtrainer.checkpoint.removal import saving_folder
from xtrainer.checkpoint.starts import forget_failed_starts
from xtrainer.errors import CheckpointWriteError
from xtrainer.launch import is_main_process
from xtrainer.launch.exits import leave_in_any_case
from xtrainer.types import JSON

_GRACE_S = 5.0


class Saved(NamedTuple):
    """A save that is over.

    Attributes:
        folder: Of the steps.
        step: Its step.
        seconds: How long it was under way.
        num_bytes: Of the arrays.
        problem: Why it has failed; None: it is committed.

    Example:
        >>> Saved(Path("run/checkpoints"), 200, 0.5, 2**20).problem is None
        True
    """

    folder: Path
    step: int
    seconds: float
    num_bytes: int
    problem: str | None = None


@dataclass
class Save:
    """A save under way.

    Attributes:
        step: Its step.
        metric: What it is ranked by.
        limit_s: How long it may take.
        begun: When, in seconds of ``time.monotonic()``.
        done: Ends when the step is committed, or with what went wrong.
    """

    step: int
    metric: float | None
    limit_s: float
    begun: float = field(default_factory=time.monotonic)
    done: Future[None] = field(default_factory=Future)
    _late: threading.Event = field(default_factory=threading.Event)

    def commit(
        self,
        folder: Path,
        meta: Mapping[str, JSON],
        fingerprints: Pending,
        arrays: ArrayWriter,
        run: RunId,
    ) -> None:
        """Writes everything but the arrays, and makes it a step when these are written."""
        saving = saving_folder(folder, self.step, run.attempt)
        try:
            if is_main_process():
                write_json(saving / META_FILE, meta)
                reached("meta")
        finally:
            arrays.wait()  # in any case: a failed save's folder is removed
        reached("arrays")
        if is_main_process() and not self._late.is_set():
            seal(saving, self.step, run, lambda: finish_fingerprints(fingerprints))
            require_newest(folder, run)
            rename(saving, folder / str(self.step))
            reached("committed")
            forget_failed_starts(folder)

    def outcome(self) -> BaseException | None:
        """Waits for the end and returns what went wrong; ``TimeoutError`` where it takes too long.

        Then its thread is stuck: this process will not wait for it at its end.
        """
        left_s = self.begun + self.limit_s - time.monotonic()
        try:
            # A little in any case: the process may have been stopped meanwhile.
            return self.done.exception(max(left_s, min(self.limit_s, _GRACE_S)))
        except TimeoutError:
            self._late.set()  # nobody would know of the step that it made
            leave_in_any_case(CheckpointWriteError.exit_code, _GRACE_S)
            return TimeoutError(f"it has taken more than {self.limit_s:g} s")
